"""A task file is read whole, and every mistake in it is named with its key."""

from __future__ import annotations

import pytest

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.tasks.prompts import render
from t2cli.tasks.spec import AnswerSpec, TaskSpec

# a few lines that stand for more keys than memory would hold, were there more of them
MERGED = "x0: &x0 {a: 1, b: 2}\n" + "".join(f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}\n" for i in range(1, 13))
GOOD = r"""
name: demo
category: Demo things
description: a demonstration
source:
  kind: reasoning-gym
  mixture:
    - dataset: chain_sum
      name: sums
      weight: 4
      config: {min_terms: 2, allow_negation: false, operators: ["+", "-"]}
      extract: ': (?P<expression>.+) =$'
      prompt: ["{{ question }}", "What is {{ expression }}?"]
    - dataset: needle_haystack
      answer: {kind: word, candidates: '(?:^|\. )(\S+)'}
system: Be brief.
prompt: "Q: {{ question }}"
answer: {kind: number}
max_new_tokens: 48
"""


def test_a_good_file_is_read_whole() -> None:
    spec = TaskSpec.from_yaml(GOOD, "demo.yaml")
    sums, needle = spec.mixture
    assert (spec.name, spec.category, spec.source, spec.system) == (
        "demo", "Demo things", "reasoning-gym", "Be brief.",
    )  # fmt: skip
    assert (sums.name, sums.weight, sums.answer) == ("sums", 4.0, AnswerSpec("number"))
    assert dict(sums.config) == {"min_terms": 2, "allow_negation": False, "operators": ("+", "-")}
    assert sums.prompts == ("{{ question }}", "What is {{ expression }}?")
    assert (needle.name, needle.weight, needle.prompts) == ("needle_haystack", 1.0, ("Q: {{ question }}",))
    assert needle.answer.offered("Tayo runs. Ayan swims. \nWho runs?") == ["Tayo", "Ayan"]
    assert spec.row("sums") is sums
    with pytest.raises(ValueError, match="no row named 'other'"):
        spec.row("other")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: demo", "name: De mo", "name: 'De mo' is no task name"),
        ("name: demo", "title: demo", "name: missing"),
        ("category: Demo things", "category: 3", "category: must be text"),
        ("description: a demonstration", 'description: "a\\nb"', "description: must be one line"),
        ("kind: reasoning-gym", "kind: reasoninggym", "source: kind: there is no kind named 'reasoninggym'"),
        ("      weight: 4", "      weight: 0", r"mixture\[0\]: weight: must be a number above 0"),
        ("      weight: 4", "      weight: .nan", "weight: must be a number above 0"),
        ("      weight: 4", "      weight: true", "weight: must be a number above 0"),
        ("      weight: 4", "      wieght: 4", r"mixture\[0\]: wieght: unknown key"),
        ("max_new_tokens: 48", "max_new_tokens: 4.8", "max_new_tokens: must be a whole number"),
        ("max_new_tokens: 48", "max_new_tokens: 48\nmax: 1", "max: unknown key"),
        ("{kind: number}", "{kind: numbr}", "answer: kind: there is no kind named 'numbr'"),
        ("{kind: number}", "{kind: word}", "candidates: goes with"),
        ("{kind: number}", "{kind: number, candidates: (a)}", "candidates: goes with"),
        ("{kind: number}", "{kind: term}", "candidates: goes with `kind: word`, or `kind: term` without"),
        ("{kind: number}", "{kind: term, terms: [a, b], candidates: (a)}", "candidates: goes with"),
        ("      answer: {kind", "      skip: '('\n      answer: {kind", "skip: no valid regular expression"),
        ("{kind: number}", "{kind: number, terms: [left]}", "terms: goes with"),
        ("{kind: number}", "{kind: term, terms: [left, 3]}", "terms: must be text"),
        (r"'(?:^|\. )(\S+)'", "'name'", "candidates: needs exactly one group"),
        (r"'(?:^|\. )(\S+)'", "'('", "candidates: no valid regular expression"),
        ("{min_terms: 2,", "{seed: 2,", r"config.seed: is set by t2"),
        ("{min_terms: 2,", "{min_terms: {a: 1},", r"config.min_terms: must be a value or a list"),
        ("(?P<expression>.+)", "(?P<sum>.+)", "prompt uses the unknown variable 'expression'"),
        ('"Q: {{ question }}"', '"Q: {{ question"', "prompt is no valid template"),
        ('"Q: {{ question }}"', '"Q?"', "prompt does not use the question"),
        ('"Q: {{ question }}"', "[]", "prompt: must be text or a list of texts"),
        ("    - dataset: needle_haystack", "    - dataset: sums", "two rows are named 'sums'"),
        ("name: demo", "name: demo\nname2: {", "is no valid YAML"),
        ("name: demo", "name: demo\nname: other", "the key 'name' is there twice"),
        ("name: demo", "name: [&a [x, x, x], &b [*a, *a, *a], *b, *b, *b]", r"name: must be text, not \[\[.*\.\.\."),
        ("name: demo", MERGED + "name: demo", "a mapping has more than 1000 keys"),
        ("description: a demonstration", "description: 2024-13-45", "is no valid YAML: month must be"),
        ("max_new_tokens: 48", "max_new_tokens: 48\nstop: 'x*'", "stop: matches the empty text"),
        ("name: demo", "name: !!python/object:os.system x", "is no valid YAML"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(CorruptArtifactError, match=f"demo.yaml.*{said}") as error:
        TaskSpec.from_yaml(GOOD.replace(old, new, 1), "demo.yaml")
    assert error.value.hint


@pytest.mark.parametrize("text", ["", "[]", "3", "1: 2", "source: x", "a" * (1 << 21), "[" * 2000])
def test_what_is_no_task_at_all_is_refused(text: str) -> None:
    with pytest.raises(CorruptArtifactError, match=r"demo\.yaml"):
        TaskSpec.from_yaml(text, "demo.yaml")


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(T2Error, match="failed"):
        render("{{ question.__class__.__mro__ }}", {"question": "q"})
    with pytest.raises(T2Error, match="failed"):
        render("{{ question }}{{ missing }}", {"question": "q"})


def test_a_template_changes_nothing_in_the_question() -> None:
    assert render("  {{ question }}\n", {"question": "Is 1 < 2 & 'a' \"b\"?"}) == "Is 1 < 2 & 'a' \"b\"?"
