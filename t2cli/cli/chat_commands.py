"""What begins with a slash in a conversation. A new command is one function and one row of COMMANDS."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from t2cli.cli.chat_output import explained, record, streamed, who
from t2cli.dispatch.decision import FEW_SHOT, OTHER
from t2cli.errors import OutputError, T2Error, UsageError
from t2cli.files import disk_error, write_atomic
from t2cli.lookup import near_matches
from t2cli.paths import expanded

if TYPE_CHECKING:
    from t2cli.cli.chat_session import Conversation
    from t2cli.dispatch.decision import Decision

NONE, AUTO = "none", "auto"  # in place of an expert's reference


class Command(NamedTuple):
    """A command: what it does with its argument, how the argument is written ("" if there is none), and its help."""

    run: Callable[[Conversation, str], None]
    argument: str
    help: str


def is_command(line: str) -> bool:
    """Tell whether a line is meant as a command; a path such as /etc/hosts is not."""
    return re.fullmatch(r"/[\w?-]*", line.partition(" ")[0]) is not None


def run(conversation: Conversation, line: str) -> None:
    """Run a line that is a command; what goes wrong is said, and Ctrl-C ends the command only."""
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    try:
        if command is None:
            hint = f"{near_matches(name, COMMANDS)}; /help shows all"
            raise UsageError(f"there is no command {name}", hint=hint)
        if argument.strip() and not command.argument:
            raise UsageError(f"{name} takes no argument")
        command.run(conversation, argument.strip())
    except KeyboardInterrupt:
        conversation.out.say("\n(stopped)")
    except OutputError:
        raise  # nobody could read an answer any more
    except T2Error as error:
        conversation.failed(error)


def expert(conversation: Conversation, reference: str) -> None:
    """Let one expert answer from now on, or nobody, or whom pass 1 chooses; without an argument say who does."""
    if reference == AUTO:
        adapt(conversation, conversation.automatic)
    elif reference == NONE:
        adapt(conversation, NONE)
    elif reference:
        _by_hand(conversation, reference, "")
    else:
        _tell_who(conversation)


def _tell_who(conversation: Conversation) -> None:
    """Say who answers, or who chooses."""
    fixed: Decision | None = getattr(conversation.strategy, "decision", None)
    if fixed is None or fixed.strategy == FEW_SHOT:
        conversation.tell(f"({conversation.automatic} chooses)")
    else:
        conversation.tell(f"({who(fixed) if fixed.weights else 'the base model'} answers)")


def mix(conversation: Conversation, members: str) -> None:
    """Let a mix of experts answer from now on."""
    if not members:
        raise UsageError("/mix names no expert", hint="write it as in /mix math:0.6,reasoning:0.4")
    _by_hand(conversation, "", members)


def _by_hand(conversation: Conversation, reference: str, members: str) -> None:
    from t2cli.cli.chat import by_hand

    two_pass = conversation.two_pass
    strategy = two_pass.by_hand(by_hand(reference, members))
    decision: Decision = strategy.decide([])
    two_pass.z_of(decision.weights)  # what is damaged is refused now
    conversation.strategy = strategy
    conversation.warned()
    conversation.tell(f"({who(decision)} answers)")


def adapt(conversation: Conversation, name: str) -> None:
    """Let a strategy choose from now on, among the experts that there are now; without an argument say who does."""
    if name:
        conversation.strategy = conversation.strategy_of(name)
        if name != NONE:
            conversation.automatic = name
        conversation.warned()
    _tell_who(conversation)


def why(conversation: Conversation, _: str) -> None:
    """Say how the last decision came about."""
    decision = conversation.decision
    if decision is None:
        raise UsageError("nothing was decided yet", hint="ask something first")
    lines = [explained(decision)]
    for name, probability in sorted(decision.probabilities.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:24} {probability:6.1%}")
    if decision.strategy == FEW_SHOT:
        lines.append(f"searched on the examples: {who(decision)}")
    elif decision.category is None:
        lines.append(f"chosen by hand: {who(decision)}" if decision.weights else "nobody chooses: the base model")
    elif decision.abstained:
        lines.append(f"{decision.strategy} found {_no_expert(decision)}: the base model answers")
    elif any(alpha != 1 for alpha in decision.weights.values()):
        rest = 1 - sum(decision.weights.values())
        lines.append(f"{decision.strategy} mixes by probability: {who(decision)}, and the base model with {rest:.2f}")
    else:
        lines.append(f"{decision.strategy} found {decision.category} the likeliest: its expert is {who(decision)}")
    lines.append(f"it took {decision.seconds:.2f} s")
    conversation.tell("\n".join(lines))


def _no_expert(decision: Decision) -> str:
    """Say why pass 1 left a question to the base model."""
    category = decision.category
    if category == OTHER:
        return "no category that the question belongs to"
    if decision.below_threshold:
        certainty = decision.probabilities[category or ""]
        return f"{category} the likeliest, with {certainty:.1%} below the threshold of {decision.threshold:.1%}"
    return f"{category} the likeliest, and there is no expert for it"


def compare(conversation: Conversation, _: str) -> None:
    """Answer the last question once more: the base first, then who answers now. The conversation stays as it is."""
    if conversation.question is None:
        raise UsageError("there is no question to compare answers to", hint="ask something first")
    decision = conversation.decision = conversation.decided(conversation.question)
    plain = conversation.two_pass.strategy(NONE).decide(conversation.question)
    if not decision.weights:
        conversation.tell("(the base model itself answers this question: /expert or /mix chooses another)")
    for choice in (plain, decision) if decision.weights else (plain,):
        if conversation.out.quiet:  # two answers need their names
            conversation.tell(explained(choice))
        answer = streamed(conversation.out, conversation.two_pass, conversation.question, choice, conversation.sampling)
        conversation.out.emit("chat", record(None, answer))


def save(conversation: Conversation, file: str) -> None:
    """Write the conversation into a file, one message per line; another's file is not overwritten."""
    if not file:
        raise UsageError("/save needs the name of a file", hint="/save talk.jsonl")
    if not conversation.messages:
        raise UsageError("nothing was said yet", hint="ask something first")
    path = expanded(file)
    try:
        taken = path.exists() and path.resolve() not in conversation.saved
    except OSError as error:  # a name too long, or a folder that may not be read
        raise disk_error(path, error) from error
    if taken:
        raise UsageError(f"{path} is there already", hint="choose another name")
    write_atomic(path, "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in conversation.messages))
    conversation.saved.add(path.resolve())
    conversation.tell(f"({len(conversation.messages)} messages saved in {path})")


def reset(conversation: Conversation, _: str) -> None:
    """Begin a new conversation."""
    conversation.reset()
    conversation.tell("(a new conversation)")


def end(conversation: Conversation, _: str) -> None:
    """End the session."""
    conversation.ended = True


def show_help(conversation: Conversation, _: str) -> None:
    """Show all commands."""
    written = {f"{name} {command.argument}".strip(): command.help for name, command in COMMANDS.items()}
    width = max(map(len, written))
    conversation.tell("\n".join(f"{name:{width}}  {text}" for name, text in written.items()))


COMMANDS = {
    "/expert": Command(expert, "REF|none|auto", "answer as this expert, as the base model, or as pass 1 chooses"),
    "/mix": Command(mix, "A:0.6,B:0.4", "answer as this mix of experts"),
    "/adapt": Command(adapt, "STRATEGY", "let this strategy choose the experts"),
    "/why": Command(why, "", "how the last decision came about"),
    "/compare": Command(compare, "", "the last question again: the base's answer, then the adapted one"),
    "/save": Command(save, "FILE", "the conversation as JSON, one message per line"),
    "/reset": Command(reset, "", "a new conversation"),
    "/help": Command(show_help, "", "these lines"),
    "/exit": Command(end, "", "end the session, as Ctrl-D does"),
}
