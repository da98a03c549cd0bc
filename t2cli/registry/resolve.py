"""Which experts may be used with a base: its own first, then those of a close relative, a foreign base's if asked for.

    same        used
    relative    used with a warning: the weights differ a little, and what the expert was measured to gain with them
    foreign     refused, unless foreign experts are allowed and the shapes fit; the same where the relation is unknown

Reads manifests only, and z where an expert is of another base. No torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from t2cli.errors import IncompatibleBaseError, T2Error
from t2cli.registry.checks import misfit
from t2cli.registry.entry import Slot
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.reference import HUB_SCHEME, ExpertRef
from t2cli.svf.relation import Fingerprint, Printed, Probes, Relation, relation

Related = tuple[ExpertEntry, Relation]


@dataclass(frozen=True)
class ForBase:
    """The base that experts are sought for; `label` names it to people.

    `probes` and `ranks` (weight name -> r) may take time: they are asked for only when an expert is of another base.
    """

    label: str
    weights: str
    probes: Callable[[], Probes]
    ranks: Callable[[], Mapping[str, int]]


class Resolver:
    """Finds the experts of a registry for one base, and remembers those that are not the base's own."""

    def __init__(self, registry: LocalRegistry, base: ForBase, *, allow_foreign: bool = False) -> None:
        self.registry = registry
        self.base = base
        self.allow_foreign = allow_foreign
        self._strangers: dict[str, Related] = {}  # by digest
        self._not_own: set[str] = set()  # references to the Hub that have no expert of this very base
        self._remarks: list[str] = []
        self._told: set[str] = set()

    @property
    def warnings(self) -> list[str]:
        """Return what to say of the experts found so far: of those that are not the base's own a line for each base."""
        groups: dict[str, list[Related]] = {}
        for entry, how in self._strangers.values():
            groups.setdefault(entry.manifest.base.folder, []).append((entry, how))
        return [*self._remarks, *(self._warning(folder, group) for folder, group in groups.items())]

    def new_warnings(self) -> list[str]:
        """Return the warnings that this has not returned before."""
        new = [warning for warning in self.warnings if warning not in self._told]
        self._told.update(new)
        return new

    def remark(self, text: str) -> None:
        """Add a line to the warnings, once."""
        if text not in self._remarks:
            self._remarks.append(text)

    def find(self, ref: ExpertRef | str) -> ExpertEntry:
        """Return the expert that `ref` means for this base, else for the closest base that has one.

        Raises IncompatibleBaseError, in words and with the next step, for an expert of a foreign base that is not
        allowed or whose shapes are others; everything else as LocalRegistry.find.
        """
        entry, how = self._located(ref)
        self._note(entry, how)
        return entry

    def own(self) -> list[ExpertEntry]:
        """Return every expert of this very base, in the registry's order; `registry.problems` says what is damaged."""
        return self.registry.list(base_digest=self.base.weights)

    def others(self) -> list[ExpertEntry]:
        """Return the usable experts of other bases: those of the closest base first, of each base the newest first.

        `registry.problems` stays as it is: an unreadable expert of another base concerns nobody here.
        """
        problems = self.registry.problems
        related = [(entry, self.relation(entry)) for entry in self.registry.list()]
        self.registry.problems = problems
        allowed = [(e, how) for e, how in related if how.kind != "same" and (how.close or self.allow_foreign)]
        return [entry for entry, _ in closest_first(allowed)]

    def using(self, entry: ExpertEntry) -> str:
        """Return the reference by which `find` finds exactly this expert; warn if it is not the base's own."""
        self._note(entry, self.relation(entry))
        with contextlib.suppress(T2Error):
            if self._located(entry.reference)[0].digest == entry.digest:
                return entry.reference
        return str(ExpertRef(entry.manifest.name, digest=entry.digest))

    def relation(self, entry: ExpertEntry) -> Relation:
        """Return how this base relates to the one that the expert was made for."""
        theirs = entry.manifest.base.fingerprint
        if theirs.weights == self.base.weights:
            return Relation("same", 0.0)
        return relation(Fingerprint(self.base.weights, self.base.probes()), theirs)

    def fits(self, entry: ExpertEntry) -> bool:
        """Tell whether an expert is sound and has the shapes of this base."""
        try:
            return not self._misfit(entry)
        except T2Error:
            return False

    def _located(self, ref: ExpertRef | str) -> Related:
        if str(ref) not in self._not_own:
            try:
                return self.registry.find(ref, base_digest=self.base.weights), Relation("same", 0.0)
            except IncompatibleBaseError:
                if str(ref).startswith(HUB_SCHEME):  # the Hub is asked once, and not for every question
                    self._not_own.add(str(ref))
        entry, how = closest_first([(entry, self.relation(entry)) for entry in self.registry.find_each(ref)])[0]
        if not how.close and not self.allow_foreign:
            raise self._refused(entry, how)
        if wrong := self._misfit(entry):
            raise IncompatibleBaseError(
                f"{entry.reference} was made for {entry.manifest.base.folder}, and {wrong}",
                hint="an expert fits bases of its own shapes only: train one for this base",
            )
        return entry, how

    def _note(self, entry: ExpertEntry, how: Relation) -> None:
        if how.kind != "same":
            self._strangers[entry.digest] = (entry, how)

    def _warning(self, folder: str, group: list[Related]) -> str:
        names = " and ".join(entry.reference for entry, _ in group)
        how = group[0][1]
        verb, pronoun = ("was", "it") if len(group) == 1 else ("were", "they")
        advice = f"{pronoun} may gain less" if how.close else f"{pronoun} may do harm"
        return f"{names} {verb} made for {folder}, {in_words(how)}; with {self.base.label} {advice}"

    def _refused(self, entry: ExpertEntry, how: Relation) -> IncompatibleBaseError:
        fits = self.fits(entry)
        ways = [
            *(["add --allow-foreign to use it all the same"] if fits else []),
            f"pass --base {entry.manifest.base.name}",
            "train one for this base",
        ]
        but = "" if fits else ", and its shapes are others"
        return IncompatibleBaseError(
            f"the expert {entry.manifest.name} is for {entry.manifest.base.folder}, {in_words(how)}, "
            f"not for {self.base.label}{but}",
            hint=f"{', '.join(ways[:-1])}, or {ways[-1]}",
        )

    def _misfit(self, entry: ExpertEntry) -> str:
        """Return what of the expert's shapes is not this base's, "" if all are. Raises for a damaged expert."""
        return misfit(entry, self.base.ranks(), self.base.label)


