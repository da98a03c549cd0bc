"""Checks of the package's source, read without running it: each is a function from sources to a list of problems."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

# Lowest first: a file imports from its own group and from those before it. Evaluation ranks before
# training, for training ends with an evaluation. `t2cli` itself holds nothing but the version.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("", "errors", "config", "lookup", "paths", "files"),
    ("svf",),
    ("models",),
    ("registry",),
    ("tasks",),
    ("evaluation",),
    ("training",),
    ("dispatch",),
    ("export",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(GROUPS) for name in names}

# Loaded by `t2 --help` and `t2 list`, which must be instant.
LIGHT = ("t2cli.registry", "t2cli.cli", "t2cli.tasks", "t2cli.models.catalog")
HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors"}

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_NAMES = {"torch.load", "torch.serialization.load", "torch.jit.load"}
UNSAFE_NAMES |= {"yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader", "yaml.FullLoader"}
# The files of the paper's code are pickles: this module alone may call torch.load, and only with weights_only=True.
READS_WEIGHTS = "t2cli.export.reference_checkpoint"

# Programs whose text an interpreter in the sandbox runs: they run code, and no other module may import them.
RUN_IN_SANDBOX = "t2cli.tasks.sandboxed."

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50

TABLE_ENTRY = r"t2cli(\.\w+)+:\w+"  # what lookup.load imports

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|work|home/[\w.-]+|Users/[\w.-]+)/")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi\.(?:org|python\.org)|pythonhosted\.org|download\.pytorch\.org|anaconda\.(?:org|com)|npmjs\.(?:org|com))"
)

Sources = Mapping[str, str]  # a module's dotted name -> its text


class Import(NamedTuple):
    """One name that a module imports: "torch.nn", "t2cli.svf.basis.Basis"."""

    line: int
    name: str


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """Yield every node below `tree`; with `at_import` only those that importing the module runs."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from statements(other, at_import=True)
            continue
        yield node
        yield from statements(node, at_import=at_import)


def imports(text: str, *, at_import: bool = False) -> Iterator[Import]:
    """Yield what a module imports; without `at_import` also lazily, for types, and in tables of names."""
    for node in statements(ast.parse(text), at_import=at_import):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (Import(node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif not at_import and isinstance(node, ast.Constant) and re.fullmatch(TABLE_ENTRY, str(node.value)):
            yield Import(node.lineno, str(node.value).replace(":", "."))


def layer_problems(sources: Sources) -> list[str]:
    """Find imports from a later group, of a group that has no rank, and relative ones, which hide both."""
    problems = []
    for module, text in sources.items():
        group = module.removeprefix("t2cli").lstrip(".").split(".")[0]
        if group not in RANK:
            problems.append(f"{module}: {group!r} has no place in GROUPS")
            continue
        for line, name in imports(text):
            if name.startswith("."):
                problems.append(f"{module}:{line} imports {name}: write it in full")
            elif name.split(".")[0] == "t2cli":
                other = name.split(".")[1] if "." in name else ""
                # `from t2cli import __version__` names no group: it is the package itself.
                if RANK.get(other, 0 if name.count(".") == 1 else len(GROUPS)) > RANK[group]:
                    problems.append(f"{module}:{line} imports {name}, which is above it")
    return problems


def svf_problems(sources: Sources) -> list[str]:
    """Find what svf imports besides torch, numpy's linear algebra, the standard library and itself."""
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    return [
        f"{module}:{line} imports {name}"
        for module, text in sources.items()
        if module.startswith("t2cli.svf")
        for line, name in imports(text)
        if name.split(".")[0] not in allowed and not name.startswith("t2cli.svf.")
    ]


def heavy_problems(sources: Sources) -> list[str]:
    """Find heavy imports that run when a light module is imported, in it or in a module it imports."""
    problems = []
    for module in sources:
        if not any(module == light or module.startswith(f"{light}.") for light in LIGHT):
            continue
        todo, seen = [module], set()
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen.add(current)
            for line, name in imports(sources[current], at_import=True):
                if name.split(".")[0] in HEAVY:
                    problems.append(f"{module} imports {name.split('.')[0]} (in {current}:{line})")
                parts = name.split(".")
                todo += [known for end in range(1, len(parts) + 1) if (known := ".".join(parts[:end])) in sources]
    return problems


def size_problems(sources: Sources) -> list[str]:
    """Find files over 300 lines and functions over 50."""
    problems = []
    for module, text in sources.items():
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            problems.append(f"{module}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(f"{module}.{node.name}: {length} lines")
    return problems


def unsafe_problems(sources: Sources) -> list[str]:
    """Find what can run code that comes from a file or from the Hub."""
    problems = []
    for module, text in sources.items():
        tree = ast.parse(text)
        for line, name in imports(text):
            if f"{name}.".startswith(RUN_IN_SANDBOX) or name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_NAMES:
                problems.append(f"{module}:{line} imports {name}")
        allowed = [node.func for node in ast.walk(tree) if module == READS_WEIGHTS and loads_weights_only(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_NAMES and node not in allowed:
                problems.append(f"{module}:{node.lineno} uses {ast.unparse(node)}")
            elif isinstance(node, ast.Call):
                found = unsafe_call(node, tree, runs_code=module.startswith(RUN_IN_SANDBOX))
                problems += [f"{module}:{node.lineno} {problem}" for problem in found]
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and not is_false(value):
                        problems.append(f"{module}:{node.lineno} trusts remote code")
    return problems


def loads_weights_only(node: ast.AST) -> TypeGuard[ast.Call]:
    """Tell whether a node is a call torch.load(..., weights_only=True) that nothing can make another."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "torch.load":
        return False
    given = {word.arg: word.value for word in node.keywords}  # arg is None for **mapping
    only = given.get("weights_only")
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    literal = isinstance(only, ast.Constant) and only.value is True
    return literal and len(node.args) == 1 and not starred and given.keys() <= {"map_location", "weights_only"}


def unsafe_call(node: ast.Call, tree: ast.Module, *, runs_code: bool = False) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called.removeprefix("builtins.") in {"eval", "exec"} and not runs_code:
        yield f"calls {called}"
    if any(word.arg == "trust_remote_code" and not is_false(word.value) for word in node.keywords):
        yield "trusts remote code"
    if called in {"yaml.load", "yaml.load_all"}:
        loaders = [ast.unparse(word.value) for word in node.keywords if word.arg == "Loader"]
        loaders += [ast.unparse(argument) for argument in node.args[1:2]]
        # A loader defined in the same file is as safe as what it extends.
        bases = {
            item.name: ast.unparse(item.bases[0])
            for item in ast.walk(tree)
            if isinstance(item, ast.ClassDef) and item.bases
        }
        if not loaders or not bases.get(loaders[0], loaders[0]).endswith("SafeLoader"):
            yield f"calls {called} without a safe loader"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def leak_problems(texts: Mapping[str, str]) -> list[str]:
    """Find absolute paths of somebody's machine and hosts of package registries."""
    return [
        f"{name}:{number}: {match.group()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern in (MACHINE_PATH, REGISTRY_HOST)
        for match in pattern.finditer(line)
    ]


CHECKS = (layer_problems, svf_problems, heavy_problems, size_problems, unsafe_problems)
