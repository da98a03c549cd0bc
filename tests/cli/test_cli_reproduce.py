"""t2 reproduce: a recorded run on a tiny base comes out the same, and what is not the same is said."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from divisors import TASK
from interrupted import ctrl_c_at

from t2cli.evaluation.evaluate import compare
from t2cli.files import write_atomic
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ExpertManifest, ParentRecord
from t2cli.registry.vectors import read_z
from t2cli.tasks.base import load_task
from t2cli.training.checkpoint import RunFolder

pytest.importorskip("reasoning_gym")

FIELDS = (
    *("schema", "expert", "digest", "reproduces", "new", "run", "steps", "seconds", "evaluation"),
    *("gain_within_interval", "z", "differences", "defaults"),
)
Again = Callable[..., ExpertEntry]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "divisors.yaml"
    write_atomic(path, TASK)
    return path


@pytest.fixture
def options(task: Path, counting_folder: Path, tmp_path: Path) -> list[str]:
    return ["--task", str(task), "--base", str(counting_folder), "--registry", str(tmp_path / "experts")]


@pytest.fixture
def recorded(run: Callable, options: list[str], tmp_path: Path) -> ExpertEntry:
    """Train the expert divisors@1 and return it."""
    result = run("train", *options, "--steps", "4", "--learning-rate", "0.03", "--seed", "5", "--quiet")
    assert result.exit_code == 0, result.stderr
    return LocalRegistry([tmp_path / "experts"]).find("divisors")


@pytest.fixture
def changed(recorded: ExpertEntry, tmp_path: Path) -> Again:
    """Return a function that publishes the expert again with another record of its training or evaluation."""

    def put(config: dict[str, object] | None = None, without: str = "", **fields: Any) -> ExpertEntry:
        manifest = recorded.manifest
        training = manifest.training
        assert training is not None
        settings = {key: value for key, value in {**training.config, **(config or {})}.items() if key != without}
        of_training = {name: fields.pop(name) for name in ("versions", "device", "threads") if name in fields}
        of_evaluation = {name: fields.pop(name) for name in ("n", "seed", "gain_ci95") if name in fields}
        new: ExpertManifest = replace(
            manifest,
            training=replace(training, config=settings, **of_training),
            evaluation=(replace(manifest.evaluation[0], **of_evaluation),),
        )
        return LocalRegistry([tmp_path / "experts"]).put(replace(new, **fields), recorded.z_bytes())

    return put


@pytest.fixture
def reproduce(run: Callable, options: list[str]) -> Callable:
    """Return a function that runs t2 reproduce with the tiny task and base."""
    return lambda *arguments: run("reproduce", *arguments, *options)


def names(folder: Path) -> list[str]:
    return [entry.reference for entry in LocalRegistry([folder]).list()]


def test_the_same_comes_out_bit_for_bit(
    reproduce: Callable, recorded: ExpertEntry, tmp_path: Path, run: Callable, refused: Callable, options: list[str]
) -> None:
    result = reproduce("divisors", "--json")
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    record = json.loads(result.stdout)
    assert tuple(record) == FIELDS
    assert (record["schema"], record["expert"], record["digest"]) == (
        *("t2.reproduce/1", "divisors@1"),
        recorded.digest,
    )
    assert (record["reproduces"], record["gain_within_interval"], record["steps"]) == (True, True, 4)
    assert record["z"]["identical"] is True
    assert record["z"]["cosine"] == pytest.approx(1.0)
    assert record["z"]["rms_difference"] == 0.0
    assert (record["differences"], record["defaults"]) == ([], {})
    assert (
        record["evaluation"]["now"] == record["evaluation"]["recorded"] == recorded.manifest.to_dict()["evaluation"][0]
    )  # type: ignore[index]

    # it went into a registry of its own, under a name that no training resumes
    assert names(tmp_path / "experts") == ["divisors@1"]
    assert not (tmp_path / "home" / "registry").exists()
    (new,) = LocalRegistry([Path(record["run"]) / "registry"]).list()
    assert (new.reference, new.digest, str(new.path)) == tuple(record["new"].values())
    assert new.z_bytes() == recorded.z_bytes()
    assert Path(record["run"]).is_relative_to(tmp_path / "home" / "runs")
    refused(run("train", *options, "--resume"), 3, "no unfinished run of divisors")


def test_people_read_the_answer_first(reproduce: Callable, recorded: ExpertEntry) -> None:
    result = reproduce("divisors@1", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    first, accuracy, z, same, new = result.stdout.splitlines()
    gain = f"{100 * recorded.manifest.evaluation[0].gain:+.1f}"
    assert first.startswith(f"divisors@1 reproduces: gain {gain} points, within the recorded {gain} [")
    assert accuracy.startswith("accuracy on the same 500 questions: base 0.")
    assert z == "z: identical, bit for bit"
    assert same == "versions, device, threads, processes, basis and questions are those recorded"
    assert new.startswith("new expert: divisors-reproduced-")


def test_a_gain_outside_of_the_recorded_interval_does_not_reproduce(reproduce: Callable, changed: Again) -> None:
    changed(config={"steps": 3, "warmup_steps": 1}, gain_ci95=(0.99, 1.0))
    result = reproduce("divisors", "--quiet")
    assert result.exit_code == 1
    first, *rest = result.stdout.splitlines()
    assert first.startswith("divisors@2 does NOT reproduce: gain ")
    assert first.endswith("[+99.0, +100.0]")
    assert any(line.startswith("z: not identical; cosine of z - 1 +") for line in rest)
    record = json.loads(reproduce("divisors", "--quiet", "--json").stdout)
    assert (record["reproduces"], record["gain_within_interval"], record["steps"]) == (False, False, 3)
    assert -1 <= record["z"]["cosine"] < 1
    assert record["z"]["rms_now"] < record["z"]["rms_recorded"]


def test_a_run_that_finds_nothing_is_told_to_programs_too(
    reproduce: Callable, changed: Again, recorded: ExpertEntry
) -> None:
    entry = changed(config={"learning_rate": 0.0})
    result = reproduce("divisors", "--quiet", "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert (record["expert"], record["digest"], record["reproduces"], record["new"]) == (
        *("divisors@2", entry.digest),
        *(False, None),
    )
    assert record["reason"].startswith("no checkpoint was better than the base")
    assert "divisors@2 does not reproduce: no checkpoint" in result.stderr
    assert "hint: train for more --steps" in result.stderr


def test_it_is_for_one_process(reproduce: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    refused(reproduce("divisors"), 2, "t2 reproduce is for one process", "without torchrun")


def test_without_an_interval_only_the_same_numbers_count(reproduce: Callable, changed: Again) -> None:
    changed(gain_ci95=None)
    result = reproduce("divisors", "--quiet")
    assert result.exit_code == 0
    assert "without an interval, so that only the same numbers count" in result.stdout
    changed(gain_ci95=None, config={"steps": 2})
    assert reproduce("divisors", "--quiet").exit_code == 1


def test_what_was_otherwise_is_named(reproduce: Callable, changed: Again, recorded: ExpertEntry) -> None:
    assert recorded.manifest.training is not None
    versions = {**recorded.manifest.training.versions, "torch": "1.0", "numpy": "1.0"}
    changed(versions=versions, device="tpu", threads=None, examples=("What is 1?",))
    record = json.loads(reproduce("divisors", "--quiet", "--json").stdout)
    now = recorded.manifest.training
    assert record["differences"] == [
        {"what": "torch", "recorded": "1.0", "now": now.versions["torch"]},
        {"what": "numpy", "recorded": "1.0", "now": "not recorded"},
        {"what": "device", "recorded": "tpu", "now": "cpu"},
        {"what": "training questions", "recorded": "What is 1?", "now": " | ".join(recorded.manifest.examples)},
        {"what": "threads", "recorded": "not recorded", "now": str(now.threads)},
    ]
    assert "differs: torch: 1.0 recorded, " in reproduce("divisors", "--quiet").stdout


def test_it_is_measured_on_the_recorded_questions(
    reproduce: Callable, changed: Again, task: Path, counting_folder: Path, recorded: ExpertEntry
) -> None:
    changed(n=120, seed=3)
    record = json.loads(reproduce("divisors", "--quiet", "--json").stdout)
    adapted = AdaptedModel(load_base(str(counting_folder), device="cpu", quiet=True))
    wanted = compare(adapted, load_task(str(task)), read_z(recorded), n=120, seed=3)
    now = record["evaluation"]["now"]
    assert (now["n"], now["seed"]) == (120, 3)
    assert (now["base_accuracy"], now["expert_accuracy"]) == (wanted.base_accuracy, wanted.expert_accuracy)


def test_a_setting_that_an_older_version_did_not_record_is_said_to_be_the_default(
    reproduce: Callable, changed: Again
) -> None:
    changed(without="kl_coefficient")
    result = reproduce("divisors", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: divisors@2 is of an older version of t2, which had fewer settings: used kl_coefficient 0.02\n"
    )
    assert "used: kl_coefficient = 0.02 (recorded by an older version" in result.stdout
    assert json.loads(reproduce("divisors", "--quiet", "--json").stdout)["defaults"] == {"kl_coefficient": 0.02}


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"config": {"brand_new": 1, "another": 2}}, 1, ["another, brand_new", "use the version", "0.1.0"]),
        ({"config": {"steps": "many"}}, 5, ["training.config.steps", "'many'"]),
        ({"training": None}, 2, ["no record of a training", "not from t2 train"]),
        ({"evaluation": ()}, 2, ["no evaluation on divisors"]),
    ],
)
def test_a_record_that_cannot_be_run_is_refused(
    changes: dict[str, Any], code: int, said: list[str], reproduce: Callable, refused: Callable, changed: Again
) -> None:
    changed(**changes)
    refused(reproduce("divisors"), code, "divisors@2", *said)


def test_a_mix_is_refused_with_what_it_was_made_from(
    reproduce: Callable, refused: Callable, changed: Again, recorded: ExpertEntry
) -> None:
    parents = (ParentRecord("divisors@1", recorded.digest, 1.0),)
    changed(name="both", kind="mix", training=None, evaluation=(), parents=parents)
    refused(reproduce("both"), 2, "both@1 has no record of a training: it is a mix", "divisors@1")


def test_what_the_manifest_cannot_say_must_be_given(
    run: Callable, refused: Callable, recorded: ExpertEntry, options: list[str], base_folder: Callable, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    write_atomic(other, TASK.replace("divisors", "other"))
    (_, task, _, base, *registry) = options
    asked = ("reproduce", "divisors", *registry)
    refused(run(*asked, "--base", base), 3, "task divisors, which does not come with t2", "--task FILE.yaml")
    refused(run(*asked, "--base", base, "--task", other), 2, "on the task divisors, and", "is other")
    refused(run(*asked, "--task", task), 2, "does not say where that is", "--base FOLDER")
    refused(run(*asked, "--task", task, "--base", base_folder("llama")), 4, "divisors@1 was trained on counting-")
    refused(run(*asked, "--task", task, "--base", base, "--name", "My Name"), 2, "'My Name'")
    refused(run("reproduce", "nobody", *registry), 3, "'nobody'")
    refused(run(*asked, "--task", task, "--base", base, "--resume"), 3, "no unfinished run of divisors-reproduced-")


def test_with_a_name_it_is_published(reproduce: Callable, recorded: ExpertEntry, tmp_path: Path) -> None:
    result = reproduce("divisors", "--name", "again", "--quiet", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["new"]["expert"] == "again@1"
    assert sorted(names(tmp_path / "experts")) == ["again@1", "divisors@1"]


def test_ctrl_c_and_resume_end_as_if_nothing_had_happened(
    run: Callable, refused: Callable, reproduce: Callable, changed: Again, options: list[str], tmp_path: Path
) -> None:
    changed(config={"steps": 30})
    command = [sys.executable, "-m", "t2cli", "reproduce", "divisors", *options]
    code, stdout, stderr = ctrl_c_at(command, "step 3/30")
    assert (code, stdout) == (130, "")
    what, hint = [line for line in stderr.splitlines() if not line.startswith("step ")]
    assert what.startswith("interrupted: stopped after step ")
    wanted = shlex.join(["t2", "reproduce", "divisors@2", *options, "--resume"])
    assert hint == f"hint: go on with: {wanted}"

    unbroken = json.loads(reproduce("divisors", "--quiet", "--json").stdout)  # a run of its own, from the start
    result = run(*shlex.split(wanted)[1:], "--json")
    assert "resuming after step " in result.stderr
    resumed = json.loads(result.stdout)
    assert resumed["run"] != unbroken["run"]
    assert [record.step for record in RunFolder(Path(resumed["run"])).metrics.read()] == list(range(1, 31))
    first, second = (Path(each["new"]["path"]) / "z.safetensors" for each in (unbroken, resumed))
    assert first.read_bytes() == second.read_bytes()
    assert names(tmp_path / "experts") == ["divisors@1", "divisors@2"]


def test_what_goes_on_runs_code_as_before(
    reproduce: Callable, recorded: ExpertEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("t2cli.training.loop.TrainingRun.run", interrupted)
    for given in ([], ["--unsafe-code"]):
        result = reproduce(recorded.reference, *given)
        assert result.exit_code == 130, result.stderr
        assert result.stderr.splitlines()[-1].endswith(shlex.join([*given, "--resume"]))
        assert ("--unsafe-code" in result.stderr) is bool(given)


def test_resume_takes_no_run_of_other_settings(
    reproduce: Callable, refused: Callable, changed: Again, recorded: ExpertEntry, tmp_path: Path
) -> None:
    changed(config={"steps": 2})
    assert reproduce("divisors@1", "--name", "again", "--quiet").exit_code == 0
    (record,) = (tmp_path / "home" / "runs").glob("*/again/1/expert.txt")
    record.unlink()  # as if it had not finished
    refused(reproduce("divisors@2", "--name", "again", "--resume"), 2, "other settings or files than divisors@2")


def test_a_run_that_gives_nothing_is_no_reproduction(reproduce: Callable, changed: Again) -> None:
    changed(config={"learning_rate": 0.0, "steps": 1})
    result = reproduce("divisors", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    said = "error: divisors@2 does not reproduce: no checkpoint was better than the base"
    assert result.stderr.startswith(said)
