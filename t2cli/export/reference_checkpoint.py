"""Experts from the files that the paper's own code writes.

Source: Transformer-Squared (arXiv 2501.06252) and its released code; math.md 5, preset `reference`.

    policy_params.pt      a module's state: one p (r,) per weight matrix with "mlp" in its name, numbered in the order
                          of the model's parameters
    learnable_params.pt   a dictionary: the weight's name -> p (r,)

Notation: p (r,) stored numbers, S (r,) singular values of W, z (r,) of the expert.

    W' = U diag(S * sigmoid(p)) Vh * sum(S) / sum(S * sigmoid(p)),  so  z = sigmoid(p) * sum(S) / sum(S * sigmoid(p))

A factor on every sigmoid(p), which that code has too (max_mult), cancels out.

Deviation from the released code:
1. It rounds S, U, V and sigmoid(p) to bfloat16 as it goes, an error of up to 0.4 %. Here the formula is computed in
   float64 from the stored p, and z is its float32.

This is the one place of t2 that reads a pickle, and only with torch's loader for weights, which builds nothing but
tensors and containers of them (tests/test_layers.py holds it to that).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NotFoundError, T2Error
from t2cli.models.catalog import BaseFiles
from t2cli.models.identity import BaseIdentity

if TYPE_CHECKING:
    import torch

    from t2cli.models.targets import Target
    from t2cli.svf.zvector import ZVectors

MAX_BYTES = 1 << 30  # of everything in a file: an expert of an 8B model has 2 MB
MAX_MEMBERS = 1 << 16
MARK = "mlp"  # in the names of the weights that the released code adapts

_NUMBERED = re.compile(r"(?:.*\.)?(\d{1,6})")
_ZIP = b"PK\x03\x04"

Stored = dict[str, "torch.Tensor"]


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file begins as one that torch.save wrote (a zip; older forms are not read)."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def read_reference(path: Path, files: BaseFiles) -> Stored:
    """Return p (r,) by weight name, as stored.

    Raises CorruptArtifactError for a file that is damaged, unsafe or holds anything else, IncompatibleBaseError for
    one of a model with other weights than the base in `files`.
    """
    loaded = _load(path)
    return _matched(_by_name(loaded, files, path), files, path)


def effective(stored: Mapping[str, torch.Tensor], singular_values: Mapping[str, torch.Tensor]) -> ZVectors:
    """Return z = sigmoid(p) * sum(S) / sum(S * sigmoid(p)) of every p (r,), computed in float64."""
    from t2cli.svf.parametrisation import rescaled_sigmoid
    from t2cli.svf.zvector import ZVectors

    vectors = {}
    for name, p in stored.items():
        z = rescaled_sigmoid(p.double(), singular_values[name].double().cpu())
        if not bool(z.isfinite().all()):  # sigmoid underflows for p below -745
            raise CorruptArtifactError(f"the numbers for {name} leave nothing of it", hint="train the expert again")
        vectors[name] = z.float()
    return ZVectors(vectors)


def convert(
    path: Path, files: BaseFiles, identity: BaseIdentity, *, device: str = "cpu", quiet: bool = False
) -> ZVectors:
    """Return the z of a file of the paper's code for the base that it was trained on; raises as `read_reference`."""
    from t2cli.config import DecomposeConfig
    from t2cli.models.basis_cache import decompose, singular_values
    from t2cli.models.targets import checkpoint_targets

    stored = read_reference(path, files)
    targets = [target for target in checkpoint_targets(files.folder) if target.weight in stored]
    decompose(files, identity, DecomposeConfig(device=device), targets, quiet=quiet)
    return effective(stored, singular_values(identity, targets))


def _load(path: Path) -> object:
    import torch

    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch's loader raises anything for a file that was made to hurt it
        raise CorruptArtifactError(
            f"{path} cannot be read as a file of tensors, and nothing else is read from such a file",
            hint="give policy_params.pt or learnable_params.pt as the paper's code writes them",
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse what would take much memory to read: compressed members, and more or larger ones than can be."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CorruptArtifactError(f"{path} is larger than any expert", hint="give a file of the paper's code")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", hint="check the path") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}", hint="fetch it again") from error
    except OSError as error:
        raise T2Error(f"{path} could not be read: {error.strerror or error}", hint="check its permissions") from error
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
        raise CorruptArtifactError(
            f"{path} is compressed, or larger than any expert", hint="give a file as torch.save writes it"
        )


def _by_name(loaded: object, files: BaseFiles, path: Path) -> dict[str, object]:
    """Return the stored values by weight name: their own names, or those of the parameters in the model's order."""
    if isinstance(loaded, Mapping | list | tuple) and not loaded:
        raise _other(path, "it is empty")
    if isinstance(loaded, Mapping) and all(isinstance(key, str) for key in loaded):
        numbers = [_NUMBERED.fullmatch(key) for key in loaded]
        if not all(numbers):
            return {str(key): value for key, value in loaded.items()}
        order = {int(number[1]): value for number, value in zip(numbers, loaded.values(), strict=True) if number}
        if sorted(order) != list(range(len(loaded))):
            raise _other(path, "its parameters are not numbered from 0 on")
        values: Sequence[object] = [order[number] for number in range(len(order))]
    elif isinstance(loaded, list | tuple):
        values = loaded
    else:
        raise _other(path, f"it holds a {type(loaded).__name__}")
    names = adapted_names(files)
    if len(values) != len(names):
        raise IncompatibleBaseError(
            f"{path} has {len(values)} vectors, {files.name} has {len(names)} parameters with {MARK!r} in their name",
            hint="pass --base with the model that it was trained on",
        )
    return dict(zip(names, values, strict=True))


def adapted_names(files: BaseFiles) -> list[str]:
    """Return the parameters that the released code adapts, in the order in which it numbers them."""
    from t2cli.models.targets import empty_model

    return [name for name in empty_model(files.folder).state_dict() if MARK in name]


def _matched(found: Mapping[str, object], files: BaseFiles, path: Path) -> Stored:
    """Return the vectors if each is one of finite numbers that fits a target."""
    import torch

    from t2cli.models.targets import checkpoint_targets

    targets: dict[str, Target] = {target.weight: target for target in checkpoint_targets(files.folder)}
    stored: Stored = {}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise _other(path, f"{name[:200]} is no tensor of numbers")
        if name not in targets:
            raise IncompatibleBaseError(
                f"{path} adapts {name[:200]}, which is no weight matrix of {files.name} that t2 adapts",
                hint="pass --base with the model that it was trained on",
            )
        if tuple(value.shape) != (targets[name].rank,):
            raise IncompatibleBaseError(
                f"{path} has the shape {tuple(value.shape)} for {name}, which has {targets[name].rank} singular values",
                hint="pass --base with the model that it was trained on",
            )
        if not bool(torch.isfinite(value).all()):
            raise CorruptArtifactError(f"{path}: {name} has numbers that are NaN or infinite", hint="fetch it again")
        stored[name] = value.detach()
    return stored


def _other(path: Path, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{path} is no expert of the paper's code: {why}", hint="give its policy_params.pt or learnable_params.pt"
    )
