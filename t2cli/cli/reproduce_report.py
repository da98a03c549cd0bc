"""What t2 reproduce says: whether an expert came out again, and what was not the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from t2cli.cli.output import Output, one_line

if TYPE_CHECKING:
    from t2cli.errors import T2Error
    from t2cli.registry.local import ExpertEntry
    from t2cli.training.checkpoint import RunFolder
    from t2cli.training.publish import Trained
    from t2cli.training.recorded import Reproduction, Settings


def report_none(out: Output, entry: ExpertEntry, folder: RunFolder, why: T2Error) -> None:
    """Tell programs of a run that made nothing to compare."""
    known = {"expert": entry.reference, "digest": entry.digest, "reproduces": False}
    out.emit("reproduce", {**known, "new": None, "run": str(folder.path), "reason": why.message})


def report(
    out: Output, recorded: ExpertEntry, settings: Settings, trained: Trained, result: Reproduction, folder: RunFolder
) -> None:
    """Say whether an expert came out again, and what that rests on."""
    entry = trained.entry
    assert entry is not None
    out.emit(
        "reproduce",
        {
            "expert": recorded.reference,
            "digest": recorded.digest,
            "reproduces": result.reproduces,
            "new": {"expert": entry.reference, "digest": entry.digest, "path": str(entry.path)},
            "run": str(folder.path),
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "evaluation": {"recorded": asdict(result.recorded), "now": asdict(result.now)},
            "gain_within_interval": result.within,
            "z": {
                "identical": result.identical,
                "cosine": result.cosine,
                "rms_recorded": result.rms_recorded,
                "rms_now": result.rms_now,
                "rms_difference": result.rms_difference,
            },
            "differences": [asdict(each) for each in result.differences],
            "defaults": settings.defaults,
        },
    )
    for line in _lines(recorded, settings, trained, result):
        out.data(one_line(line))


def _lines(recorded: ExpertEntry, settings: Settings, trained: Trained, result: Reproduction) -> Iterator[str]:
    """Yield what people read: the answer first, then what it rests on, then what was not the same."""
    from t2cli.training.recorded import NOT_RECORDED

    then, now = result.recorded, result.now
    does = "reproduces" if result.reproduces else "does NOT reproduce"
    yield f"{recorded.reference} {does}: gain {100 * now.gain:+.1f} points, {_recorded_gain(result)}"
    yield (
        f"accuracy on the same {now.n} questions: base {then.base_accuracy:.3f} recorded, {now.base_accuracy:.3f} now; "
        f"expert {then.expert_accuracy:.3f} recorded, {now.expert_accuracy:.3f} now"
    )
    if result.identical:
        yield "z: identical, bit for bit"
    else:
        cosine = "-" if result.cosine is None else f"{result.cosine:+.3f}"
        yield (
            f"z: not identical; cosine of z - 1 {cosine}, root mean square {result.rms_recorded:.2g} recorded, "
            f"{result.rms_now:.2g} now, {result.rms_difference:.2g} apart"
        )
    for each in result.differences:
        then_was = each.recorded if each.recorded == NOT_RECORDED else f"{each.recorded} recorded"
        yield f"differs: {each.what}: {then_was}, {each.now} now"
    if not result.differences:
        yield "versions, device, threads, processes, basis and questions are those recorded"
    for setting, value in settings.defaults.items():
        yield f"used: {setting} = {value} (recorded by an older version of t2, without it)"
    assert trained.entry is not None
    yield f"new expert: {trained.entry.reference} in {trained.entry.path}"


def _recorded_gain(result: Reproduction) -> str:
    then = result.recorded
    if then.gain_ci95 is None:
        return f"recorded {100 * then.gain:+.1f} without an interval, so that only the same numbers count"
    where = "within" if result.within else "outside"
    low, high = then.gain_ci95
    return f"{where} the recorded {100 * then.gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
