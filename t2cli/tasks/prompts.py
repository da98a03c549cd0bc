"""Prompt templates of tasks: Jinja, sandboxed, because a task file may come from anyone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, T2Error

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Prompts are plain text for a model, never HTML: escaping would change the questions.
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def check_template(template: str, variables: frozenset[str], where: str) -> None:
    """Raise CorruptArtifactError unless `template` is valid Jinja over `variables`; `where` names it."""
    from jinja2 import TemplateSyntaxError, meta

    try:
        used = meta.find_undeclared_variables(_environment().parse(template))
    except TemplateSyntaxError as error:
        raise CorruptArtifactError(
            f"{where} is no valid template: {error.message}", hint=f"template: {template!r}"
        ) from error
    if unknown := sorted(used - variables):
        raise CorruptArtifactError(
            f"{where} uses the unknown variable {unknown[0]!r}",
            hint=f"known here: {', '.join(sorted(variables))} (named groups of `extract` add more)",
        )
    if not used:
        raise CorruptArtifactError(f"{where} does not use the question", hint=f"template: {template!r}")


def render(template: str, variables: Mapping[str, str]) -> str:
    """Return `template` filled in, without white space at its ends; T2Error if it cannot be."""
    from jinja2 import TemplateError

    try:
        return _environment().from_string(template).render(variables).strip()
    except TemplateError as error:
        raise T2Error(
            f"the prompt template {template!r} failed: {error.message}",
            hint="check the task's `prompt` and `extract`",
        ) from error
