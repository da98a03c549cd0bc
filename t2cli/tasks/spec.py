"""A task as one YAML file.

    name: math
    category: math                  # what pass 1 may answer
    description: one line, also shown to the dispatcher
    source:
      kind: reasoning-gym           # a row of t2cli.tasks.sampling.SOURCES
      mixture:                      # what the questions are drawn from, in proportion to weight
        - dataset: chain_sum        # a data set of the source
          name: sums                # needed only where two rows share a data set
          weight: 4                 # default 1
          config: {min_terms: 2}    # the data set's own parameters
          extract: ': (?P<expression>.+) =$'      # named groups become template variables
          prompt: ["{{ question }}", "What is {{ expression }}?"]    # overrides the task's
          answer: {kind: number}    # overrides the task's
    system: optional system text
    prompt: "{{ question }}"        # one Jinja template, or several of which each example gets one
    answer: {kind: number}          # a row of t2cli.tasks.verify.REWARDS
    max_new_tokens: 48

`answer: {kind: word, candidates: REGEX}` finds the words a question offers: one group, every match.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from t2cli.errors import CorruptArtifactError, NotFoundError
from t2cli.lookup import near_matches, require
from t2cli.tasks.prompts import check_template
from t2cli.tasks.sampling import SOURCES
from t2cli.tasks.verify import REWARDS

MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Scalar = str | int | float | bool
ConfigValue = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class AnswerSpec:
    """How a completion is judged: a kind of `REWARDS`, and for `word` where its candidates are found."""

    kind: str
    candidates: str | None = None

    def offered(self, question: str) -> list[str]:
        """Return the answers that `question` offers, in its order; empty where the kind needs none."""
        return re.findall(self.candidates, question) if self.candidates else []


@dataclass(frozen=True)
class Row:
    """One row of a task's mixture."""

    name: str
    dataset: str
    weight: float
    config: Mapping[str, ConfigValue]
    extract: str | None
    prompts: tuple[str, ...]
    answer: AnswerSpec


@dataclass(frozen=True)
class TaskSpec:
    """A task file, validated; the module's docstring shows one."""

    name: str
    category: str
    description: str
    source: str
    mixture: tuple[Row, ...]
    system: str | None
    max_new_tokens: int

    @classmethod
    def from_yaml(cls, text: str, where: str) -> TaskSpec:
        """Return the task described by `text`; `where` names the file in errors.

        Raises CorruptArtifactError naming the key that is missing, unknown or wrong.
        """
        import yaml

        if len(text.encode()) > MAX_BYTES:
            raise CorruptArtifactError(f"{where} is larger than {MAX_BYTES} bytes", hint="is it a task file?")
        try:
            loaded = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CorruptArtifactError(f"{where} is no valid YAML: {reason}", hint="fix the file") from error
        fields = _Fields(loaded, where)
        name = fields.text("name")
        if not _NAME.fullmatch(name):
            raise fields.wrong("name", f"{name!r} is no task name", "lower-case letters, digits, . _ and -")
        answer = _answer(fields.inner("answer"))
        prompts = fields.texts("prompt") if fields.has("prompt") else ("{{ question }}",)
        source = fields.inner("source")
        spec = cls(
            name=name,
            category=fields.line("category"),
            description=fields.line("description"),
            source=source.one_of("kind", SOURCES),
            mixture=tuple(_row(row, answer, prompts) for row in source.inner_list("mixture")),
            system=fields.text("system") if fields.has("system") else None,
            max_new_tokens=fields.count("max_new_tokens"),
        )
        fields.done()
        source.done()
        names = [row.name for row in spec.mixture]
        if twice := [name for name in names if names.count(name) > 1]:
            raise source.wrong("mixture", f"two rows are named {twice[0]!r}", "give each row a `name`")
        return spec

    def row(self, name: str) -> Row:
        """Return the row of the mixture named `name`; ValueError when there is none."""
        for row in self.mixture:
            if row.name == name:
                return row
        raise ValueError(f"the task {self.name} has no row named {name!r}")


