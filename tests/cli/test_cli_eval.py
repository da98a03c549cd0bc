"""t2 eval: experts beside the base on held-out questions of a small task, checked against the answers it keeps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from divisors import TASK

from t2cli.config import TrainConfig
from t2cli.evaluation.statistics import holm, paired_gain, wilson
from t2cli.files import write_atomic
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import load_task
from t2cli.tasks.sampling import split_of
from t2cli.training.questions import Lessons

pytest.importorskip("reasoning_gym")

N = 40


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "divisors.yaml"
    write_atomic(path, TASK)
    return path


@pytest.fixture
def other_task(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    write_atomic(path, TASK.replace("divisors", "small").replace("max_value: 90", "max_value: 60"))
    return path


@pytest.fixture
def experts(
    counting_folder: Path,
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
    tmp_path: Path,
) -> Path:
    """Return a registry of two experts for the counting base, and one for a foreign base."""
    adapted = AdaptedModel(load_base(str(counting_folder), device="cpu", quiet=True))
    identity, folder = adapted.base.identity, tmp_path / "experts"
    publish(folder, identity, "slight", random_z(adapted.ranks, seed=1, sigma=0.02))
    publish(folder, identity, "wild", random_z(adapted.ranks, seed=2, sigma=0.9))
    opposite = {kind: [-number for number in numbers] for kind, numbers in identity.probes.items()}
    publish(
        folder, replace(identity, name="other", weights="a" * 64, probes=opposite), "foreign", random_z(adapted.ranks)
    )
    return folder


@pytest.fixture
def options(task: Path, counting_folder: Path, experts: Path) -> list[str]:
    return ["--task", str(task), "--base", str(counting_folder), "--registry", str(experts), "--n", str(N)]


@pytest.fixture
def evaluate(run: Callable, options: list[str]) -> Callable:
    """Return a function that runs t2 eval on the tiny task and base."""
    return lambda *arguments: run("eval", *arguments, *options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_numbers_are_those_of_the_answers_that_are_kept(evaluate: Callable, task: Path, tmp_path: Path) -> None:
    result = evaluate("slight", "wild", "--json", "--seed", "3", "--save", tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"wrote {tmp_path / 'answers.jsonl'}\n"
    record = json.loads(result.stdout)
    asked = ["task", "category", "split", "held_out", "n", "seed"]
    assert list(record) == ["schema", "base", *asked, "max_answer_tokens", "comparisons", "rows"]
    assert (record["schema"], record["task"], record["split"]) == ("t2.eval/1", "divisors", "test")
    assert (record["n"], record["seed"], record["max_answer_tokens"], record["comparisons"]) == (N, 3, 8, 2)

    kept = lines_of(tmp_path / "answers.jsonl")
    judge, wanted = load_task(str(task)), load_task(str(task)).examples("test", N, 3)
    assert [line["question"] for line in kept] == [example.question for example in wanted for _ in range(3)]
    who = [row["expert"] for row in record["rows"]]
    assert who == [None, "slight@1", "wild@1"]
    assert [row["strategy"] for row in record["rows"]] == ["none", "fixed", "fixed"]
    by_who = {name: [line for line in kept if line["expert"] == name] for name in who}
    for lines in by_who.values():
        for example, line in zip(wanted, lines, strict=True):
            assert line["right"] == (judge.reward(example, line["answer"]) > 0)
            assert line["right_answer"] == example.answer
            assert line["messages"] == judge.messages(example)
    right = {name: [line["right"] for line in lines] for name, lines in by_who.items()}
    pairs = {name: paired_gain(right[None], right[name]) for name in who[1:]}
    together = holm([pair.mcnemar_p for pair in pairs.values()])
    for row, lines in zip(record["rows"], by_who.values(), strict=True):
        assert row["accuracy"] == sum(right[row["expert"]]) / N
        assert tuple(row["ci95"]) == wilson(sum(right[row["expert"]]), N)
        assert row["mean_answer_tokens"] == sum(line["tokens"] for line in lines) / N
        assert row["cut_answers"] == sum(line["cut"] for line in lines)
    for row, pair, p in zip(record["rows"][1:], pairs.values(), together, strict=True):
        assert (row["gain"], tuple(row["gain_ci95"]), row["mcnemar_p"]) == (pair.gain, pair.ci95, pair.mcnemar_p)
        assert (row["gained"], row["lost"], row["holm_p"]) == (pair.gained, pair.lost, p)
        assert row["digest"] == LocalRegistry([tmp_path / "experts"]).find(row["expert"]).digest
    assert record["rows"][0]["gain"] is None
    assert pairs["wild@1"].gained + pairs["wild@1"].lost > 0  # else nothing was compared


def test_people_get_an_aligned_table_and_verdicts(evaluate: Callable) -> None:
    result = evaluate("slight", "wild", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    title, header, *rows, first, second, how_to_read = result.stdout.splitlines()
    assert title.startswith(f"divisors: n = {N} questions of the split test, seed 0, base counting-")
    assert " ".join(header.split()) == "WHO RIGHT ACCURACY 95 % GAIN GAIN 95 % P HOLM P TOKENS CUT"
    assert [row.split()[0] for row in rows] == ["base", "slight@1", "wild@1"]
    assert len({len(row) for row in (header, *rows)}) == 1
    assert rows[0].split()[5:] == ["-", "-", "-", "-", *rows[0].split()[-2:]]
    assert first.startswith("slight@1: not distinguishable from the base (Holm p = ")
    assert second.startswith("wild@1: ")
    assert how_to_read == "P is that of one comparison alone; with 2 of them read HOLM P, which holds for all together"


def test_one_expert_needs_no_adjustment(evaluate: Callable) -> None:
    result = evaluate("slight", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "HOLM" not in result.stdout
    assert "slight@1: not distinguishable from the base (p = " in result.stdout.splitlines()[-1]


def test_without_an_expert_the_base_is_measured_alone(evaluate: Callable) -> None:
    result = evaluate("--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["expert"], row["strategy"], row["mcnemar_p"], row["verdict"]) == (None, "none", None, None)
    assert json.loads(evaluate("slight", "--json").stdout)["rows"][0] == row
    title, header, numbers = evaluate().stdout.splitlines()
    assert (title[:8], " ".join(header.split())) == ("divisors", "WHO RIGHT ACCURACY 95 % TOKENS CUT")
    assert numbers.split()[0] == "base"


def test_several_tasks_give_an_object_each_and_are_adjusted_together(evaluate: Callable, other_task: Path) -> None:
    result = evaluate("wild", "--task", other_task, "--json")
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {record["task"] for record in found} == {"small", "divisors"}
    assert [record["comparisons"] for record in found] == [2, 2]
    rows = [record["rows"][1] for record in found]
    assert [row["holm_p"] for row in rows] == holm([row["mcnemar_p"] for row in rows])


def test_it_is_what_training_records_and_meets_no_question_of_the_run(
    run: Callable, options: list[str], task: Path, tmp_path: Path
) -> None:
    shared = options[: options.index("--n")]
    trained = run("train", *shared, "--steps", "4", "--learning-rate", "0.03", "--seed", "5", "--quiet")
    assert trained.exit_code == 0, trained.stderr
    manifest = LocalRegistry([tmp_path / "experts"]).find("divisors").manifest
    (recorded,), training = manifest.evaluation, manifest.training
    assert training is not None
    assert training.threads is not None
    asked = ("--n", str(recorded.n), "--seed", str(recorded.seed), "--json", "--save", tmp_path / "kept.jsonl")
    result = run("eval", "divisors", *shared, *asked)
    base, expert = json.loads(result.stdout)["rows"]
    assert (base["accuracy"], expert["accuracy"]) == (recorded.base_accuracy, recorded.expert_accuracy)
    assert (expert["gain"], expert["mcnemar_p"]) == (recorded.gain, recorded.mcnemar_p)
    assert (tuple(expert["ci95"]), tuple(expert["gain_ci95"])) == (recorded.ci95, recorded.gain_ci95)
    lengths = (base["mean_answer_tokens"], expert["mean_answer_tokens"], base["cut_answers"], expert["cut_answers"])
    assert lengths == (
        *(recorded.base_answer_tokens, recorded.expert_answer_tokens),
        *(recorded.base_cut, recorded.expert_cut),
    )
    known = load_task(str(task))
    used = known.examples("validation", int(str(training.config["validation_examples"])), training.seed)
    lessons = Lessons(known, TrainConfig(seed=5)).after(0)
    assert training.config["prompts_per_step"] == TrainConfig().prompts_per_step
    for lesson in islice(lessons, 4 * TrainConfig().rounds):
        used += lesson
    words = {" ".join(sorted(example.question.split())) for example in used}
    questions = {line["question"] for line in lines_of(tmp_path / "kept.jsonl")}
    assert len(questions) == recorded.n
    assert not words & {" ".join(sorted(question.split())) for question in questions}
    assert Counter(map(split_of, questions)) == {"test": recorded.n}

    shown = run("show", "divisors", *shared[2:]).stdout
    assert f"answers of {recorded.base_answer_tokens:.1f} -> {recorded.expert_answer_tokens:.1f} tokens" in shown
    assert f"{recorded.base_cut} -> {recorded.expert_cut} of them cut at the limit" in shown
    assert f"on cpu, {training.threads} thread{'' if training.threads == 1 else 's'}\n" in shown


def test_another_split_is_said_loudly_not_to_be_held_out(evaluate: Callable) -> None:
    for split in ("train", "validation"):
        result = evaluate("slight", "--split", split, "--quiet", "--json")
        assert f"NOT HELD OUT: experts were trained on or chosen by questions of the split '{split}'" in result.stderr
        assert json.loads(result.stdout)["held_out"] is False
        assert f"split {split}, NOT HELD OUT, " in evaluate("--split", split).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--task", "mth"], 3, ["'mth'", "did you mean math"]),
        (["--task", "none.yaml"], 3, ["none.yaml"]),
        (["--n", "0"], 2, ["--n", "t2 eval --help"]),
        (["--n", "100000"], 1, ["different test questions", "ask for fewer"]),
        (["--split", "dev"], 2, ["'dev'", "'test'"]),
        (["nobody"], 3, ["'nobody'"]),
        (["slight@2"], 3, ["slight@2"]),
        (["slight", "slight@1"], 2, ["slight@1 is named twice"]),
        (["foreign"], 4, ["foreign", "other-aaaaaaaaaaaa", "--allow-foreign"]),
        (["--save", "."], 2, ["is a folder"]),
        (["--base", "smol"], 3, ["'smol'"]),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], code: int, said: list[str], run: Callable, refused: Callable, options: list[str]
) -> None:
    if "--task" in arguments:
        options = options[2:]
    refused(run("eval", *options, *arguments), code, *said)


def test_a_task_is_needed_and_needed_once(run: Callable, refused: Callable, options: list[str], task: Path) -> None:
    refused(run("eval", *options[2:]), 2, "--task")
    refused(run("eval", *options, "--task", task), 2, "divisors is named twice")


def test_a_damaged_expert_is_found_before_anything_is_asked(
    evaluate: Callable, refused: Callable, experts: Path
) -> None:
    (LocalRegistry([experts]).find("wild").path / "z.safetensors").write_bytes(b"x" * 200)
    refused(evaluate("slight", "wild", "--quiet"), 5, "z.safetensors")


def test_a_foreign_expert_is_measured_if_asked_for(evaluate: Callable) -> None:
    result = evaluate("foreign", "--allow-foreign", "--json")
    assert result.exit_code == 0, result.stderr
    assert "warning: foreign@1 was made for other-" in result.stderr
    assert json.loads(result.stdout)["rows"][1]["expert"] == "foreign@1"


def test_ctrl_c_shows_and_leaves_nothing(options: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "answers.jsonl"
    write_atomic(kept, "older\n")
    command = [sys.executable, "-m", "t2cli", "eval", "slight", "wild", *options[:-1], "900", "--save", str(kept)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(list(kept.parent.iterdir())) < 2:  # the file that is being written
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")
    assert [path.name for path in kept.parent.iterdir()] == ["answers.jsonl"]
    assert kept.read_text() == "older\n"
