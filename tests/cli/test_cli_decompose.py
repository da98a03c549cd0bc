"""t2 decompose: what it says it did is what is on disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.models.base import BaseModel
from t2cli.models.targets import find_targets

Run = Callable[..., object]
FIELDS = [
    "schema",
    "base",
    "fingerprint",
    "targets",
    "parameters",
    "basis_dtype",
    "seconds",
    "peak_memory_bytes",
    "cached",
    "path",
]
SAID = r"decomposing llama: 14 matrices, \d+ kB on disk, (under|about) \d+ s\n"


@pytest.fixture
def folder(base_folder: Callable[[str], Path]) -> Path:
    return base_folder("llama")


def test_it_makes_every_basis_once(run: Callable, folder: Path, load: Callable[[str], BaseModel]) -> None:
    first = run("decompose", folder, "--json")
    assert first.exit_code == 0
    assert re.fullmatch(SAID, first.stderr)
    record = json.loads(first.stdout)
    assert list(record) == FIELDS
    base = load("llama")
    targets = find_targets(base.model)
    assert record["schema"] == "t2.decompose/1"
    assert (record["base"], record["fingerprint"]) == ("llama", base.identity.weights)
    assert (record["targets"], record["parameters"]) == (len(targets), sum(target.rank for target in targets))
    assert record["cached"] is False
    assert record["seconds"] > 0
    assert record["peak_memory_bytes"] > 1 << 20
    files = {path: path.stat().st_mtime_ns for path in Path(record["path"]).glob("*.safetensors")}
    assert len(files) == len(targets)

    second = json.loads(run("decompose", folder, "--json").stdout)
    assert second["cached"] is True
    changing = ("cached", "seconds", "peak_memory_bytes")
    assert {key: value for key, value in second.items() if key not in changing} == {
        key: value for key, value in record.items() if key not in changing
    }
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_targets_choose_the_matrices(run: Callable, folder: Path) -> None:
    mlp = json.loads(run("decompose", folder, "--targets", "mlp", "--json").stdout)
    attention = json.loads(run("decompose", folder, "--targets", "attention", "--json").stdout)
    everything = json.loads(run("decompose", folder, "--json").stdout)
    assert (mlp["targets"], attention["targets"], everything["targets"]) == (6, 8, 14)
    assert everything["parameters"] == mlp["parameters"] + attention["parameters"]
    assert everything["cached"] is True  # the parts were all of it
    assert len({record["fingerprint"] for record in (mlp, attention, everything)}) == 1


def test_people_get_one_line(run: Callable, folder: Path) -> None:
    first, second = run("decompose", folder), run("decompose", "--base", folder)
    (line,) = first.stdout.splitlines()
    assert line.startswith("llama-")
    assert "14 matrices" in line
    assert "14 made in" in line
    assert "all in the cache" in second.stdout
    assert re.fullmatch(SAID, first.stderr)
    assert second.stderr == ""


def test_quiet_says_nothing(run: Callable, folder: Path) -> None:
    result = run("decompose", folder, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_memory_of_the_process_that_started_it_is_not_counted(
    t2: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    large = bytearray(1_000_000_000)
    large[::4096] = b"1" * len(range(0, len(large), 4096))  # resident, and so the peak of any process forked from here
    assert json.loads(t2("decompose", folder, "--json").stdout)["peak_memory_bytes"] < len(large)


def test_both_precisions_are_kept_side_by_side(run: Callable, folder: Path) -> None:
    records = [
        json.loads(run("decompose", folder, "--json", "--basis-dtype", dtype).stdout)
        for dtype in ("bfloat16", "float32", "bfloat16")
    ]
    assert [record["basis_dtype"] for record in records] == ["bfloat16", "float32", "bfloat16"]
    assert [record["cached"] for record in records] == [False, False, True]
    sizes = [sum(file.stat().st_size for file in Path(record["path"]).glob("*.safetensors")) for record in records]
    assert sizes[0] == sizes[2] < 0.62 * sizes[1]


def test_a_terminal_sees_how_far_it_is_and_what_is_left(folder: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    pytest.importorskip("termios").tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "t2cli", "decompose", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal whose other end is closed says so
            while chunk := os.read(ours, 4096):
                shown += chunk
        os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "14 matrices" in text
    assert re.search(r"decompose: +\d+%\|.*\| \d\d:\d\d, \S+ left", text), text


def test_what_cannot_be_decomposed_is_said(
    run: Callable, refused: Callable, copied: Callable[..., Path], tmp_path: Path
) -> None:
    refused(run("decompose", "smollm2-135n"), 3, "no base model named 'smollm2-135n'", "did you mean smollm2-135m")
    refused(run("decompose", tmp_path), 3, "no config.json")
    refused(run("decompose", "--targets", "some"), 2, "'some'", "'mlp'")
    refused(run("decompose", "--basis-dtype", "float16"), 2, "'float16'", "'bfloat16'")
    sharded = copied("llama", "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00002.safetensors")
    names = {"model.layers.0.mlp.up_proj.weight": "model-00002-of-00002.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refused(run("decompose", sharded), 5, "lacks model-00002-of-00002.safetensors")
    broken = copied("llama")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(run("decompose", broken), 5)
    assert not list((tmp_path / "home").rglob("*.tmp"))
