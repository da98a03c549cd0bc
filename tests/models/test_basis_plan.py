"""What a decomposition will take is said before it starts, and refused where the disk has no room."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.config import BASIS_DTYPES, DecomposeConfig
from t2cli.errors import T2Error
from t2cli.models.basis_cache import basis_files, decompose
from t2cli.models.basis_plan import (
    announcement,
    bytes_for,
    in_bytes,
    in_time,
    require_room,
    seconds_for,
    work,
)
from t2cli.models.catalog import locate
from t2cli.models.identity import BaseIdentity, identify
from t2cli.models.targets import Target, checkpoint_targets
from t2cli.paths import cache_dir

IDENTITY = BaseIdentity("tiny", "local", "", "LlamaForCausalLM", "a" * 64)


def targets_of(*shapes: tuple[int, int]) -> list[Target]:
    return [Target(f"model.layers.{place}.mlp.up_proj.weight", "", shape) for place, shape in enumerate(shapes)]


@pytest.mark.parametrize("dtype", BASIS_DTYPES)
def test_bytes_are_those_that_the_files_take(dtype: str, base_folder: Callable[[str], Path]) -> None:
    files = locate(str(base_folder("llama")))
    identity, targets = identify(files, quiet=True), checkpoint_targets(files.folder)
    expected = bytes_for(basis_files(identity, dtype), targets)
    folder = decompose(files, identity, DecomposeConfig(dtype=dtype), quiet=True).folder
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert sum(sizes) <= expected <= sum(sizes) + 4096 * 2 * len(sizes)


def test_the_default_base_takes_about_200_mb() -> None:
    layer = [(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 3
    targets = targets_of(*layer * 30)
    assert announcement(basis_files(IDENTITY, "float32"), targets, 24.6) == "210 matrices, 209 MB on disk, about 25 s"
    assert announcement(basis_files(IDENTITY, "bfloat16"), targets, 24.6).startswith("210 matrices, 105 MB")
    assert announcement(basis_files(IDENTITY, "float32"), targets[:1], 0.1) == "1 matrix, 1.34 MB on disk, under 1 s"


def test_work_counts_the_gram_matrix_and_its_eigenvectors() -> None:
    tall, wide, square = targets_of((1536, 576), (576, 1536), (576, 576))
    assert work(tall) == work(wide) == 576**2 * (1536 + 576) + 576**3
    assert 1 < work(tall) / work(square) < 2


def test_time_is_in_proportion_to_the_work() -> None:
    few = targets_of((256, 128))
    times = [min(seconds_for(few * count, DecomposeConfig()) for _ in range(3)) for count in (1, 1000)]
    assert times[0] > 0
    assert 300 < times[1] / times[0] < 3000


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0 kB"), (1, "1 kB"), (999_000, "999 kB"), (208_400_000, "208 MB"), (6_440_000_000, "6.44 GB")]
)
def test_sizes_for_people(n: int, said: str) -> None:
    assert in_bytes(n) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "under 1 s"), (1.2, "about 1 s"), (24.7, "about 25 s"), (700, "about 12 min"), (11_500, "about 3.2 h")],
)
def test_times_for_people(seconds: float, said: str) -> None:
    assert in_time(seconds) == said


def test_room_is_looked_for_on_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_room(tmp_path / "not" / "yet", free // 2)
    with pytest.raises(T2Error, match=r"not.yet has .*B free") as caught:
        require_room(tmp_path / "not" / "yet", 2 * free)
    assert "bfloat16" in caught.value.hint
    assert not (tmp_path / "not").exists()


def test_a_disk_without_room_is_refused_before_anything_is_computed(copied: Callable[..., Path]) -> None:
    folder = copied()
    files = locate(str(folder))
    settings = json.loads((folder / "config.json").read_text())
    enormous = {"hidden_size": 1 << 22, "intermediate_size": 1 << 23, "head_dim": 1 << 20, "vocab_size": 1}
    (folder / "config.json").write_text(json.dumps({**settings, **enormous}))
    with pytest.raises(T2Error, match=r"the bases take \d+ TB"):
        decompose(files, IDENTITY, DecomposeConfig())
    assert not (cache_dir() / "bases").exists()


def test_it_is_said_when_asked_for_and_never_when_quiet(
    base_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = locate(str(base_folder("llama")))
    identity = identify(files, quiet=True)
    for asked, quiet in ((False, True), (True, True), (False, False)):
        folder = decompose(files, identity, DecomposeConfig(), asked=asked, quiet=quiet).folder
        assert capsys.readouterr() == ("", ""), "what takes no time is not worth a line"
        shutil.rmtree(folder)
    decompose(files, identity, DecomposeConfig(), asked=True)
    out, errors = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"decomposing llama: 14 matrices, \d+ kB on disk, (under|about) .*\n", errors)
    decompose(files, identity, DecomposeConfig(), asked=True)
    assert capsys.readouterr() == ("", ""), "all is there"