def closest_first(found: list[Related]) -> list[Related]:
    """Return experts by how close their base is; of equally close ones the newest first."""
    by_age = sorted(found, key=lambda pair: (pair[0].manifest.created, pair[0].manifest.version), reverse=True)
    return sorted(by_age, key=lambda pair: math.inf if pair[1].drift is None else pair[1].drift)


def shown(registry: LocalRegistry, ref: ExpertRef | str, base: Printed | None) -> Related:
    """Return the expert that `ref` means, whether it can be used with `base` or not; raises as LocalRegistry.find.

    `base` is None where nothing is known of it: the relation is unknown then.
    """
    if base is None:
        return registry.find(ref), Relation("unknown", None)
    with contextlib.suppress(IncompatibleBaseError):
        return registry.find(ref, base_digest=base.weights), Relation("same", 0.0)
    found = registry.find_each(ref)
    return closest_first([(entry, relation(base, entry.manifest.base.fingerprint)) for entry in found])[0]


def is_base(slot: Slot, base: str) -> bool:
    """Tell from a registry folder's name alone whether it is for `base`: a short name, a folder, a path or a Hub id."""
    name = Path(base.partition("@")[0]).name.lower()
    return name in (slot.base.lower(), slot.base.lower().rpartition("-")[0])


def in_words(how: Relation) -> str:
    """Return a relation for people: "a close relative (weights differ by 0.2 %)"."""
    what = {
        "same": "the same base",
        "relative": "a close relative",
        "foreign": "a foreign base",
        "unknown": "a base whose relation is not known",
    }[how.kind]
    return what if how.kind == "same" or how.drift is None else f"{what} (weights differ by {percent(how.drift)})"


def percent(share: float) -> str:
    """Return a share in per cent with two digits; a change too small for the probes is not called none."""
    if share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
