"""Memory that runs out: half as much at once, said, and the same result up to rounding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, start

from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import greedy_in_batches
from t2cli.models.memory import Room, is_out_of_memory
from t2cli.registry.local import LocalRegistry
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import Trainer

Open = Callable[[], AdaptedModel]

# Does the same twice, the second time with too little memory for all at once, and compares.
SCRIPT = """
import resource, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import torch
from odd_task import SMALL, OddTask, open_base
from t2cli.models.memory import Room
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import Trainer

adapted, task, said = open_base(sys.argv[2]), OddTask(), []
adapted.model.double()
adapted.prepare()
examples = task.examples("train", int(sys.argv[4]), 0)

def sample(at_once):
    room = Room(at_once, "rollouts", said.append)
    return collect(adapted, task, examples, SMALL, torch.Generator().manual_seed(0), room), room.size

def train(rollouts, at_once):
    trainer = Trainer(adapted, replace(SMALL, micro_batch=at_once, max_gradient_norm=1e9))
    trainer.trained_at_once.say = said.append
    trainer.step(rollouts)
    return trainer.flat.grad, trainer.trained_at_once.size

def limit(megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)

few = 16
if sys.argv[3] == "sampling":
    wanted, _ = sample(few)
    limit(int(sys.argv[5]))
    found, size = sample(4 * len(examples))
    assert found.groups == wanted.groups
    assert torch.equal(found.rewards, wanted.rewards)
    before = 4 * len(examples)
else:
    rollouts, _ = sample(4 * len(examples))
    rewards = torch.tensor([1.0, -1.0, -1.0, 1.0]).expand(len(examples), 4)
    rollouts = Rollouts(rollouts.prompts, rollouts.groups, rewards)
    wanted, _ = train(rollouts, few)
    limit(int(sys.argv[5]))
    found, size = train(rollouts, len(examples))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6), (found - wanted).abs().max()
    assert wanted.abs().max() > 1e-3
    before = len(examples)
