"""The folder of a run: checkpoints that are whole or refused, one process at a time, numbers of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from odd_task import SMALL
from safetensors import safe_open
from safetensors.torch import save_file

from t2cli.config import TrainConfig
from t2cli.errors import CorruptArtifactError, NotFoundError, UsageError
from t2cli.training.checkpoint import RunFolder, RunSpec, RunState, new_run, run_to_resume, runs_of

HOME = "counting-0123456789ab"
SPEC = RunSpec("math", "math", "smollm2-135m", "0" * 64, SMALL)


def state_of(step: int = 3, parameters: int = 50) -> RunState:
    generator = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(parameters, generator=generator) for name in ("z", "best", "exp_avg", "exp_avg_sq")}
    return RunState(step, 12.25, 2, 0.1 + 0.2, 1 / 3, tensors)


@pytest.fixture
def folder() -> RunFolder:
    """Return a run with a checkpoint."""
    run = new_run(HOME, SPEC)
    run.save(state_of())
    return run


def test_what_is_saved_is_loaded_bit_for_bit(folder: RunFolder) -> None:
    loaded, saved = folder.load(50), state_of()
    assert loaded is not None
    assert (loaded.step, loaded.seconds, loaded.best_step) == (3, 12.25, 2)
    assert (loaded.best_accuracy, loaded.base_accuracy) == (saved.best_accuracy, saved.base_accuracy)
    for name, tensor in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
    assert folder.spec() == SPEC


def test_a_checkpoint_replaces_the_one_before(folder: RunFolder) -> None:
    folder.save(state_of(4))
    loaded = folder.load()
    assert loaded is not None
    assert loaded.step == 4
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json", "state.safetensors"]


def test_before_the_first_checkpoint_there_is_none() -> None:
    assert new_run(HOME, SPEC).load(50) is None


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Change tensors and metadata of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x40
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\xff" * 300),
    "a bit": flip,
    "other counters": lambda path: rewritten(
        path, lambda _, metadata: metadata.update(counters=metadata["counters"].replace('"step": 3', '"step": 2'))
    ),
    "no counters": lambda path: rewritten(path, lambda _, metadata: metadata.pop("counters")),
    "no metadata": lambda path: rewritten(path, lambda _, metadata: metadata.clear()),
    "another format": lambda path: rewritten(path, lambda _, metadata: metadata.update(format="t2.run/9")),
    "a tensor missing": lambda path: rewritten(path, lambda tensors, _: tensors.pop("exp_avg")),
    "shorter tensors": lambda path: rewritten(
        path, lambda tensors, _: tensors.update({name: tensor[:9].clone() for name, tensor in tensors.items()})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage: str, folder: RunFolder) -> None:
    DAMAGES[damage](folder.path / "state.safetensors")
    with pytest.raises(CorruptArtifactError, match=r"state\.safetensors is damaged") as caught:
        folder.load(50)
    assert "without --resume" in caught.value.hint


def test_a_checkpoint_of_another_size_is_refused(folder: RunFolder) -> None:
    with pytest.raises(CorruptArtifactError, match="50 numbers, and this base needs 60"):
        folder.load(60)


def test_what_killed_processes_were_writing_is_gone_when_a_run_goes_on(folder: RunFolder) -> None:
    (folder.path / ".state.safetensors.abc.tmp").write_bytes(b"half")
    (folder.path / ".adapter.abc.tmp").mkdir()
    before = {path.name for path in folder.path.iterdir()}
    with folder.claimed():
        assert {path.name for path in folder.path.iterdir()} - {"lock"} == {
            name for name in before if not name.endswith(".tmp")
        }


def changed(**changes: object) -> str:
    """Return the text of run.json with some keys changed; None takes one out."""
    from dataclasses import asdict

    record = {"format": "t2.run/1", **asdict(SPEC), **changes}
    return json.dumps({key: value for key, value in record.items() if value is not None})


CONFIG = json.loads(changed())["config"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "[" * 100_000,
        changed(format="t2.run/2"),
        changed(format=None),
        changed(task=None),
        changed(task=7),
        changed(extra="x"),
        changed(data="x"),
        changed(data={"train": 3}),
        changed(reward=["x"]),
        changed(config=None),
        changed(config="x"),
        changed(config={**CONFIG, "steps": "60"}),
        changed(config={**CONFIG, "steps": 1.5}),
        changed(config={**CONFIG, "learning_rate": True}),
        changed(config={**CONFIG, "learning_rate": "fast"}),
        changed(config={**CONFIG, "extra": 1}),
        changed(config={**CONFIG, "trainer": "genetic"}),
        changed(config={**CONFIG, "adapter": 7}),
        changed(config={**CONFIG, "population": "x", "trainer": "evolution"}),
        changed(config={**CONFIG, "group": 1}),
    ],
)
def test_a_damaged_run_file_is_refused(text: str, folder: RunFolder) -> None:
    (folder.path / "run.json").write_text(text)
    with pytest.raises(CorruptArtifactError, match=r"run\.json is damaged") as caught:
        folder.spec()
    assert "without --resume" in caught.value.hint


def test_a_whole_number_is_a_float_too(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text(changed(config={**CONFIG, "learning_rate": 1}))
    assert folder.spec().config.learning_rate == 1


def test_a_run_of_an_earlier_t2_has_no_data_of_its_own(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text(changed(data=None, reward=None, revisions=None))
    assert folder.spec() == SPEC


# of run.json before there were presets besides `t2`
FIRST_SETTINGS = (
    *("preset", "steps", "prompts_per_step", "group", "temperature", "learning_rate", "warmup_steps"),
    *("final_learning_rate", "kl_coefficient", "max_gradient_norm", "weight_decay", "micro_batch", "validate_every"),
    *("validation_examples", "evaluation_examples", "selection", "seed"),
)


def test_a_run_of_before_goes_on_as_it_began(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text(changed(config={key: CONFIG[key] for key in FIRST_SETTINGS}))
    bound = TrainConfig().max_relative_step
    assert folder.spec() == replace(SPEC, config=replace(SPEC.config, max_relative_step=bound))


def test_the_newest_unfinished_run_is_resumed(folder: RunFolder) -> None:
    second, third = new_run(HOME, SPEC), new_run(HOME, SPEC)
    assert [run.path.name for run in runs_of(HOME, "math")] == ["1", "2", "3"]
    assert run_to_resume(HOME, "math").path == third.path
    third.finish("math@1")
    assert run_to_resume(HOME, "math").path == second.path
    second.finish("")
    assert run_to_resume(HOME, "math").path == folder.path


def test_a_folder_without_a_run_file_is_no_run(folder: RunFolder) -> None:
    (folder.path.parent / "2").mkdir()  # of a process that was killed in its first moment
    (folder.path.parent / "notes").mkdir()
    assert run_to_resume(HOME, "math").path == folder.path
    assert new_run(HOME, SPEC).path.name == "3"


def test_without_a_run_there_is_nothing_to_resume() -> None:
    with pytest.raises(NotFoundError, match="no unfinished run of math") as caught:
        run_to_resume(HOME, "math")
    assert "--resume" in caught.value.hint


def test_runs_that_start_at_once_get_folders_of_their_own() -> None:
    made: list[Path] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        made.append(new_run(HOME, SPEC).path)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 8
    assert all(RunFolder(path).spec() == SPEC for path in made)


def test_a_run_is_for_one_process_at_a_time(folder: RunFolder) -> None:
    script = (
        "import sys; from pathlib import Path; from t2cli.training.checkpoint import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).claimed(): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(UsageError, match="another process is training in"), folder.claimed():
            pass
        other.kill()  # a lock ends with its process
    with folder.claimed():
        pass
