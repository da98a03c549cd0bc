"""What a base is: the digest of its weights, whatever they are stored as, remembered while its files stay the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from t2cli.files import write_atomic
from t2cli.models.catalog import BaseFiles, identity_path, read_identity, weight_files
from t2cli.models.checkpoint import Checkpoint
from t2cli.models.targets import Target, checkpoint_targets, load_config


@dataclass(frozen=True)
class BaseIdentity:
    """`weights`: the digest over all targets; `architecture`: the transformers class that runs them."""

    name: str
    source: str
    revision: str
    architecture: str
    weights: str

    @property
    def folder_name(self) -> str:
        """Return the name of this base in registries and caches."""
        return f"{self.name}-{self.weights[:12]}"


def weights_of(checkpoint: Checkpoint, targets: Sequence[Target], *, show: bool = False) -> str:
    """Return the weights digest, reading one tensor at a time."""
    from tqdm import tqdm

    from t2cli.svf.fingerprint import tensor_digest, weights_digest

    digests = {}
    for target in tqdm(targets, desc="fingerprint", unit="matrix", disable=not show, leave=False):
        tensor = checkpoint.weight(target)
        digests[target.weight] = (tuple(tensor.shape), tensor_digest(tensor))
    return weights_digest(digests)


def identify(files: BaseFiles, *, quiet: bool = False) -> BaseIdentity:
    """Return the identity of a base, from memory while its weight files keep their size and time.

    The digest covers all targets whatever a command selects, so a base has one identity.
    """
    record = read_identity(files.folder)
    if record is None:
        config = load_config(files.folder)
        weights = weights_of(
            Checkpoint(files.folder), checkpoint_targets(files.folder), show=not quiet and sys.stderr.isatty()
        )
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        record = {"files": weight_files(files.folder), "weights": weights, "architecture": architecture}
        write_atomic(identity_path(files.folder), json.dumps(record, indent=1))
    return BaseIdentity(files.name, files.source, files.revision, str(record["architecture"]), str(record["weights"]))
