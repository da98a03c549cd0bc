"""The command `t2`: one table of commands, each imported only when it is asked for.

A new command is a module with a function of Typer parameters, and one row in COMMANDS. Its docstring
is its help; what it imports at module level must stay cheap, for `t2 --help` imports every one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast

import typer
import typer.core
import typer.main

from t2cli import __version__
from t2cli.cli.output import discard, has_no_reader, output_error, render_error, write_stderr, write_stdout
from t2cli.errors import UsageError
from t2cli.lookup import load, near_matches

COMMANDS = {
    "decompose": "t2cli.cli.decompose:decompose",
    "tasks": "t2cli.cli.tasks:tasks",
    "train": "t2cli.cli.train:train",
    "eval": "t2cli.cli.eval:evaluate",
    "reproduce": "t2cli.cli.reproduce:reproduce",
    "curve": "t2cli.cli.curve:curve",
    "list": "t2cli.cli.list:list_experts",
    "show": "t2cli.cli.show:show",
    "diff": "t2cli.cli.diff:diff",
    "mix": "t2cli.cli.mix:mix",
    "copy": "t2cli.cli.copy:copy",
    "rm": "t2cli.cli.rm:rm",
    "verify": "t2cli.cli.verify:verify",
    "push": "t2cli.cli.push:push",
    "pull": "t2cli.cli.pull:pull",
    "export": "t2cli.cli.export:export",
    "import": "t2cli.cli.import_:import_file",
    "chat": "t2cli.cli.chat:chat",
}

EPILOG = (
    "Exit codes: 0 success, 1 failure, 2 usage, 3 not found, 4 incompatible base, "
    "5 corrupt or unsafe artifact, 6 network, 130 interrupted."
)


class Commands(typer.core.TyperGroup):
    """The commands of COMMANDS, imported lazily, with every error rendered in one place."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return the command, or None if there is none of that name."""
        return command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` start with; UsageError with near matches if there is none."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise UsageError(f"there is no command {args[0]!r}", hint=near_matches(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse t2's own options; --help and --version write from here."""
        with errors_rendered():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's options and run it."""
        with errors_rendered():
            return super().invoke(ctx)


class Command(typer.core.TyperCommand):
    """A command whose options are not empty: an unset variable of a shell script must not mean "as you like"."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; UsageError for an option that is given nothing."""
        if not ctx.resilient_parsing:
            takes_text = {name for each in self.params if not getattr(each, "is_flag", True) for name in each.opts}
            for before, word in zip(["", *args], args, strict=False):
                if (word == "" and before in takes_text) or (word.endswith("=") and word[:-1] in takes_text):
                    raise UsageError(f"{before or word[:-1]} is given nothing", hint="give it a value, or leave it out")
        return super().parse_args(ctx, args)


def command(name: str) -> Any:
    """Return the Typer command that COMMANDS names `name`."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, cls=Command)(cast("Callable[..., Any]", load(name, COMMANDS, "command")))
    return typer.main.get_command(single)


@contextlib.contextmanager
def errors_rendered() -> Iterator[None]:
    """Turn whatever the block raises into lines on stderr and an exit code, for tests and users alike.

    A reader of stdout that has gone, as in `t2 list | head -1`, has all it wanted: exit 0, in silence.
    """
    try:
        yield
        write_stdout("")  # flushes what a library printed: a failure here is still ours to render
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError as error:
        # A broken pipe of another kind, such as a connection's, is an error like any other.
        if not has_no_reader(sys.stdout):
            raise typer.Exit(render_error(error)) from error
        discard(sys.stdout)
        raise typer.Exit from error
    except (Exception, KeyboardInterrupt) as error:
        raise typer.Exit(render_error(_named(error))) from error


def _named(error: BaseException) -> BaseException:
    """Return what Typer met when it wrote a help to stdout itself as the error it is."""
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
        return output_error(error)
    return error


app = typer.Typer(
    name="t2",
    cls=Commands,
    rich_markup_mode=None,  # plain help: no boxes, and Rich takes longer to import than all of t2
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)


def print_version(asked: bool) -> None:
    """Print the version and stop, if asked."""
    if asked:
        write_stdout(f"t2 {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def t2(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Self-adaptive language models: tiny experts that rescale a base model's singular values."""
    if ctx.invoked_subcommand is None:
        write_stderr(ctx.get_help())
        raise typer.Exit(UsageError.exit_code)


def main() -> None:
    """Run t2 on the arguments of this process and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks is shown escaped; it never ends the command.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="t2")
