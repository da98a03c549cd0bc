"""t2 mix --examples and t2 chat --adapt few-shot: a mix is searched, recorded, explained, and not oversold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipes_to_chat import Running

from t2cli.cli.chat_commands import run as run_command
from t2cli.cli.chat_session import Conversation
from t2cli.cli.output import Output
from t2cli.config import SamplingConfig
from t2cli.dispatch.decision import Decision
from t2cli.dispatch.fixed import FixedStrategy
from t2cli.dispatch.two_pass import TwoPass
from t2cli.files import sha256_of
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.models.generate import generate
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors, mix

QUESTIONS = ["what is the sum", "who is it", "two numbers", "is it a sum", "what is it", "a number", "the two", "user"]


@pytest.fixture
def adapted(counting_folder: Path) -> AdaptedModel:
    """Return a tiny base that answers with one character, most often a digit."""
    return AdaptedModel(load_base(str(counting_folder), device="cpu", quiet=True))


@pytest.fixture
def experts(
    tmp_path: Path, adapted: AdaptedModel, publish: Callable[..., ExpertEntry], random_z: Callable[..., ZVectors]
) -> dict[str, ExpertEntry]:
    folder, identity = tmp_path / "experts", adapted.base.identity
    return {
        name: publish(folder, identity, name, random_z(adapted.ranks, seed=seed, sigma=0.4), examples=(name,))
        for name, seed in (("math", 1), ("story", 2))
    }


def file_of(path: Path, adapted: AdaptedModel, z: ZVectors | None) -> Path:
    """Write examples whose right answers are what `z` says, or answers that nothing says; return the file."""
    records = []
    for question in QUESTIONS:
        prompt = adapted.base.encode([{"role": "user", "content": question}])
        answer = "nothing of the kind"
        if z is not None:
            with adapted.use_z(z):
                done = generate(adapted, [prompt], SamplingConfig(64))[0]
            answer = adapted.base.decode(list(done.ids)).strip()
            if not done.ended or not answer:
                continue
        records.append({"prompt": question, "answer": answer, "reward": "exact"})
    assert len(records) >= 4
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def few(tmp_path: Path, adapted: AdaptedModel, experts: dict[str, ExpertEntry]) -> Path:
    """Return examples that the expert math answers right."""
    return file_of(tmp_path / "few.jsonl", adapted, read_z(experts["math"]))


@pytest.fixture
def search(run: Callable, counting_folder: Path, experts: dict[str, ExpertEntry], tmp_path: Path) -> Callable:
    """Return a function that runs t2 mix with two generations at most."""
    options = ["--base", counting_folder, "--registry", tmp_path / "experts", "--name", "mine", "--iterations", "2"]
    return lambda *arguments: run("mix", *arguments, *options)


def test_what_is_published_is_what_the_record_says(
    search: Callable, few: Path, experts: dict[str, ExpertEntry], tmp_path: Path
) -> None:
    result = search("math", "story", "--examples", few, "--json", "--force")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert list(record) == ["schema", "expert", "digest", "path", "parents", "search"]
    found = record["search"]
    assert (found["published"], found["per_layer"]) == ("mix", False)
    assert found["search_score"] == 1.0
    assert found["searched_with"] - found["held_out"] in (0, 1)
    assert 32 < found["evaluations"] <= 64
    assert {"base", "uniform mix"} < set(found["baselines"])
    assert [expert["ref"] for expert in found["experts"]] == ["math@1", "story@1"]
    assert all(expert["spread"] > 0 and 0 <= expert["without"]["accuracy"] <= 1 for expert in found["experts"])
    entry = LocalRegistry([tmp_path / "experts"]).find("mine")
    assert (record["digest"], record["expert"]) == (entry.digest, "mine@1")
    z, wanted = read_z(entry), mix([(p["alpha"], read_z(experts[p["ref"][:-2]])) for p in record["parents"]])
    assert all(torch.equal(z[name], wanted[name]) for name in wanted)
    manifest = entry.manifest
    assert (manifest.kind, manifest.evaluation[0].split) == ("mix", "held-out")
    assert manifest.evaluation[0].n == found["held_out"]
    assert manifest.evaluation[0].expert_accuracy == found["score"]
    assert manifest.training is not None
    assert manifest.training.config["beats_baselines"] == found["beats_baselines"]
    assert manifest.training.config["data"] == [{"split": "train", "file": "few.jsonl", "sha256": sha256_of(few)}]
    assert ("the mix beats the" in manifest.description) == found["beats_baselines"]
    assert ("the mix beats the" in result.stderr) == found["beats_baselines"]
    assert LocalRegistry([tmp_path / "experts"]).verify(entry) == []


def test_explain_says_what_was_found(search: Callable, few: Path) -> None:
    result = search("math", "story", "--examples", few, "--explain")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mine@1 = ")
    assert "generations" in lines[1]
    assert "without it" in lines[3]
    assert [line.split()[0] for line in lines[4:7]] == ["math@1", "story@1", "base"]
    assert sum(words in lines[-1] for words in ("mix beats the", "does not beat the", "by no more than chance")) == 1


def test_experts_of_one_name_in_two_registries_are_two(
    run: Callable, counting_folder: Path, few: Path, experts: dict[str, ExpertEntry], adapted: AdaptedModel,
    publish: Callable[..., ExpertEntry], random_z: Callable[..., ZVectors], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = publish(
        tmp_path / "others", adapted.base.identity, "math", random_z(adapted.ranks, seed=5, sigma=0.4), examples=("x",)
    )
    places = f"{tmp_path / 'experts'}{os.pathsep}{tmp_path / 'others'}"
    options = ["--base", counting_folder, "--name", "mine", "--iterations", "2", "--examples", few, "--json", "--force"]
    monkeypatch.setenv("T2_REGISTRY", places)
    result = run("mix", "math", f"math@sha256:{other.digest}", *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    found = {expert["ref"]: expert["alpha"] for expert in record["search"]["experts"]}
    assert len(found) == 2
    entry = LocalRegistry([tmp_path / "experts"]).find("mine")
    members = [(alpha, read_z(each)) for alpha, each in zip(found.values(), (experts["math"], other), strict=True)]
    wanted = mix([(alpha, z) for alpha, z in members if alpha])
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in read_z(entry).items())


def test_per_layer(search: Callable, few: Path, tmp_path: Path) -> None:
    result = search("math", "story", "--examples", few, "--json", "--force", "--per-layer")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["search"]["per_layer"] is True
    entries = LocalRegistry([tmp_path / "experts"])
    assert entries.verify(entries.find("mine")) == []


def test_a_mix_no_better_than_the_base_is_not_published(
    search: Callable, refused: Callable, adapted: AdaptedModel, tmp_path: Path
) -> None:
    base = ZVectors({name: torch.ones(rank) for name, rank in adapted.ranks.items()})
    file = file_of(tmp_path / "base.jsonl", adapted, base)
    refused(search("math", "--examples", file), 1, "nothing was better than the base", "--force")
    assert not list((tmp_path / "experts").rglob("mine"))
    forced = search("math", "--examples", file, "--force")
    assert (forced.exit_code, "it is published all the same" in forced.stderr) == (0, True)


def test_no_right_answer_under_any_mix(
    search: Callable, refused: Callable, adapted: AdaptedModel, tmp_path: Path
) -> None:
    file = file_of(tmp_path / "none.jsonl", adapted, None)
    refused(search("math", "story", "--examples", file), 1, "answered any of the 8 examples right", "--reward")
    assert not list((tmp_path / "experts").rglob("mine"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["math", "--examples", "missing.jsonl"], 3, ["missing.jsonl"]),
        (["math:0.5", "--examples", "few.jsonl"], 2, ["math:0.5", "searches weights"]),
        (["math", "--explain"], 2, ["--examples"]),
        (["math", "--reward", "number"], 2, ["--examples"]),
        (["stroy", "--examples", "FEW"], 3, ["did you mean story"]),
        (["math", "--examples", "FEW", "--reward", "exakt"], 2, ["exakt", "exact"]),
        (["math", "math@1", "--examples", "FEW"], 2, ["same expert"]),
    ],
)
def test_what_cannot_be_searched_is_refused(
    arguments: list[str], code: int, said: list[str], search: Callable, refused: Callable, few: Path
) -> None:
    refused(search(*(str(few) if word == "FEW" else word for word in arguments)), code, *said)


def test_a_chat_answers_as_the_mix(
    run: Callable, counting_folder: Path, few: Path, experts: dict[str, ExpertEntry], tmp_path: Path
) -> None:
    options = ["--base", counting_folder, "--registry", tmp_path / "experts", "--json"]
    first = json.loads(few.read_text().splitlines()[0])
    result = run("chat", first["prompt"], "--adapt", "few-shot", "--examples", few, *options)
    assert result.exit_code == 0, result.stderr
    dispatch = json.loads(result.stdout)["dispatch"]
    assert dispatch["strategy"] == "few-shot"
    assert set(dispatch["weights"]) <= {"math@1", "story@1"}
    assert "held-out examples" in result.stderr
    weights = ",".join(f"{ref}:{alpha!r}" for ref, alpha in dispatch["weights"].items())
    same = run("chat", first["prompt"], *options, *(["--mix", weights] if weights else ["--adapt", "none"]))
    assert json.loads(same.stdout)["answer"] == json.loads(result.stdout)["answer"]


def test_many_rows_are_answered_as_the_mix(
    run: Callable, counting_folder: Path, few: Path, experts: dict[str, ExpertEntry], tmp_path: Path
) -> None:
    options = ["--base", counting_folder, "--registry", tmp_path / "experts", "--max-new-tokens", "12"]
    options += ["--adapt", "few-shot", "--examples", few]
    rows = "".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS)
    rows += json.dumps({"prompt": QUESTIONS[0], "expert": "none"}) + "\n"
    batched = run("chat", "--jsonl", *options, stdin=rows)
    assert batched.exit_code == 0, batched.stderr
    *searched, plain = [json.loads(line) for line in batched.stdout.splitlines()]
    assert {row["dispatch"]["strategy"] for row in searched} == {"few-shot"}
    assert plain["dispatch"]["strategy"] == "none"
    piped = run("chat", "--json", *options, stdin="\n".join(QUESTIONS))
    alone = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [(row["answer"], row["dispatch"]) for row in searched] == [(row["answer"], row["dispatch"]) for row in alone]


def test_a_conversation_goes_back_to_the_mix(
    adapted: AdaptedModel, experts: dict[str, ExpertEntry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_pass = TwoPass(adapted, LocalRegistry([tmp_path / "experts"]), quiet=True)
    mixed = FixedStrategy(Decision("few-shot", weights={"math@1": 0.5, "story@1": 0.25}))
    talk = Conversation(Output(), two_pass, mixed, SamplingConfig(4), "few-shot")
    talk.turn("what is the sum")
    run_command(talk, "/why")
    assert "searched on the examples: 0.5 math@1 + 0.25 story@1" in capsys.readouterr().err
    for away in ("/adapt prompt", "/expert none", "/mix math:1"):
        run_command(talk, away)
        assert talk.strategy is not mixed
        run_command(talk, "/adapt few-shot")
        assert talk.strategy is mixed
    run_command(talk, "/expert math")
    run_command(talk, "/expert auto")
    assert talk.strategy is mixed


def test_a_conversation_without_examples_says_so(
    adapted: AdaptedModel, experts: dict[str, ExpertEntry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_pass = TwoPass(adapted, LocalRegistry([tmp_path / "experts"]), quiet=True)
    before = two_pass.strategy("none")
    talk = Conversation(Output(), two_pass, before, SamplingConfig(4), "prompt")
    run_command(talk, "/adapt few-shot")
    assert "--examples" in capsys.readouterr().err
    assert talk.strategy is before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--adapt", "few-shot"], "needs examples"),
        (["--examples", "few.jsonl"], "--adapt few-shot"),
        (["--adapt", "few-shot", "--examples", "few.jsonl", "--expert", "math"], "--expert"),
    ],
)
def test_a_chat_with_half_of_the_options_is_refused(
    arguments: list[str], said: str, run: Callable, refused: Callable
) -> None:
    refused(run("chat", "hello", *arguments), 2, said)


def test_a_chat_without_experts_says_so(
    run: Callable, refused: Callable, counting_folder: Path, few: Path, tmp_path: Path
) -> None:
    options = ["--base", counting_folder, "--registry", tmp_path / "empty"]
    refused(run("chat", "hello", "--adapt", "few-shot", "--examples", few, *options), 3, "no expert", "t2 train")


@pytest.mark.parametrize("jsonl", [True, False])
def test_where_an_expert_of_the_mix_in_use_is_removed_nothing_stands_in(
    jsonl: bool, few: Path, counting_folder: Path, t2: Callable, tmp_path: Path
) -> None:
    places = ["--base", str(counting_folder), "--registry", str(tmp_path / "experts")]
    command = [sys.executable, "-m", "t2cli", "chat", "--json", "--adapt", "few-shot", "--examples", str(few), *places]
    question, pipe = json.dumps({"prompt": "what"}) if jsonl else "what", subprocess.PIPE
    with subprocess.Popen([*command, *(["--jsonl"] if jsonl else [])], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        chat = Running(process)
        first = chat.ask(question)["dispatch"]
        assert first["strategy"] == "few-shot"
        assert "math@1" in first["weights"]
        assert t2("rm", "math", "--yes", *places[2:]).returncode == 0
        if jsonl:
            assert chat.ask(question)["error"]["code"] == 3
        else:
            chat.write(question)
        code, said = chat.end()
    assert code == (1 if jsonl else 3)
    assert any("there is no expert named 'math'" in line for line in said)
