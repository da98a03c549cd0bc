"""What t2 chat says of an answer: its record, its dispatch line, and its text on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.cli.output import Output
    from t2cli.config import SamplingConfig
    from t2cli.dispatch.decision import Decision, Messages
    from t2cli.dispatch.two_pass import Answer, TwoPass
    from t2cli.errors import T2Error


def streamed(
    out: Output,
    two_pass: TwoPass,
    messages: Messages,
    decision: Decision,
    sampling: SamplingConfig,
    *,
    one_line: bool = False,
) -> Answer:
    """Answer while the text is printed; as one line if asked, white space folded."""
    out.aside(explained(decision))
    writer = Folded(out) if one_line else None
    show = (lambda text: out.data(text, end="")) if writer is None else writer.add
    answer = two_pass.answer(messages, decision, sampling, on_text=show)
    out.data("")
    return answer


def record(row: int | str | None, answer: Answer) -> dict[str, object]:
    """Return the fields of an answer's JSON object; `row` is its id."""
    decision = answer.decision
    return {
        "id": row,
        "answer": answer.text,
        "dispatch": {
            "strategy": decision.strategy,
            "category": decision.category,
            "probabilities": {name: round(p, 6) for name, p in decision.probabilities.items()},
            "weights": dict(decision.weights),
            "abstained": decision.abstained,
        },
        "timing": {
            "dispatch_seconds": round(decision.seconds, 4),
            "first_token_seconds": round(answer.first_token_seconds, 4),
            "answer_seconds": round(answer.answer_seconds, 4),
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
        },
    }


def failure(row: int | str | None, error: T2Error) -> dict[str, object]:
    """Return the fields of the JSON object of a question that has no answer."""
    said = {"code": error.exit_code, "message": error.message, "hint": error.hint}
    return {"id": row, "answer": None, "error": said}


def who(decision: Decision) -> str:
    """Return the experts that answer, or the base model."""
    experts = (reference if alpha == 1 else f"{alpha:g} {reference}" for reference, alpha in decision.weights.items())
    return " + ".join(experts) or "base model"


def explained(decision: Decision) -> str:
    """Return the dispatch line: who answers, and why."""
    if decision.category is None:
        return f"[{who(decision)}]"
    certainty = f"{decision.probabilities.get(decision.category, 0.0):.0%}"
    if decision.below_threshold:
        certainty += f", below {decision.threshold:.0%}"
    # a reference with its weight, as --mix takes it: other than a mix chosen by hand, this one need not add up to one
    experts = (reference if alpha == 1 else f"{reference}:{alpha:g}" for reference, alpha in decision.weights.items())
    return f"[{decision.category} {certainty} -> {' '.join(experts) or who(decision)}]"


class Folded:
    """Prints text as it comes, its white space folded to single spaces and none at the ends."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._begun = False
        self._space = False

    def add(self, text: str) -> None:
        """Print the next piece."""
        for part in text.splitlines(keepends=True) or [text]:
            words = part.split()
            if part[:1].isspace():
                self._space = True
            for index, word in enumerate(words):
                gap = " " if self._begun and (self._space or index) else ""
                self._out.data(gap + word, end="")
                self._begun, self._space = True, False
            if part[-1:].isspace():
                self._space = True
