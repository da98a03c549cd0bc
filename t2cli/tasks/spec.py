"""A task as one YAML file.

    name: math
    category: math                  # what pass 1 may answer
    description: one line, also shown to the dispatcher
    example: optional question of the kind, for the list of `t2 tasks` where none is at hand
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
          skip: '.*-in-law'         # leaves out questions with such an answer, where a data set is wrong about them
    system: optional system text
    prompt: "{{ question }}"        # one Jinja template, or several of which each example gets one
    answer: {kind: number}          # a row of t2cli.tasks.verify.REWARDS
    max_new_tokens: 48
    stop: "```\\n"                  # optional: a completion ends where this regular expression matches its text

`answer: {kind: word, candidates: REGEX}` finds the words a question offers: one group, every match.
`answer: {kind: term, terms: [left, right]}` names the words that every question offers, and `{kind: term, candidates:
REGEX}` finds those of each, to be written in any case.

Questions may also be read from files, JSONL or a JSON array of objects. Then the source is

    source:
      kind: jsonl
      file: mine.jsonl              # or train: FILE and test: FILE (and validation: FILE); beside the task file
      record:                       # names of fields, or Jinja templates over the record's fields
        question: "{{ title }}: {{ problem }}"    # default: the field `question`
        answer: "{{ solution.split('####') | last }}"    # default: the field `answer`
        # Only where one file holds several. Empty: left out. Without validation, it is a part of train.
        split: "{{ 'test' if id < 100 else 'train' }}"

or, for a data set on the Hugging Face Hub (`file`, `train` and so on are then names of its splits),

    source:
      kind: hub
      dataset: openai/gsm8k
      config: main                  # where it has several
      revision: 1a2b3c              # a branch, tag or commit; default main, and the commit is recorded
      train: train
      test: test                    # or file: SPLIT where there is only one, which is then divided by the hash

(or `kind: dispatch`, whose answers are the categories of other tasks: see t2cli.tasks.dispatch),
or a `mixture` of such rows, each with its own file and `record`. Every field of the record is a variable of `prompt`
too (`question` is then the text that `record` made). What the reward is given as the right answer is the text that
`record.answer` makes, so a reward that needs more than one field gets them by a template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2cli.errors import CorruptArtifactError
from t2cli.tasks.fields import ConfigValue, Fields
from t2cli.tasks.prompts import check_template
from t2cli.tasks.records import RecordSpec
from t2cli.tasks.sampling import SOURCES
from t2cli.tasks.verify import REWARDS

MAX_BYTES = 1 << 20
# What the sources that read records are told in a row, besides `record`; others make questions from `config`.
READS: Mapping[str, tuple[str, ...]] = {
    "jsonl": ("file", "train", "validation", "test"),
    "hub": ("file", "train", "validation", "test", "config", "revision"),
}
SOURCE_OF_CATEGORIES = "dispatch"  # a row of SOURCES: its questions are those of other tasks
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class AnswerSpec:
    """How a completion is judged: a kind of `REWARDS`; where its candidates are found, or for `term` which they are."""

    kind: str
    candidates: str | None = None
    terms: tuple[str, ...] = ()

    def offered(self, question: str) -> list[str]:
        """Return the answers that `question` offers, in its order, for `math` the question; empty where none matter."""
        if self.terms:
            return list(self.terms)
        if self.kind == "math":
            return [question]  # its own formulas mean the same as the answer, and are none
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
    record: RecordSpec
    skip: str | None = None


@dataclass(frozen=True)
class TaskSpec:
    """A task file, validated; the module's docstring shows one.

    `folder` is where its files' paths start, `revisions` the commits (data set on the Hub -> commit) for the tasks that
    it tells apart.
    """

    name: str
    category: str
    description: str
    source: str
    mixture: tuple[Row, ...]
    system: str | None
    max_new_tokens: int
    folder: Path = Path()
    stop: str | None = None
    example: str = ""
    revisions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_yaml(cls, text: str, where: str, folder: Path = Path()) -> TaskSpec:
        """Return the task described by `text`; `where` names the file in errors.

        Raises CorruptArtifactError naming the key that is missing, unknown or wrong.
        """
        import yaml

        from t2cli.tasks.plain_yaml import read_plain

        if len(text.encode()) > MAX_BYTES:
            raise CorruptArtifactError(f"{where} is larger than {MAX_BYTES} bytes", hint="is it a task file?")
        try:
            loaded = read_plain(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that is none
            reason = " ".join(str(error).split())
            raise CorruptArtifactError(f"{where} is no valid YAML: {reason}", hint="fix the file") from error
        fields = Fields(loaded, where)
        name = fields.text("name")
        if not _NAME.fullmatch(name):
            raise fields.wrong("name", f"{name!r} is no task name", "lower-case letters, digits, . _ and -")
        answer = _answer(fields.inner("answer"))
        prompts = fields.texts("prompt") if fields.has("prompt") else ("{{ question }}",)
        source = fields.inner("source")
        kind = source.one_of("kind", SOURCES)
        system = fields.text("system") if fields.has("system") else None
        if kind == SOURCE_OF_CATEGORIES:
            from t2cli.tasks.dispatch import rows_of

            mixture, system = rows_of(source, answer, folder)
        else:
            rows = source.inner_list("mixture") if source.has("mixture") or kind not in READS else [source]
            mixture = tuple(read_row(kind, row, answer, prompts) for row in rows)
        spec = cls(
            name=name,
            category=fields.line("category"),
            description=fields.line("description"),
            source=kind,
            mixture=mixture,
            system=system,
            max_new_tokens=fields.count("max_new_tokens"),
            folder=folder,
            stop=_stop(fields) if fields.has("stop") else None,
            example=fields.text("example") if fields.has("example") else "",
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


def _stop(fields: Fields) -> str:
    pattern = fields.regex("stop")
    if pattern.search("") is not None:
        raise fields.wrong("stop", "matches the empty text, so that every answer would end at once", "make it match")
    return pattern.pattern


def _answer(fields: Fields) -> AnswerSpec:
    kind = fields.one_of("kind", REWARDS)
    listed = fields.has("terms")
    if fields.has("candidates") != (kind == "word" or (kind == "term" and not listed)):
        raise fields.wrong("candidates", "goes with `kind: word`, or `kind: term` without `terms`", "add or remove it")
    candidates = fields.regex("candidates") if fields.has("candidates") else None
    if candidates and candidates.groups != 1:
        raise fields.wrong("candidates", "needs exactly one group", "put parentheses around the word")
    if listed and kind != "term":
        raise fields.wrong("terms", "goes with `kind: term`", "give both or neither")
    terms = fields.texts("terms") if listed else ()
    fields.done()
    return AnswerSpec(kind, candidates.pattern if candidates else None, terms)


def read_row(kind: str, fields: Fields, answer: AnswerSpec, prompts: tuple[str, ...]) -> Row:
    """Return a row of the mixture of a source; raises CorruptArtifactError naming the key that is wrong."""
    reads = kind in READS
    config = fields.locations(READS[kind]) if reads else fields.config("config")
    dataset = Path(str(next(iter(config.values())))).stem if kind == "jsonl" else fields.text("dataset")
    extract = fields.regex("extract") if fields.has("extract") else None
    skip = fields.regex("skip") if fields.has("skip") else None
    prompts = fields.texts("prompt") if fields.has("prompt") else prompts
    variables = frozenset({"question", *(extract.groupindex if extract else ())})
    for prompt in prompts:
        check_template(prompt, None if reads else variables, f"{fields.where}: prompt")
    row = Row(
        name=fields.text("name") if fields.has("name") else dataset,
        dataset=dataset,
        weight=fields.weight("weight") if fields.has("weight") else 1.0,
        config=config,
        extract=extract.pattern if extract else None,
        prompts=prompts,
        answer=_answer(fields.inner("answer")) if fields.has("answer") else answer,
        record=_record(fields.inner("record")) if reads and fields.has("record") else RecordSpec(),
        skip=skip.pattern if skip else None,
    )
    fields.done()
    return row


def _record(fields: Fields) -> RecordSpec:
    given = {key: fields.text(key) for key in ("question", "answer", "split") if fields.has(key)}
    for key, template in given.items():
        if "{" in template:
            check_template(template, None, f"{fields.where}: {key}")
    fields.done()
    return RecordSpec(**given)
