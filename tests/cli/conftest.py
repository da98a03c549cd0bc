"""What the command line's tests share: real processes, a registry of fixed content, golden files.

After a wanted change of an output rewrite the golden files with `T2_UPDATE_GOLDEN=1 pytest tests/cli`
and read the difference before committing it.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from terminals import Terminal
from typer.testing import CliRunner, Result

import t2cli
from t2cli.cli.app import app
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import (
    BaseRecord,
    DispatcherRecord,
    EvaluationRecord,
    ExpertManifest,
    FingerprintRecord,
    ParentRecord,
    TargetsRecord,
    TrainingRecord,
    ZRecord,
)

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import BaseModel
    from t2cli.svf.zvector import ZVectors

ROOT = Path(t2cli.__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test, and the processes it starts, an empty home and a plain terminal of 80 columns."""
    for name in ("T2_REGISTRY", "T2_DEBUG", "PYTHONWARNINGS", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    settings = {"T2_HOME": tmp_path / "home", "COLUMNS": 80, "NO_COLOR": 1, "PYTHONPATH": ROOT}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def t2() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs t2 as a real process."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "t2cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def run() -> Callable[..., Result]:
    """Return a function that runs t2 inside this process, which saves seconds of importing torch."""

    def invoke(*arguments: str | Path, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, prog_name="t2")

    return invoke


@pytest.fixture
def refused() -> Callable[..., None]:
    """Return a function that asserts that t2 failed with a code, in at most three lines that hold the given texts."""

    def check(result: Result, code: int, *said: str) -> None:
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        lines = result.stderr.splitlines()
        first, last = next(line for line in lines if not line.startswith(("[", "run: "))), lines[-1]
        assert first.startswith("error: "), result.stderr
        assert last.startswith("hint: "), result.stderr
        assert len(lines) <= 3, result.stderr
        assert "Traceback" not in result.stderr
        for text in said:
            assert text in result.stderr

    return check


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Return a function that asserts that a text is the golden file's (T2_UPDATE_GOLDEN=1 rewrites it)."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("T2_UPDATE_GOLDEN") == "1":
            path.write_text(text)
        assert text == path.read_text(), f"{name} differs; T2_UPDATE_GOLDEN=1 rewrites it if that is wanted"

    return check


def base_record(name: str, digit: str) -> BaseRecord:
    """Return a base whose weights' digest is 64 times `digit`."""
    fingerprint = FingerprintRecord(weights=digit * 64, spectrum={"q_proj": [3.5, 1.25]})
    return BaseRecord(name, "hub:example/model", "main", "LlamaForCausalLM", fingerprint)


def manifest(name: str) -> ExpertManifest:
    """Return the manifest of an expert with one z of two numbers, three days old."""
    evaluation = EvaluationRecord(
        task=name,
        split="test",
        n=400,
        base_accuracy=0.25,
        expert_accuracy=0.4625,
        ci95=(0.4142, 0.5115),
        gain=0.2125,
        gain_ci95=(0.16, 0.264),
        mcnemar_p=1.5e-9,
        seed=7,
    )
    return ExpertManifest(
        name=name,
        version=1,
        kind="expert",
        category=name,
        description=f"answers questions of {name}",
        base=base_record("smollm2-135m", "a"),
        targets=TargetsRecord("all", 1, 2),
        z=ZRecord("z.safetensors", "0" * 64, "linear"),
        created=(datetime.now(UTC) - timedelta(days=3, hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        training=TrainingRecord(name, "t2", {"steps": 60}, 0, 60, 12.5, "cpu", {"torch": "2.13.0"}),
        evaluation=(evaluation,),
    )


def z_bytes() -> bytes:
    """Return a safetensors file of one float32 tensor of two numbers."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"model.layers.0.self_attn.q_proj.weight": entry}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.0, 0.5)


@pytest.fixture
def make_expert() -> Callable[..., ExpertEntry]:
    """Return a function that puts one more version of an expert, with any field changed, into a registry."""

    def make(folder: Path, name: str, **changes: object) -> ExpertEntry:
        return LocalRegistry([folder]).put(replace(manifest(name), **changes), z_bytes())  # type: ignore[arg-type]

    return make


@pytest.fixture
def registry(tmp_path: Path, make_expert: Callable[..., ExpertEntry]) -> Path:
    """Return a registry of four experts: two versions, a mix, one never evaluated, one of another base."""
    folder = tmp_path / "experts"
    make_expert(folder, "math", evaluation=())
    math = make_expert(folder, "math")
    code = make_expert(folder, "code", evaluation=(), training=None)
    parents = tuple(ParentRecord(entry.reference, entry.digest, 0.5) for entry in (math, code))
    make_expert(folder, "both", kind="mix", category="reasoning", training=None, parents=parents)
    make_expert(folder, "math", base=base_record("qwen3-0.6b", "b"))
    return folder


@pytest.fixture
def chat_experts(
    tmp_path: Path,
    adapt: Callable[..., AdaptedModel],
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
) -> dict[str, ExpertEntry]:
    """Return experts for the tiny base in a registry, and one for another base."""
    adapted, folder = adapt("llama"), tmp_path / "experts"
    identity = adapted.base.identity

    def put(name: str, seed: int, **fields: Any) -> ExpertEntry:
        return publish(folder, identity, name, random_z(adapted.ranks, seed=seed, sigma=0.5), **fields)

    opposite = {kind: [-number for number in numbers] for kind, numbers in identity.probes.items()}
    foreign = replace(identity, name="other", weights="a" * 64, probes=opposite)
    return {
        "math": put("math", 1, examples=("What is 1 + 2?", "What is 3 * 4?")),
        "story": put("story", 2, examples=("Anna likes cats. Who likes cats?",)),
        "foreign": publish(folder, foreign, "foreign", random_z(adapted.ranks)),
    }


@pytest.fixture
def chat_options(base_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Return the options that all of these chats share."""
    folder = tmp_path / "experts"
    return ["--base", str(base_folder("llama")), "--registry", str(folder), "--max-new-tokens", "12"]


@pytest.fixture
def chat_process(chat_options: list[str], chat_experts: dict[str, ExpertEntry]) -> list[str]:
    """Return the command of the same as a process."""
    return [sys.executable, "-m", "t2cli", "chat", *chat_options]


@pytest.fixture
def base(base_folder: Callable[[str], Path]) -> Path:
    """Return the folder of the tiny base that `put_tiny` makes experts for."""
    return base_folder("llama")


@pytest.fixture
def put_tiny(
    tmp_path: Path,
    load: Callable[[str], BaseModel],
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
) -> Callable[..., ExpertEntry]:
    """Return a function that puts an expert of random z into the registry "experts".

    It is for the tiny base, or says that it is for `variant`; `only` chooses weights by a part of their names.
    """
    from t2cli.models.targets import find_targets

    ranks = {target.weight: target.rank for target in find_targets(load("llama").model)}

    def put(name: str, seed: int, *, variant: str = "llama", only: str = "", **fields: Any) -> ExpertEntry:
        z = random_z({weight: rank for weight, rank in ranks.items() if only in weight}, seed)
        return publish(tmp_path / "experts", load(variant).identity, name, z, **fields)

    return put


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Return a function that starts a process on a terminal of its own."""
    opened: list[Terminal] = []

    def open_terminal(command: list[str], **settings: Any) -> Terminal:
        opened.append(Terminal(command, **settings))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture
def dispatcher(put_tiny: Callable[..., ExpertEntry]) -> ExpertEntry:
    """Return a dispatcher for the tiny base that tells math, story and other apart."""
    categories = ("math", "story", "other")
    record = DispatcherRecord("A: math. B: story. C: other.", categories, ("A", "B", "C"), 0.0, ((1,) * 3,) * 3)
    return put_tiny("which", 5, kind="dispatcher", category="which", dispatcher=record)


@pytest.fixture
def two_processes() -> Callable[[list[str]], subprocess.CompletedProcess[str]]:
    """Return a function that runs t2 in two processes, as torchrun starts them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "t2cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run_both(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        command = [*launch, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)

    return run_both
