"""The search of t2 mix --examples and t2 chat --adapt few-shot, and what is said of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from t2cli.cli.output import Output
from t2cli.cli.progress import progress
from t2cli.config import CEMConfig
from t2cli.dispatch.decision import FEW_SHOT
from t2cli.errors import T2Error, UsageError

if TYPE_CHECKING:
    from t2cli.dispatch.decision import Strategy
    from t2cli.dispatch.examples import FewShot
    from t2cli.dispatch.few_shot import FewShotResult, Mix
    from t2cli.dispatch.mixing import Members
    from t2cli.dispatch.population import Judged
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.manifest import EvaluationRecord, TrainingRecord
    from t2cli.svf.zvector import ZVectors


@dataclass(frozen=True)
class Searched:
    """What is published of a search: its members with their weights, and the records of how it was found."""

    members: Members
    z: ZVectors
    note: str
    training: TrainingRecord
    evaluation: EvaluationRecord
    json: dict[str, object]
    lines: list[str]


def searched(
    out: Output,
    members: Members,
    examples: list[FewShot],
    file: str,
    config: CEMConfig,
    base: str,
    device: str,
    *,
    force: bool,
) -> Searched:
    """Search weights for `members` with the examples of a file and return what to publish.

    Raises T2Error where that would be the base itself, or where nothing was ever right, unless `force`.
    """
    from t2cli.cli.session import open_model
    from t2cli.dispatch.few_shot import BASE, search_mix
    from t2cli.registry.vectors import read_z

    experts = {name: read_z(entry) for name, (entry, _) in zip(_names(members), members, strict=True)}
    adapted = open_model(base, device=device, quiet=out.quiet)
    adapted.prepare(quiet=out.quiet)
    with told(out, config) as on_iteration:
        result = search_mix(adapted, experts, examples, config, on_iteration=on_iteration)
    name, mix = result.chosen(force=force)
    if name == BASE:
        raise T2Error(
            f"nothing was better than the base: nothing was published ({verdict(result)}; of what needs no search the "
            f"base was the best on all {sum(result.examples)})",
            hint="use more examples or other experts, or add --force to publish the mix that was found",
        )
    if not result.beats_baselines:
        out.warn(f"{verdict(result)}; " + (f"{name} is published instead" if name else "it is published all the same"))
    return _to_publish(adapted, members, file, config, result, name, mix)


def _names(members: Members) -> list[str]:
    """Return the references of experts; two that have one, in two registries, are told apart by their digests."""
    from t2cli.registry.reference import ExpertRef

    references = [entry.reference for entry, _ in members]
    return [
        reference if references.count(reference) == 1 else str(ExpertRef(entry.manifest.name, digest=entry.digest))
        for reference, (entry, _) in zip(references, members, strict=True)
    ]


@contextlib.contextmanager
def told(out: Output, config: CEMConfig) -> Iterator[Callable[[int, tuple[float, ...]], None]]:
    """Yield the listener of a search, which shows how far it is and the best score."""
    with progress("search", config.iterations, unit="generations", quiet=out.quiet) as bar:

        def on_iteration(_done: int, best: tuple[float, ...]) -> None:
            bar.advance()
            bar.note(f"right {best[0]:.0%}, log-likelihood {best[1]:.2f}")

        yield on_iteration


def chat_examples(adapt: str, examples: str, reward: str, *, by_hand: bool) -> list[FewShot]:
    """Return the examples of --adapt few-shot, none for other strategies.

    Raises UsageError for options that exclude each other.
    """
    if adapt != FEW_SHOT:
        if examples or reward:
            raise UsageError("--examples and --reward are for --adapt few-shot", hint="add --adapt few-shot")
        return []
    if by_hand:
        raise UsageError("--adapt few-shot searches a mix, and --expert or --mix names one", hint="leave out either")
    if not examples:
        raise UsageError("--adapt few-shot needs examples", hint="add --examples FILE.jsonl")
    from t2cli.dispatch.examples import read_examples

    return read_examples(examples, reward)


def few_shot_strategy(out: Output, two_pass: TwoPass, examples: list[FewShot], seed: int) -> Strategy:
    """Return the strategy that answers as the mix the examples speak for, and say how good it is."""
    config = CEMConfig(seed=seed)
    with told(out, config) as on_iteration:
        strategy, result = two_pass.few_shot(examples, config, on_iteration=on_iteration)
    out.aside(f"[{verdict(result)}]")
    return strategy


def verdict(result: FewShotResult) -> str:
    """Say in words whether the mix beats what it has to beat."""
    from t2cli.dispatch.few_shot import BASE

    best, mine = result.rival, result.mix.held_out
    theirs, of_base = (result.baselines[name].held_out for name in (best, BASE))
    where = f"on {len(mine.right)} held-out examples"
    if result.beats_baselines:
        how = "" if mine.accuracy > theirs.accuracy else ", by the log-likelihood of the right answers alone"
        return f"the mix beats the {_named(best)} {where}{how}: {_in_words(mine)} against {_in_words(theirs)}"
    if result.is_ahead:
        return f"the mix leads the base {where} by no more than chance: {_in_words(mine)} against {_in_words(of_base)}"
    return f"the mix does not beat the {_named(best)} {where}: {_in_words(mine)} against {_in_words(theirs)}"


def _named(baseline: str) -> str:
    from t2cli.dispatch.few_shot import BASE, UNIFORM

    return baseline if baseline in (BASE, UNIFORM) else f"single expert {baseline}"


def _in_words(judged: Judged) -> str:
    return f"{judged.accuracy:.0%} right, log-likelihood {judged.logp:.2f}"


def _to_publish(
    adapted: AdaptedModel, members: Members, file: str, config: CEMConfig, result: FewShotResult, name: str, mix: Mix
) -> Searched:
    from t2cli.dispatch.mixing import mixed

    weights = result.weights(mix)
    named = zip(_names(members), members, strict=True)
    chosen = [(entry, weights[name]) for name, (entry, _) in named if name in weights]
    chosen = chosen or [(entry, 0.0) for entry, _ in members]  # forced, and the search ended at the base
    z = result.mixer.vectors(mix.alphas) if config.per_layer and not name else mixed(chosen)
    note = f"searched with {result.examples[0]} examples; {verdict(result)}"
    if name:
        note += f"; this is the {_named(name)}, the best of what needs no search on all {sum(result.examples)} examples"
    return Searched(
        chosen, z, note, _training(adapted, file, config, result, name), _evaluation(config, result, mix),
        as_json(result, name), explained(result),
    )  # fmt: skip


def _training(adapted: AdaptedModel, file: str, config: CEMConfig, result: FewShotResult, name: str) -> TrainingRecord:
    """Return how the mix was found, as the manifest records it."""
    from t2cli.files import sha256_of
    from t2cli.paths import expanded
    from t2cli.registry.manifest import TrainingRecord
    from t2cli.training.publish import versions

    settings = {key: value for key, value in asdict(config).items() if key != "seed"}
    facts = {
        "searched_with": result.examples[0],
        "held_out": result.examples[1],
        "evaluations": result.found.evaluations,
        "beats_baselines": result.beats_baselines,
        "published": name or "mix",
        # by which t2 eval knows that none of its questions is new to the mix
        "data": [{"split": "train", "file": expanded(file).name, "sha256": sha256_of(expanded(file))}],
    }
    return TrainingRecord(
        task="few-shot",
        preset="cem",
        config={**settings, **facts},
        seed=config.seed,
        steps=result.found.iterations,
        seconds=round(result.seconds, 1),
        device=str(adapted.base.device),
        versions=versions(),
    )


def _evaluation(config: CEMConfig, result: FewShotResult, mix: Mix) -> EvaluationRecord:
    """Return the paired comparison with the base on the examples held out."""
    from t2cli.dispatch.few_shot import BASE
    from t2cli.evaluation.statistics import paired_gain, wilson
    from t2cli.registry.manifest import EvaluationRecord

    base, expert = result.baselines[BASE].held_out.right, mix.held_out.right
    paired = paired_gain(base, expert)
    return EvaluationRecord(
        task="few-shot",
        split="held-out",
        n=paired.n,
        base_accuracy=paired.base_accuracy,
        expert_accuracy=paired.expert_accuracy,
        ci95=wilson(sum(expert), paired.n),
        gain=paired.gain,
        gain_ci95=paired.ci95,
        mcnemar_p=paired.mcnemar_p,
        seed=config.seed,
    )


def as_json(result: FewShotResult, name: str) -> dict[str, object]:
    """Return the field `search` of t2 mix --json.

    Scores are of the held-out examples, but for `search_score` and `overall_accuracy` (of all).
    """
    weights = result.weights(result.mix)
    return {
        "iterations": result.found.iterations,
        "evaluations": result.found.evaluations,
        "score": result.mix.held_out.accuracy,
        "logp": result.mix.held_out.logp,
        "search_score": result.found.score[0],
        "searched_with": result.examples[0],
        "held_out": result.examples[1],
        "baselines": {
            key: {**_scores(baseline.held_out), "overall_accuracy": baseline.overall.accuracy}
            for key, baseline in result.baselines.items()
        },
        "beats_baselines": result.beats_baselines,
        "published": name or "mix",
        "experts": [
            {
                "ref": reference,
                "alpha": weights.get(reference, 0.0),
                "spread": result.spread[reference],
                "without": _scores(result.without[reference]),
            }
            for reference in result.references
        ],
        "per_layer": result.mixer.matrices > 1,
        "seconds": round(result.seconds, 1),
    }


def _scores(judged: Judged) -> dict[str, float]:
    return {"accuracy": judged.accuracy, "logp": judged.logp}


def explained(result: FewShotResult) -> list[str]:
    """Return the lines of --explain: the alphas with their spread, what each expert is worth, and the baselines."""
    mix, weights = result.mix.held_out, result.weights(result.mix)
    width = max(map(len, (*result.references, *result.baselines)))
    each = ", means over the matrices" if result.mixer.matrices > 1 else ""
    lines = [
        f"searched with {result.examples[0]} examples: {result.found.evaluations} mixes in {result.found.iterations} "
        f"generations, {result.seconds:.0f} s; the best had {result.found.score[0]:.0%} of them right",
        f"on the {result.examples[1]} examples held out the mix has {_in_words(mix)}",
        f"{'expert':{width}}  alpha  spread  without it{each}",
    ]
    for reference in result.references:
        cost = result.without[reference]
        change = f"{100 * (cost.accuracy - mix.accuracy):+.0f} points, log-likelihood {cost.logp - mix.logp:+.2f}"
        alpha, spread = weights.get(reference, 0.0), result.spread[reference]
        lines.append(f"{reference:{width}}  {alpha:5.2f}  {spread:6.2f}  {change}")
    lines += [
        f"{name:{width}}  {_in_words(baseline.held_out)}; of all {sum(result.examples)} {baseline.overall.accuracy:.0%}"
        for name, baseline in result.baselines.items()
    ]
    return [*lines, verdict(result)]
