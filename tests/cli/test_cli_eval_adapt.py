"""t2 eval --adapt: strategies beside the base, what is said of their choices, and what cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from divisors import TASK

from t2cli.files import write_atomic
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.registry.dispatcher_record import DispatcherRecord
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import load_task

pytest.importorskip("reasoning_gym")

N = 24
ADDED = ["categories", "experts", "left_to_base", "pass1_seconds", "answer_seconds", "pass1_share", "learned"]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "divisors.yaml"
    write_atomic(path, TASK)
    return path


@pytest.fixture
def other_task(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    write_atomic(
        path, TASK.replace("divisors", "small").replace("arithmetic", "unheard of").replace("value: 90", "value: 60")
    )
    return path


@pytest.fixture
def add(
    counting_folder: Path, publish: Callable[..., ExpertEntry], random_z: Callable[..., ZVectors], tmp_path: Path
) -> Callable[..., ExpertEntry]:
    """Return a function that publishes an expert for the counting base."""
    adapted = AdaptedModel(load_base(str(counting_folder), device="cpu", quiet=True))

    def put(name: str, seed: int, **fields: object) -> ExpertEntry:
        z = random_z(adapted.ranks, seed=seed, sigma=0.4)
        return publish(tmp_path / "experts", adapted.base.identity, name, z, **fields)

    return put


@pytest.fixture
def experts(add: Callable[..., ExpertEntry]) -> None:
    add("sums", 1, category="arithmetic", examples=("What is the greatest common divisor of 4 and 6?",))
    add("story", 2, examples=("Anna likes cats. Who likes cats?",))


@pytest.fixture
def options(task: Path, counting_folder: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "experts").mkdir(exist_ok=True)
    places = ["--base", str(counting_folder), "--registry", str(tmp_path / "experts")]
    return ["--task", str(task), *places, "--n", str(N), "--quiet"]


@pytest.fixture
def evaluate(run: Callable, options: list[str]) -> Callable:
    return lambda *arguments: run("eval", *arguments, *options)


def records_of(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.usefixtures("experts")
def test_every_strategy_has_a_row_beside_the_base_and_the_experts_named(
    evaluate: Callable, other_task: Path, task: Path, tmp_path: Path
) -> None:
    arguments = (
        "sums",
        "--adapt",
        "prompt,best",
        "--adapt",
        "few-shot",
        "--shots",
        "8",
        "--task",
        other_task,
        "--json",
    )
    found = records_of(evaluate(*arguments, "--save", tmp_path / "kept.jsonl"))
    assert {record["task"]: record["category"] for record in found} == {
        "small": "unheard of", "divisors": "arithmetic"
    }  # fmt: skip
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    for record in found:
        assert record["comparisons"] == 8
        rows = {row["strategy"]: row for row in record["rows"]}
        assert list(rows) == ["none", "fixed", "prompt", "best", "few-shot"]
        assert [row["expert"] for row in record["rows"]] == [None, "sums@1", None, None, None]
        assert not set(ADDED) & (set(rows["none"]) | set(rows["fixed"]))
        for name in ("prompt", "best", "few-shot"):
            row = rows[name]
            assert list(row)[-len(ADDED) :] == ADDED
            assert 0 < row["pass1_share"] < 1
            total = row["pass1_seconds"] + row["answer_seconds"]  # each rounded to a tenth of a second
            assert row["pass1_share"] == pytest.approx(row["pass1_seconds"] / total, abs=0.06 / max(total - 0.1, 0.1))
            lines = [line for line in kept if (line["task"], line["strategy"]) == (record["task"], name)]
            assert len(lines) == N
            assert sum(line["right"] for line in lines) / N == row["accuracy"]
            assert sum(not line["weights"] for line in lines) == row["left_to_base"]
        by_category = [line["category"] for line in kept if line["task"] == record["task"] and "category" in line]
        counts = rows["prompt"]["categories"]
        assert set(counts) == {"arithmetic", "story", "other"}
        assert {name: by_category.count(name) for name in counts} == counts
        best, searched = rows["best"]["learned"], rows["few-shot"]["learned"]
        assert (best["split"], best["shots"], searched["split"], searched["shots"]) == ("validation", 8, "train", 8)
        assert set(best["scores"]) == {"sums@1", "story@1"} == set(searched["alphas"])
        assert rows["best"]["experts"] == {best["chosen"]: N}
    asked = {line["question"] for line in kept}
    learnt = [e.question for e in load_task(str(task)).examples("train", 8, 0)]
    assert not asked & set(learnt)


@pytest.mark.usefixtures("experts")
def test_people_read_who_answered_where_the_time_went_and_the_confusion(evaluate: Callable, other_task: Path) -> None:
    result = evaluate("--adapt", "prompt", "--adapt", "best", "--shots", "6", "--task", other_task)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert (
        sum(line.startswith(("prompt: sums@1 for", "prompt: story@1 for", "prompt: the base")) for line in lines) == 2
    )
    assert sum(line.startswith("best: ") and "6 questions of the split validation" in line for line in lines) == 2
    assert sum("pass 1 took" in line for line in lines) == 4
    (header,) = [line for line in lines if line.startswith("prompt: QUESTIONS OF")]
    assert header.split()[3:] == ["->", "arithmetic", "->", "other", "->", "story"]
    at = lines.index(header)
    assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["small", "divisors"] or [
        line.split()[0] for line in lines[at + 1 : at + 3]
    ] == ["divisors", "small"]
    for line in lines[at + 1 : at + 3]:
        assert sum(map(int, line.split()[-3:])) == N
    assert lines[at + 3].startswith("prompt: the task's own category for ")
    assert f" of {N} questions" in lines[at + 3]  # those of the task whose category is known


def test_one_expert_is_enough(evaluate: Callable, add: Callable[..., ExpertEntry]) -> None:
    add("sums", 1, category="arithmetic")
    (record,) = records_of(evaluate("--adapt", "best,few-shot,prompt", "--shots", "4", "--json"))
    rows = {row["strategy"]: row for row in record["rows"]}
    assert rows["best"]["learned"]["chosen"] == "sums@1"
    assert set(rows["few-shot"]["learned"]["alphas"]) == {"sums@1"}
    assert set(rows["prompt"]["categories"]) == {"arithmetic", "other"}


def test_pictures(evaluate: Callable, add: Callable[..., ExpertEntry], tmp_path: Path, refused: Callable) -> None:
    pytest.importorskip("matplotlib")
    add("sums", 1, category="arithmetic")
    result = evaluate("--adapt", "prompt,few-shot", "--shots", "4", "--plot", tmp_path / "new" / "pictures")
    assert result.exit_code == 0, result.stderr
    drawn = {path.name: path.read_bytes()[:4] for path in (tmp_path / "new" / "pictures").iterdir()}
    assert drawn == dict.fromkeys(["accuracy.png", "alphas.png", "confusion-prompt.png"], b"\x89PNG")
    (tmp_path / "file").write_text("")
    refused(evaluate("--plot", tmp_path / "file"), 2, "is no folder")


def test_a_folder_for_pictures_that_cannot_be_made_is_found_before_a_model_is_loaded(
    evaluate: Callable, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("t2cli.cli.session.open_model", None)
    (tmp_path / "file").write_text("")
    refused(evaluate("--plot", tmp_path / "file" / "pictures"), 1, "file/pictures/accuracy.png could not be written")
    refused(evaluate("--plot", "/proc/pictures"), 1, "/proc/pictures/accuracy.png could not be written")
    evaluate("--plot", tmp_path / "pictures", "--task", "mth")
    assert not (tmp_path / "pictures").exists()


@pytest.mark.usefixtures("experts")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--adapt", "none"], 2, ["the base alone is always measured"]),
        (["--adapt", "promt"], 3, ["'promt'", "did you mean prompt"]),
        (["--adapt", "prompt,"], 3, ["no strategy named ''"]),
        (["--adapt", "prompt", "--adapt", "best,prompt"], 2, ["prompt is named twice"]),
        (["--shots", "8"], 2, ["--shots is for what learns", "--adapt few-shot"]),
        (["--adapt", "prompt", "--shots", "8"], 2, ["--shots is for what learns"]),
        (["--adapt", "few-shot", "--shots", "3"], 2, ["--shots"]),
        (["--adapt", "few-shot", "--shots", "100000"], 1, ["different train questions", "ask for fewer"]),
        (["--adapt", "few-shot", "--split", "train"], 2, ["split train", "is to be measured"]),
        (["--adapt", "best", "--split", "validation"], 2, ["split validation", "is to be measured"]),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], code: int, said: list[str], evaluate: Callable, refused: Callable
) -> None:
    refused(evaluate(*arguments), code, *said)


@pytest.mark.parametrize("strategy", ["prompt", "best", "few-shot"])
def test_without_experts_there_is_nothing_to_choose_from(strategy: str, evaluate: Callable, refused: Callable) -> None:
    refused(evaluate("--adapt", strategy), 3, "there is no expert for", "t2 train")


@pytest.mark.usefixtures("experts")
def test_a_missing_dispatcher_is_found_before_a_model_is_loaded(
    evaluate: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2cli.cli.session.open_two_pass", lambda *_a, **_k: pytest.fail("a model was loaded"))
    refused(evaluate("--adapt", "classifier"), 3, "no dispatcher", "t2 train --task dispatch")


@pytest.mark.usefixtures("experts")
def test_a_dispatcher_is_measured_and_auto_is_that_dispatcher(
    evaluate: Callable, add: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    names = ("arithmetic", "story", "other")
    record = DispatcherRecord("A: sums. B: story. C: other.", names, ("A", "B", "C"), 0.0, ((1,) * 3,) * 3)
    add("which", 5, kind="dispatcher", category="which", dispatcher=record)
    (found,) = records_of(evaluate("--adapt", "classifier,auto", "--json", "--save", tmp_path / "kept.jsonl"))
    rows = {row["strategy"]: row for row in found["rows"]}
    assert list(rows) == ["none", "classifier", "auto"]
    chosen = rows["classifier"]
    assert list(chosen["categories"]) == sorted(names)
    assert sum(chosen["categories"].values()) == N
    assert chosen["left_to_base"] == chosen["categories"]["other"] == N - sum(chosen["experts"].values())
    timed = {"strategy", "pass1_seconds", "answer_seconds", "pass1_share"}
    assert all(rows["auto"][key] == value for key, value in chosen.items() if key not in timed)
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert {line["category"] for line in kept if line["strategy"] == "auto"} <= set(names)
    shown = evaluate("--adapt", "classifier").stdout
    assert "classifier: the task's own category for" in shown


def test_examples_of_a_file_run_out_and_a_test_file_alone_teaches_nothing(
    evaluate: Callable, experts: None, refused: Callable, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"question": f"say {i}?", "answer": "1", "more": ""}) + "\n" for i in range(60))
    )
    spec = "name: few\ncategory: few\ndescription: few\nmax_new_tokens: 2\nanswer: {kind: number}\n"
    for name, more in (("few", ""), ("only", ', record: {split: "test{{ more }}"}')):
        source = f"source: {{kind: jsonl, file: questions.jsonl{more}}}\n"
        write_atomic(tmp_path / f"{name}.yaml", spec.replace("few", name) + source)
    few, only = ["--task", str(tmp_path / "few.yaml")], ["--task", str(tmp_path / "only.yaml")]
    refused(evaluate("--adapt", "few-shot", "--shots", "50", *few), 2, "of the split train, and 50 are needed")
    refused(evaluate("--adapt", "few-shot", *only), 2, "for evaluation only")
    refused(evaluate("--adapt", "best", *only), 2, "for evaluation only")
    assert evaluate("--adapt", "prompt", *only).exit_code == 0


@pytest.mark.usefixtures("experts")
def test_a_damaged_expert_is_found_before_anything_is_asked(
    evaluate: Callable, refused: Callable, tmp_path: Path
) -> None:
    (LocalRegistry([tmp_path / "experts"]).find("story").path / "z.safetensors").write_bytes(b"x" * 200)
    refused(evaluate("--adapt", "prompt"), 5, "z.safetensors")