assert size < before, size
print(*said, sep="\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(("what", "prompts", "megabytes"), [("sampling", 600, 60), ("training", 128, 60)])
def test_a_real_limit_halves_what_goes_at_once(what: str, prompts: int, megabytes: int, counting_folder: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(counting_folder)]
    process = subprocess.run(
        [*command, what, str(prompts), str(megabytes)], capture_output=True, text=True, check=False, timeout=100
    )
    assert process.returncode == 0, process.stderr[-2000:]
    first, *_ = process.stdout.splitlines()
    asked, things = (4 * prompts, "rollouts") if what == "sampling" else (prompts, "prompts in the gradient")
    assert first == f"memory ran out with {asked} {things} at once: going on with {asked // 2}"


class Crowded:
    """Makes a base's embeddings raise an allocator's own error where more than `most` tokens go through at once."""

    def __init__(self, adapted: AdaptedModel, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most, self.error, self.failed = most, error, 0
        adapted.model.get_input_embeddings().register_forward_hook(self)

    def __call__(self, _: torch.nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
        if inputs[0].numel() > self.most:
            self.failed += 1
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")


def rollouts_of(adapted: AdaptedModel) -> Rollouts:
    task = OddTask()
    return collect(adapted, task, task.examples("train", 8, 0), SMALL, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_no_half_gradient_remains(error: type[Exception], open_counting: Open) -> None:
    free, crowded = open_counting(), open_counting()
    rollouts = rollouts_of(free)
    longest = max(len(prompt) for prompt in rollouts.prompts) + sum(len(c.ids) for c in rollouts.groups[0])
    config = replace(SMALL, micro_batch=8, max_gradient_norm=1e9)
    wanted, found = Trainer(free, config), Trainer(crowded, config)
    wanted.step(rollouts)
    full = Crowded(crowded, 2 * longest, error)
    found.step(rollouts)
    assert full.failed > 0
    assert 1 <= found.trained_at_once.size < 8
    assert wanted.flat.grad is not None
    assert found.flat.grad is not None
    assert torch.allclose(found.flat.grad, wanted.flat.grad, rtol=1e-3, atol=1e-6)


def test_memory_that_runs_out_on_the_way_back_leaves_no_gradient(counting: AdaptedModel) -> None:
    """The error comes from the backward pass, after half of the layers have had theirs."""
    rollouts = rollouts_of(counting)
    config = replace(SMALL, micro_batch=8, max_gradient_norm=1e9)
    wanted = Trainer(counting, config)
    wanted.step(rollouts)
    failures = iter([True])

    def fail(*_: object) -> None:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    counting.model.get_submodule("model.layers.1").register_full_backward_hook(fail)
    found = Trainer(counting, config)
    found.step(rollouts)
    assert next(failures, False) is False
    assert found.trained_at_once.size < 8
    assert wanted.flat.grad is not None
    assert found.flat.grad is not None
    assert torch.allclose(found.flat.grad, wanted.flat.grad, rtol=1e-3, atol=1e-6)


def test_one_prompt_that_does_not_fit_is_an_error(counting: AdaptedModel, registry: LocalRegistry) -> None:
    run = start(counting)
    Crowded(counting, 5)
    with pytest.raises(T2Error, match="not enough memory for one of the answers alone") as caught:
        run.run(registry)
    assert "smaller --base" in caught.value.hint


def test_a_run_says_it_goes_on_and_resumes_with_the_same_sizes(open_counting: Open, registry: LocalRegistry) -> None:
    notes: list[str] = []

    class Noting(Heard):
        def note(self, text: str) -> None:
            notes.append(text)

    def crowded() -> AdaptedModel:
        adapted = open_counting()
        Crowded(adapted, 60)
        return adapted

    whole = start(crowded(), listener=Noting()).run(registry)
    assert any(note.startswith("memory ran out with") and "in the gradient at once" in note for note in notes), notes
    first = start(crowded(), listener=Heard(after_step=2))
    with pytest.raises(KeyboardInterrupt):
        first.run(registry)
    state = first.folder.load()
    assert state is not None
    assert state.at_once == [room.size for room in first.rooms]
    assert state.at_once[1] < SMALL.micro_batch
    free_again = start(open_counting(), folder=first.folder)  # the memory is there again, and is not used
    assert free_again.run(registry).entry.z_bytes() == whole.entry.z_bytes()
    assert [room.size for room in free_again.rooms][:2] == state.at_once[:2]


def test_what_the_base_had_no_memory_for_is_known_before_the_first_step(open_counting: Open) -> None:
    adapted = open_counting()
    Crowded(adapted, 60)
    first = start(adapted, listener=Heard(in_stage="train"))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    state = first.folder.load()
    assert state is not None
    assert (state.step, state.at_once) == (0, [room.size for room in first.rooms])
    assert state.at_once[-1] < open_counting().answers_at_once.size
    again = start(open_counting(), folder=first.folder, listener=Heard(in_stage="train"))
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert [room.size for room in again.rooms] == state.at_once


def test_greedy_answers_are_the_same_in_halves(open_counting: Open) -> None:
    free, crowded = open_counting(), open_counting()
    for adapted in (free, crowded):
        adapted.model.double()
    prompts = [[40, 41, 42, number] for number in range(50, 70)]
    full = Crowded(crowded, 30)
    done: list[int] = []
    assert greedy_in_batches(crowded, prompts, 4, on_done=done.append) == greedy_in_batches(free, prompts, 4)
    assert full.failed > 0
    assert sum(done) == 20


def test_every_item_is_worked_on_once_and_in_order() -> None:
    room, seen, said = Room(8, "things", None), [], []
    room.say = said.append

    def work(part: Sequence[int]) -> list[int]:
        seen.append(len(part))
        if sum(part) > 20:
            raise MemoryError
        return list(part)

    assert [item for part in room.over(range(12), work) for item in part] == list(range(12))
    assert seen == [8, 4, 4, 2, 2, 2, 2, 1, 1]
    assert said[0] == "memory ran out with 8 things at once: going on with 4"
    assert room.size == 1


def test_other_errors_are_not_taken_for_it() -> None:
    def work(part: Sequence[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Room(4, "things").over(range(4), work)
    for text in ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"):
        assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))
