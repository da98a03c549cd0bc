"""An expert's manifest, expert.yaml: what it is, for which base, how it was made and what it scored."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime

from t2cli.errors import CorruptArtifactError, UsageError
from t2cli.registry.dispatcher_record import DispatcherRecord as DispatcherRecord
from t2cli.registry.dispatcher_record import read_dispatcher
from t2cli.registry.evaluation_record import EvaluationRecord as EvaluationRecord
from t2cli.registry.evaluation_record import read_evaluation
from t2cli.registry.fields import Fields, all_finite
from t2cli.registry.reference import NAME_PATTERN, ExpertRef

SCHEMA = 1
KINDS = ("expert", "dispatcher", "mix")
Z_FILE = "z.safetensors"
MAX_VERSION = 999_999_999
MAX_PARAMETERS = 1 << 28  # 1 GiB of float32

SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
BASE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_KIND_PATTERN = re.compile("|".join(KINDS))
_Z_FILE_PATTERN = re.compile(re.escape(Z_FILE))
_CREATED_PATTERN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


@dataclass(frozen=True)
class FingerprintRecord:
    """`weights`: SHA-256 of all base weights; `spectrum`, `probes`: kind of matrix -> numbers (svf/fingerprint.py)."""

    weights: str
    spectrum: dict[str, list[float]]
    probes: dict[str, list[float]] = field(default_factory=dict)  # none in manifests made before there were any


@dataclass(frozen=True)
class BaseRecord:
    """The base model an expert belongs to; `name` is short and becomes part of a folder's name."""

    name: str
    source: str
    revision: str
    architecture: str
    fingerprint: FingerprintRecord

    @property
    def folder(self) -> str:
        """Return the base's folder in a registry, name and digest, as in smollm2-135m-3fa91c02be11."""
        return f"{self.name}-{self.fingerprint.weights[:12]}"


@dataclass(frozen=True)
class TargetsRecord:
    """The adapted weights: which, how many matrices, how many numbers in all z together."""

    selection: str
    count: int
    parameters: int


@dataclass(frozen=True)
class ZRecord:
    """The file of all z, its SHA-256, and how its numbers become the factors of S."""

    file: str
    sha256: str
    parametrisation: str
    parent_alpha: float | None = None


@dataclass(frozen=True)
class TrainingRecord:
    """How an expert was trained; `config` is plain data, `versions` names libraries.

    `threads` are those that computed on the CPU: another number rounds otherwise. None if not recorded.
    """

    task: str
    preset: str
    config: dict[str, object]
    seed: int
    steps: int
    seconds: float
    device: str
    versions: dict[str, str]
    threads: int | None = None


@dataclass(frozen=True)
class ParentRecord:
    """One member of a mix: its reference, the SHA-256 of its manifest, and its weight alpha."""

    ref: str
    digest: str
    alpha: float


@dataclass(frozen=True)
class ExpertManifest:
    """Everything known about one version of an expert; `created` is ISO 8601 in UTC, ending in Z.

    `examples` are a few of the questions it was trained on, one line each: pass 1 compares a question with them.
    """

    name: str
    version: int
    kind: str
    category: str
    description: str
    base: BaseRecord
    targets: TargetsRecord
    z: ZRecord
    created: str
    examples: tuple[str, ...] = ()
    training: TrainingRecord | None = None
    evaluation: tuple[EvaluationRecord, ...] = ()
    parents: tuple[ParentRecord, ...] = ()
    schema: int = SCHEMA
    dispatcher: DispatcherRecord | None = None  # of a dispatcher, and of nothing else

    def to_dict(self) -> dict[str, object]:
        """Return the manifest as JSON-able data (dicts, lists, text, numbers, None) in the file's order."""
        return {key: _plain(getattr(self, key)) for key in _KEYS if key != "dispatcher" or self.dispatcher}

    def to_yaml(self) -> str:
        """Return the text of expert.yaml, which `from_yaml` reads back to an equal manifest."""
        from t2cli.registry.strict_yaml import dump_mapping

        return dump_mapping(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str, where: str) -> ExpertManifest:
        """Return the manifest in `text`; `where` names the file in errors.

        Raises CorruptArtifactError, naming the key, for anything that is not exactly a manifest: unknown keys,
        wrong types, numbers that are not finite or out of range, YAML that is not plain data or over 1 MiB.
        """
        from t2cli.registry.strict_yaml import load_mapping

        document = load_mapping(text, where)
        # The schema first: another schema's keys would only be reported as unknown ones.
        schema = Fields(document, where, known=list(document)).integer("schema", low=1)
        if schema != SCHEMA:
            raise CorruptArtifactError(
                f"{where}: schema {schema} is not known, this t2 reads schema {SCHEMA}",
                hint="update t2 to read experts made by a newer version",
            )
        top = Fields(document, where, known=_KEYS)
        manifest = cls(
            name=top.text("name", NAME_PATTERN),
            version=top.integer("version", 1, MAX_VERSION),
            kind=top.text("kind", _KIND_PATTERN),
            category=top.text("category"),
            description=top.text("description", empty=True),
            base=_base(_inner(top, "base", BaseRecord)),
            targets=_targets(_inner(top, "targets", TargetsRecord)),
            z=_z(_inner(top, "z", ZRecord)),
            created=_created(top),
            examples=top.texts("examples"),
            training=_training(_inner(top, "training", TrainingRecord)) if top.has("training") else None,
            evaluation=tuple(read_evaluation(item) for item in _each(top, "evaluation", EvaluationRecord)),
            parents=tuple(_parent(item) for item in _each(top, "parents", ParentRecord)),
            dispatcher=read_dispatcher(_inner(top, "dispatcher", DispatcherRecord)) if top.has("dispatcher") else None,
        )
        if (manifest.kind == "dispatcher") != (manifest.dispatcher is not None):
            raise CorruptArtifactError(f"{where}: a dispatcher, and nothing else, must have the key dispatcher")
        if manifest.kind == "mix" and not manifest.parents:
            raise CorruptArtifactError(f"{where}: parents must name the members of a mix, but there are none")
        return manifest


