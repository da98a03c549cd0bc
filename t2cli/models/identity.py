"""What a base is: the digest of its weights, whatever they are stored as, remembered while its files stay the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from t2cli.files import write_atomic
from t2cli.models.catalog import BaseFiles, KnownIdentity, identity_path, read_identity, weight_files
from t2cli.models.checkpoint import Checkpoint
from t2cli.models.targets import Target, checkpoint_targets, load_config
from t2cli.svf.relation import Fingerprint, Probes


@dataclass(frozen=True)
class BaseIdentity:
    """`weights`, `probes`: the fingerprint over all targets; `architecture`: the transformers class that runs them."""

    name: str
    source: str
    revision: str
    architecture: str
    weights: str
    probes: Probes = field(default_factory=dict, hash=False)

    @property
    def folder_name(self) -> str:
        """Return the name of this base in registries and caches."""
        return f"{self.name}-{self.weights[:12]}"


def fingerprint_of(checkpoint: Checkpoint, targets: Sequence[Target], *, show: bool = False) -> Fingerprint:
    """Return digest and probes of the weights, reading one tensor at a time."""
    from tqdm import tqdm

    from t2cli.svf.fingerprint import probe_sums, tensor_digest, tensor_probes, weights_digest

    digests, probes = {}, {}
    for target in tqdm(targets, desc="fingerprint", unit="matrix", disable=not show, leave=False):
        tensor = checkpoint.weight(target)
        digests[target.weight] = (tuple(tensor.shape), tensor_digest(tensor))
        probes[target.weight] = tensor_probes(target.weight, tensor)
    return Fingerprint(weights_digest(digests), probe_sums(probes))


def identify(files: BaseFiles, *, quiet: bool = False) -> BaseIdentity:
    """Return the identity of a base, from memory while its weight files keep their size and time.

    The digest covers all targets whatever a command selects, so a base has one identity.
    """
    known = read_identity(files.folder)
    if known is None:
        config = load_config(files.folder)
        fingerprint = fingerprint_of(
            Checkpoint(files.folder), checkpoint_targets(files.folder), show=not quiet and sys.stderr.isatty()
        )
        architecture = str((getattr(config, "architectures", None) or [type(config).__name__])[0])
        known = KnownIdentity(architecture, fingerprint)
        record = {"files": weight_files(files.folder), "architecture": architecture, **asdict(fingerprint)}
        write_atomic(identity_path(files.folder), json.dumps(record, indent=1))
    print_of_base = known.fingerprint
    return BaseIdentity(
        files.name, files.source, files.revision, known.architecture, print_of_base.weights, print_of_base.probes
    )
