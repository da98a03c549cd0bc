"""The code in what a model wrote: in fences, among prose, or what goes on with a function's beginning."""

from __future__ import annotations

import ast
import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.tasks.unit_tests import Suite

# A fence ends at the indentation that it begins with: a docstring may hold a fence of its own.
_FENCE = re.compile(r"^([ \t]*)```[ \t]*[\w+-]*[^\n]*\n(.*?)(?:^\1```|\Z)", re.MULTILINE | re.DOTALL)
_CODE_BEGINS = re.compile(r"^(?:def|class|import|from|async def|@)\b|^@", re.MULTILINE)
_CODE_LINE = re.compile(r"\s|$|def\b|class\b|import\b|from\b|async def\b|[@)\]}#]|\w+\s*=[^=]")


def extract_code(completion: str, suite: Suite) -> str:
    """Return the code of a completion, or nothing when it holds none.

    It is the first fenced block that defines the entry (or anything, where the suite names none), with the blocks
    of imports before it; else what looks like code without a fence: all of it where that is Python, or from the
    first definition or import to the first line that is prose. Where the suite has a prefix, code that does not
    define the entry goes on with it: a block that lost the indentation of a function's body is indented, anything
    else ends at the first line that is not indented.
    """
    entry = rf"{re.escape(suite.entry)}\b" if suite.entry else ""
    defines = re.compile(rf"^\s*(?:async\s+)?def\s+{entry}", re.MULTILINE)
    blocks = [textwrap.dedent(body) for _, body in _FENCE.findall(completion)]
    place = next((i for i, block in enumerate(blocks) if defines.search(block)), 0)
    chosen = "\n".join([*filter(_imports, blocks[:place]), blocks[place]]) if blocks else None
    if chosen is not None and (not suite.prefix or defines.search(chosen)):
        return f"{suite.prefix}\n{chosen}" if suite.prefix else chosen
    text = completion if chosen is None else chosen
    if suite.prefix and not defines.search(text):
        is_body = chosen is not None and _is_body(chosen)
        return suite.prefix + (textwrap.indent(text, "    ") if is_body else _continuation(text))
    if (begins := _CODE_BEGINS.search(text)) is None:
        return ""
    if _parsed(text) is not None:  # all of it is code: nothing has to be told from prose
        return f"{suite.prefix}\n{text}" if suite.prefix else text
    lines = []
    for line in text[begins.start() :].splitlines():
        if not _CODE_LINE.match(line):
            break
        lines.append(line)
    return "\n".join([suite.prefix, *lines]) if suite.prefix else "\n".join(lines)


def _parsed(text: str) -> ast.Module | None:
    """Return a text as Python, None where it is none as it stands."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _imports(block: str) -> bool:
    """Tell whether a block holds imports alone, which a later one needs."""
    tree = _parsed(block)
    return tree is not None and all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)


_OPENS = re.compile(r"[:,(\[{\\]\s*(?:#.*)?$")


def _is_body(block: str) -> bool:
    """Tell whether a block is a function's body that lost its indentation, and not only that of its first line."""
    lines = [line for line in block.splitlines() if line.strip()]
    depths = [len(line) - len(line.lstrip()) for line in lines]
    if not lines or depths[0] > 0:
        return False
    if len(lines) == 1 or depths[1] == 0:
        return True
    # What is indented below an open line may still be the rest of a body, where a later line goes back half-way.
    is_cut = lines[0].rstrip().endswith(":") and any(0 < depth < depths[1] for depth in depths)
    return _OPENS.search(lines[0]) is not None and not is_cut


def _continuation(text: str) -> str:
    """Return the indented lines that `text` begins with; its first line may have lost its indentation."""
    lines = text.rstrip().strip("\n").splitlines()
    if lines and not lines[0].startswith((" ", "\t")):
        rest = [line for line in lines[1:] if line.strip()]
        if rest and not any(line.startswith((" ", "\t")) for line in rest):
            lines = [f"    {line}" for line in lines]
        elif lines[0]:
            lines[0] = f"    {lines[0]}"
    kept = []
    for line in lines:
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept) + "\n"