def timestamp() -> str:
    """Return the present time as `created` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The order of expert.yaml in the documentation.
_KEYS = (
    *("schema", "name", "version", "kind", "category", "description", "base", "targets", "z"),
    *("dispatcher", "examples", "training", "evaluation", "parents", "created"),
)


def _plain(value: object) -> object:
    """Return `value` with records as mappings and tuples as lists, all the way down (asdict: 4 times the time)."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value := vars(value) if is_dataclass(value) else value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _inner(outer: Fields, name: str, record: type) -> Fields:
    known = [item.name for item in fields(record)]
    return Fields(outer.get(name), outer.where, outer.key(name), known=known)


def _each(outer: Fields, name: str, record: type) -> list[Fields]:
    known = [item.name for item in fields(record)]
    items = enumerate(outer.items(name))
    return [Fields(item, outer.where, f"{outer.key(name)}[{i}]", known=known) for i, item in items]


def _base(base: Fields) -> BaseRecord:
    fingerprint = _inner(base, "fingerprint", FingerprintRecord)
    return BaseRecord(
        name=base.text("name", BASE_NAME_PATTERN),
        source=base.text("source"),
        revision=base.text("revision", empty=True),
        architecture=base.text("architecture"),
        fingerprint=FingerprintRecord(
            weights=fingerprint.text("weights", SHA256_PATTERN),
            spectrum=fingerprint.number_lists("spectrum"),
            probes=fingerprint.number_lists("probes") if fingerprint.has("probes") else {},
        ),
    )


def _targets(targets: Fields) -> TargetsRecord:
    return TargetsRecord(
        selection=targets.text("selection"),
        count=targets.integer("count", 1, MAX_PARAMETERS),
        parameters=targets.integer("parameters", 1, MAX_PARAMETERS),
    )


def _z(z: Fields) -> ZRecord:
    return ZRecord(
        file=z.text("file", _Z_FILE_PATTERN),
        sha256=z.text("sha256", SHA256_PATTERN),
        parametrisation=z.text("parametrisation"),
        parent_alpha=z.number("parent_alpha") if z.has("parent_alpha") else None,
    )


def _training(training: Fields) -> TrainingRecord:
    versions = training.get("versions")
    if not isinstance(versions, dict):
        raise training.fail("versions", "a mapping of library names to versions")
    libraries = Fields(versions, training.where, training.key("versions"), known=list(versions))
    config = training.get("config")
    if not isinstance(config, dict) or not all_finite(config):
        raise training.fail("config", "a mapping without NaN or infinite numbers")
    return TrainingRecord(
        task=training.text("task"),
        preset=training.text("preset"),
        config=config,
        seed=training.integer("seed"),
        steps=training.integer("steps", low=0),
        seconds=training.number("seconds", low=0.0),
        device=training.text("device"),
        versions={name: libraries.text(name) for name in libraries.values},
        threads=training.integer("threads", low=1) if training.has("threads") else None,
    )


def _parent(parent: Fields) -> ParentRecord:
    ref = parent.text("ref")
    try:
        ExpertRef.parse(ref)
    except UsageError as error:
        raise parent.fail("ref", "a reference to an expert") from error
    return ParentRecord(ref=ref, digest=parent.text("digest", SHA256_PATTERN), alpha=parent.number("alpha"))


def _created(top: Fields) -> str:
    created = top.text("created", _CREATED_PATTERN)
    try:
        datetime.fromisoformat(created)
    except ValueError as error:
        raise top.fail("created", "a date and time") from error
    return created
