"""What an export reads: the base's checkpoint weight by weight, their bases, and one expert's z."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t2cli.errors import IncompatibleBaseError, T2Error
from t2cli.models.catalog import BaseFiles
from t2cli.models.identity import BaseIdentity
from t2cli.registry.manifest import ExpertManifest

if TYPE_CHECKING:
    from t2cli.models.basis_files import BasisFiles
    from t2cli.models.targets import Target
    from t2cli.svf.zvector import ZVectors


@dataclass(frozen=True)
class Source:
    """An expert (manifest, digest, z), and the base to export it for, which need not be the one it was made for."""

    files: BaseFiles
    identity: BaseIdentity
    manifest: ExpertManifest
    digest: str
    z: ZVectors

    @property
    def reference(self) -> str:
        """Return the expert's reference by version, as in math@2."""
        return f"{self.manifest.name}@{self.manifest.version}"


def changed_targets(source: Source) -> list[Target]:
    """Return the targets whose weights the expert changes, sorted by name.

    Raises IncompatibleBaseError where the base has no such weight, T2Error where the expert changes none.
    """
    from t2cli.models.targets import checkpoint_targets

    targets = {target.weight: target for target in checkpoint_targets(source.files.folder)}
    for name, z in source.z.items():
        if name not in targets or targets[name].rank != z.numel():
            raise IncompatibleBaseError(
                f"{source.reference} has {z.numel()} numbers for {name}, which {source.identity.name} does not have",
                hint="export it for the base it was made for, with --base",
            )
    changed = [target for name, target in targets.items() if name in source.z and bool((source.z[name] != 1).any())]
    if not changed:
        raise T2Error(
            f"{source.reference} changes nothing: every number of it is 1",
            hint="the base itself is what would be exported",
        )
    return changed


def bases_of(
    source: Source, targets: Sequence[Target], device: str, dtype: str | None, *, quiet: bool = False
) -> BasisFiles:
    """Return the files of the targets' bases, those that are missing made first; `dtype` as in DecomposeConfig."""
    from t2cli.config import DecomposeConfig
    from t2cli.models.basis_cache import basis_files, basis_files_in_use, decompose

    config = DecomposeConfig(device=device, dtype=dtype)
    decompose(source.files, source.identity, config, targets, quiet=quiet)
    return basis_files(source.identity, dtype) if dtype else basis_files_in_use(source.identity, targets)
