"""Whether questions are new to the experts that t2 eval measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from t2cli.cli.output import Output

if TYPE_CHECKING:
    from t2cli.registry.entry import ExpertEntry
    from t2cli.registry.resolve import Resolver
    from t2cli.tasks.base import Task


def seen_before(
    out: Output,
    split: str,
    tasks: Sequence[Task],
    entries: Sequence[ExpertEntry],
    resolver: Resolver,
    *,
    strategies: bool,
) -> set[str]:
    """Return the names of the tasks whose questions are not new to all who are measured; warn of them.

    These are all tasks for another split than `test`, and those whose test questions are in files that an expert had
    for other splits. `entries` are the experts that were named; with `strategies` it may be any that a strategy chooses
    from. What a mix was made from counts as well.
    """
    if split != "test":
        out.warn(f"NOT HELD OUT: experts were trained on or chosen by questions of the split {split!r}")
        return {task.name for task in tasks}
    from t2cli.dispatch.categories import categories_of
    from t2cli.registry.lineage import ancestry
    from t2cli.training.recorded import learned_from, perhaps_learned_from

    named = [*entries, *(resolver.find(each.reference) for each in categories_of(resolver) if strategies)]
    asked = {entry.digest: entry for entry in named}.values()
    seen = set()
    for task in tasks:
        for entry in asked:
            for ancestor in ancestry(resolver.registry, entry):
                training = ancestor.manifest.training
                if training is None:
                    continue
                who = entry.reference + ("" if ancestor is entry else f", made from {ancestor.reference}, which")
                if files := learned_from(training, task):
                    seen.add(task.name)
                    out.warn(f"NOT HELD OUT: {who} was trained on questions of {' and '.join(files)}")
                elif files := perhaps_learned_from(training, task):
                    out.warn(
                        f"{who} was trained on other files for {task.name}: whether they hold questions of "
                        f"{' and '.join(files)} is not known"
                    )
    return seen
