"""Where a weight of the model is in its checkpoint, whose tensors may have other names and be in more pieces.

transformers renames and joins tensors as it loads a model, by rules of each architecture: Mixtral's files have three
matrices per expert, the model two 3-D parameters; the Hub's GPT-2 has no `transformer.` before its names. The same
rules are followed here, for one weight at a time and without its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2cli.errors import CorruptArtifactError, T2Error


@dataclass(frozen=True)
class Stored:
    """The tensors that make one parameter of the model.

    `names`: per source (gate and up, say) its tensors in order, one per expert if `stacked`; the sources are joined
    along `joined`, counted in the model's parameter. `problem` tells why it cannot be read, if so.
    """

    parameter: str
    names: Mapping[str, list[str]] = field(default_factory=dict)
    stacked: bool = False
    joined: int = 0
    problem: T2Error | None = None

    def of(self, index: int | None) -> list[tuple[str, int | None]]:
        """Return the name of each tensor that makes part `index` (None: all), and which part of it.

        Raises CorruptArtifactError where some are missing, T2Error for a form that t2 does not read.
        """
        if self.problem is not None:
            raise self.problem
        if self.stacked and index is not None:
            return [(names[index], None) for names in self.names.values()]
        return [(names[0], index) for names in self.names.values()]

    def axis(self, index: int | None) -> int:
        """Return the dimension along which the tensors that `of` gives are joined."""
        return self.joined - (index is not None)


def find_stored(folder: Path, names: Iterable[str]) -> dict[str, Stored]:
    """Return, by the model's parameter name, what tensors of the checkpoint in `folder` make it.

    `names` are all tensors of the checkpoint.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    from t2cli.models.targets import empty_model

    model = empty_model(folder)
    state, rules = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    converter_of = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    found: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for name in sorted(names, key=dot_natural_key):  # so come the experts in their order
        parameter, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if parameter in state:
            rule = converter_of.get(pattern)
            sources = rule.source_patterns if rule is not None else [name]
            _, lists = found.setdefault(parameter, (rule, {source: [] for source in sources}))
            lists.setdefault(pattern or name, []).append(name)
    return {
        parameter: _stored(folder, parameter, rule, lists, tuple(state[parameter].shape))
        for parameter, (rule, lists) in found.items()
    }


def _stored(folder: Path, parameter: str, rule: Any, lists: dict[str, list[str]], shape: tuple[int, ...]) -> Stored:
    """Return how `rule`, a WeightConverter or None, makes a parameter of that shape of the tensors in `lists`."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    operations = list(rule.operations) if rule is not None else []
    stacked = bool(operations) and type(operations[0]) is MergeModulelist and operations[0].dim == 0
    rest = operations[stacked:]
    if rest and (len(rest) > 1 or type(rest[0]) is not Concatenate):
        problem = T2Error(
            f"the checkpoint in {folder} stores {parameter} in a form that t2 does not read",
            hint=f"transformers makes it by {', '.join(type(operation).__name__ for operation in operations)}",
        )
        return Stored(parameter, problem=problem)
    wanted = shape[0] if stacked else 1
    for source, names in lists.items():
        if len(names) != wanted:
            missing = CorruptArtifactError(
                f"the checkpoint in {folder} has {len(names)} of the {wanted} tensors {source} of {parameter}",
                hint="fetch the model again",
            )
            return Stored(parameter, problem=missing)
    return Stored(parameter, lists, stacked, rest[0].dim if rest else 0)
