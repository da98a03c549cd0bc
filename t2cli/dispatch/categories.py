"""What pass 1 may choose from: the categories of a registry's experts, each with the expert that answers them."""

from __future__ import annotations

from t2cli.dispatch.decision import OTHER, Category
from t2cli.registry.dispatcher_record import category_key
from t2cli.registry.local import ExpertEntry
from t2cli.registry.resolve import Resolver


def categories_of(resolver: Resolver) -> list[Category]:
    """Return the categories that there are experts for, with the newest expert of each.

    The base's own experts come first; those of a close relative, or of a foreign base where that is allowed, stand in
    for categories that have none. Mixes and dispatchers are used by name only: a mix has no questions of its own.
    """
    found: dict[str, ExpertEntry] = {}
    for entry in resolver.own():
        found.setdefault(entry.reference, entry)  # what a reference means: the first on the search path
    newest: dict[str, ExpertEntry] = {}
    for entry in filter(_has_questions, found.values()):
        known = newest.get(_key(entry))
        if known is None or _age(entry) > _age(known):
            newest[_key(entry)] = entry
    for entry in filter(_has_questions, resolver.others()):
        if _key(entry) not in newest and resolver.fits(entry):
            newest[_key(entry)] = entry
    return [
        Category(manifest.category, manifest.description, manifest.examples, resolver.using(entry))
        for manifest, entry in ((entry.manifest, entry) for _, entry in sorted(newest.items()))
    ]


def _has_questions(entry: ExpertEntry) -> bool:
    return entry.manifest.kind == "expert" and _key(entry) != OTHER


def _key(entry: ExpertEntry) -> str:
    """Return what makes two experts' categories one; the newest expert's own spelling is shown."""
    return category_key(entry.manifest.category)


def _age(entry: ExpertEntry) -> tuple[str, int]:
    """Return what orders experts by age; `created` has seconds only, so that of equal ones the version decides."""
    return entry.manifest.created, entry.manifest.version
