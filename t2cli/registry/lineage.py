"""What a mix was made from, found by the digests in its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, NotFoundError
from t2cli.registry.hub import hub_registry
from t2cli.registry.reference import ExpertRef

if TYPE_CHECKING:
    from t2cli.registry.entry import ExpertEntry
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.manifest import ParentRecord


def ancestry(registry: LocalRegistry, entry: ExpertEntry) -> Iterator[ExpertEntry]:
    """Yield an expert and, once each, all that it was made from, as far as they are here."""
    waiting, seen = [entry], {entry.digest}
    while waiting:
        current = waiting.pop()
        yield current
        for parent in current.manifest.parents:
            found, _ = parent_of(registry, parent)
            if found is not None and found.digest not in seen:
                seen.add(found.digest)
                waiting.append(found)


def parent_of(registry: LocalRegistry, parent: ParentRecord) -> tuple[ExpertEntry | None, str]:
    """Return the expert that a manifest names as a parent, by its digest, else why there is none."""
    ref = ExpertRef.parse(parent.ref)
    # What a reference to the Hub fetched is here too; a look at an expert must not fetch its parents.
    places = [registry, *([hub_registry(ref.repo)] if ref.repo else [])]
    note = f" (not here: sha256:{parent.digest[:12]})"
    for place in places:
        try:
            return place.find(ExpertRef(ref.name, digest=parent.digest)), ""
        except NotFoundError:
            continue
        except CorruptArtifactError:
            note = " (damaged here)"
    return None, note
