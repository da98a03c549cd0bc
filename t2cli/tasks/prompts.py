"""Prompt templates of tasks: Jinja, sandboxed, because a task file may come from anyone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, T2Error

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Prompts are plain text for a model, never HTML: escaping would change the questions.
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    """Return the compiled template: a file's records use the same one thousands of times."""
    return _environment().from_string(template)


def check_template(template: str, variables: frozenset[str] | None, where: str) -> None:
    """Raise CorruptArtifactError unless `template` is valid Jinja over `variables`; `where` names it.

    None: any variables, for what a record has is known only when its file is read.
    """
    from jinja2 import TemplateSyntaxError, meta

    try:
        used = meta.find_undeclared_variables(_environment().parse(template))
    except TemplateSyntaxError as error:
        raise CorruptArtifactError(
            f"{where} is no valid template: {error.message}", hint=f"template: {template!r}"
        ) from error
    if variables is not None and (unknown := sorted(used - variables)):
        raise CorruptArtifactError(
            f"{where} uses the unknown variable {unknown[0]!r}",
            hint=f"known here: {', '.join(sorted(variables))} (named groups of `extract` add more)",
        )
    if not used:
        lacks = "does not use the question" if variables is not None else "uses no field of a record"
        raise CorruptArtifactError(f"{where} {lacks}", hint=f"template: {template!r}")


def fill(template: str, fields: Mapping[str, object], where: str) -> str:
    """Return `template` filled in with a record's fields; CorruptArtifactError naming `where` if it cannot be."""
    try:
        return _compiled(template).render(fields)
    except Exception as error:  # a filter met a value that it was not made for: any class
        raise CorruptArtifactError(
            f"{where}: a template of the task's `record` failed: {' '.join(str(error).split()):.200}",
            hint=f"the record has the fields {', '.join(fields)}",
        ) from error


def render(template: str, variables: Mapping[str, object]) -> str:
    """Return `template` filled in, without white space at its ends; T2Error naming the question if it cannot be."""
    try:
        return _compiled(template).render(variables).strip()
    except Exception as error:  # Jinja's own, or that of an operation on a record's field: any class
        raise T2Error(
            f"the prompt template {template!r} failed: {' '.join(str(error).split()):.200} "
            f"(question: {str(variables.get('question', ''))!r:.80})",
            hint="check the task's `prompt` and `extract`, and the question's record",
        ) from error