def _answer(fields: _Fields) -> AnswerSpec:
    kind = fields.one_of("kind", REWARDS)
    if (kind == "word") != fields.has("candidates"):
        raise fields.wrong("candidates", "goes with `kind: word`", "give both or neither")
    candidates = fields.regex("candidates") if fields.has("candidates") else None
    if candidates and candidates.groups != 1:
        raise fields.wrong("candidates", "needs exactly one group", "put parentheses around the word")
    fields.done()
    return AnswerSpec(kind, candidates.pattern if candidates else None)


def _row(fields: _Fields, answer: AnswerSpec, prompts: tuple[str, ...]) -> Row:
    dataset = fields.text("dataset")
    extract = fields.regex("extract") if fields.has("extract") else None
    prompts = fields.texts("prompt") if fields.has("prompt") else prompts
    variables = frozenset({"question", *(extract.groupindex if extract else ())})
    for prompt in prompts:
        check_template(prompt, variables, f"{fields.where}: prompt")
    row = Row(
        name=fields.text("name") if fields.has("name") else dataset,
        dataset=dataset,
        weight=fields.weight("weight") if fields.has("weight") else 1.0,
        config=fields.config("config") if fields.has("config") else MappingProxyType({}),
        extract=extract.pattern if extract else None,
        prompts=prompts,
        answer=_answer(fields.inner("answer")) if fields.has("answer") else answer,
    )
    fields.done()
    return row


class _Fields:
    """Reads one mapping of the file key by key; every error names the file and the key."""

    def __init__(self, mapping: object, where: str) -> None:
        if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
            raise CorruptArtifactError(f"{where} must be a mapping of keys to values", hint="fix the file")
        self.where = where
        self._values: dict[str, object] = mapping
        self._read: set[str] = set()

    def wrong(self, key: str, why: str, hint: str) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self.where}: {key}: {why}", hint=hint)

    def has(self, key: str) -> bool:
        self._read.add(key)
        return self._values.get(key) is not None

    def done(self) -> None:
        if unknown := sorted(set(self._values) - self._read):
            raise self.wrong(unknown[0], "unknown key", near_matches(unknown[0], self._read))

    def _get(self, key: str) -> object:
        if not self.has(key):
            raise self.wrong(key, "missing", f"add `{key}:`")
        return self._values[key]

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, f"must be text, not {value!r}", "put it in quotes")
        return value.strip()

    def line(self, key: str) -> str:
        value = self.text(key)
        if len(value.splitlines()) > 1:
            raise self.wrong(key, "must be one line", "shorten it")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._get(key)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(each, str) and each.strip() for each in values):
            raise self.wrong(key, "must be text or a list of texts", "put each in quotes")
        return tuple(values)

    def one_of(self, key: str, table: Mapping[str, object]) -> str:
        value = self.text(key)
        try:
            require(value, table, key)
        except NotFoundError as error:
            raise self.wrong(key, error.message, error.hint) from error
        return value

    def count(self, key: str) -> int:
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, f"must be a whole number above 0, not {value!r}", "for example 64")
        return value

    def weight(self, key: str) -> float:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, f"must be a number above 0, not {value!r}", "for example 1")
        return float(value)

    def regex(self, key: str) -> re.Pattern[str]:
        try:
            return re.compile(self.text(key))
        except re.error as error:
            raise self.wrong(key, f"no valid regular expression: {error}", "put it in 'quotes'") from error

    def config(self, key: str) -> Mapping[str, ConfigValue]:
        values: dict[str, ConfigValue] = {}
        for name, value in self.inner(key)._values.items():
            if name in ("seed", "size"):
                raise self.wrong(f"{key}.{name}", "is set by t2", "leave it out")
            items = value if isinstance(value, list) else [value]
            scalars = tuple(item for item in items if isinstance(item, str | int | float))
            if len(scalars) < len(items) or not items:
                raise self.wrong(f"{key}.{name}", "must be a value or a list of values", "simplify it")
            values[name] = scalars if isinstance(value, list) else scalars[0]
        return MappingProxyType(values)

    def inner(self, key: str) -> _Fields:
        return _Fields(self._get(key), f"{self.where}: {key}")

    def inner_list(self, key: str) -> list[_Fields]:
        value = self._get(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, "must be a list with at least one row", "add `- dataset: ...`")
        return [_Fields(each, f"{self.where}: {key}[{i}]") for i, each in enumerate(value)]
