"""A reward of the user's own, `t2 train --reward mymodule:function`: any Python function of answer and completion.

Its code is run because the user asks for it by name; a task file, which may be somebody else's, cannot ask for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from t2cli.errors import NotFoundError, T2Error, UsageError
from t2cli.files import sha256_of
from t2cli.paths import expanded

if TYPE_CHECKING:
    from t2cli.tasks.spec import TaskSpec

_NAME = re.compile(r"(?P<module>[^:]+):(?P<function>[A-Za-z_]\w*)")
SHAPE = "def reward(answer: str, completion: str) -> bool"


def locate_reward(text: str) -> dict[str, str]:
    """Return {"name": "module:function", "folder": where it is imported from} for what `--reward` was given.

    With "sha256" of the module's file, where it lies in that folder.
    `text` is module:function, the module in the current folder or installed, or path/to/file.py:function.
    Raises UsageError for text of another shape and NotFoundError for a file that is not there.
    """
    # On Windows a path may begin with a drive and a colon; the function comes after the last one.
    place, _, function = text.rpartition(":")
    if not place or not _NAME.fullmatch(f"x:{function}"):
        raise UsageError(
            f"--reward {text}: write it as MODULE:FUNCTION or FILE.py:FUNCTION", hint="for example mymodule:reward"
        )
    if not place.endswith(".py"):
        return _signed({"name": f"{place}:{function}", "folder": str(Path.cwd())})
    path = expanded(place).resolve()
    if not path.is_file():
        raise NotFoundError(f"--reward: there is no file {place}", hint="give the path of a Python file")
    return _signed({"name": f"{path.stem}:{function}", "folder": str(path.parent)})


def _signed(place: dict[str, str]) -> dict[str, str]:
    file = _file_of(place)
    return {**place, "sha256": sha256_of(file)} if file.is_file() else place


def _file_of(place: Mapping[str, str]) -> Path:
    return Path(place["folder"], f"{place['name'].rpartition(':')[0]}.py")


def is_changed(place: Mapping[str, str]) -> bool:
    """Tell whether the code of a reward is other than when `locate_reward` looked, as far as that is known."""
    file = _file_of(place)
    return "sha256" in place and file.is_file() and sha256_of(file) != place["sha256"]


@dataclass(frozen=True)
class OwnReward:
    """A user's function and its name, "module:function"."""

    name: str
    function: Callable[[str, str], object]

    @classmethod
    def load(cls, place: Mapping[str, str]) -> OwnReward:
        """Import the function that `locate_reward` named.

        Raises NotFoundError where there is no such module or function, T2Error where the module fails, and
        UsageError for what cannot be called with two arguments.
        """
        name = place["name"]
        module_name, _, attribute = name.rpartition(":")
        module = _imported(module_name, Path(place["folder"]))
        function = getattr(module, attribute, None)
        if function is None:
            raise NotFoundError(
                f"--reward: the module {module_name} has no function {attribute}", hint=f"it needs `{SHAPE}`"
            )
        try:
            inspect.signature(function).bind("answer", "completion")
        except (TypeError, ValueError) as error:
            raise UsageError(f"--reward: {name} cannot be called with two texts: {error}", hint=SHAPE) from error
        return cls(name, function)

    def reward(self, answer: str, completion: str) -> float:
        """Return the reward in [-1, 1]: 1 or -1 for a truth value. Raises T2Error for what the function does wrong."""
        try:
            value = self.function(answer, completion)
        except (Exception, SystemExit) as error:
            raise T2Error(
                f"the reward {self.name} failed with {type(error).__name__}: {error}",
                hint=f"it was asked about the answer {answer!r:.40} and {completion!r:.40}; T2_DEBUG=1 shows where",
            ) from error
        if str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):  # numpy's and torch's truth values are no bool
            value = bool(value)
        if isinstance(value, bool):
            return 1.0 if value else -1.0
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, str | bytes) or not -1.0 <= number <= 1.0:
            raise T2Error(
                f"the reward {self.name} returned {value!r:.80}", hint="return True, False or a number from -1 to 1"
            )
        return number


def _imported(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # and it stays: the function may import its neighbours when it is called
    own = folder / f"{name}.py"
    try:
        if own.is_file():  # by its path: it may be called like another module, random.py
            spec = importlib.util.spec_from_file_location(f"t2_reward_{name}", own)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".")[0] == error.name.split(".")[0]:
            raise NotFoundError(
                f"--reward: there is no module {name} in {folder}, and none installed",
                hint="run t2 where the module is, or give the path of its file: FILE.py:FUNCTION",
            ) from error
        raise T2Error(f"--reward: {name} needs the module {error.name}", hint="install it") from error
    except SystemExit as error:
        raise T2Error(
            f"--reward: {name} ends Python when it is imported",
            hint="put what it does as a script under `if __name__ == '__main__':`",
        ) from error
    except Exception as error:
        raise T2Error(
            f"--reward: importing {name} failed with {type(error).__name__}: {error}", hint="T2_DEBUG=1 shows where"
        ) from error


def judged_by_own(spec: TaskSpec) -> TaskSpec:
    """Return the task with no rule of its own, so that its answers may be any text."""
    from t2cli.tasks.spec import AnswerSpec

    return replace(spec, mixture=tuple(replace(row, answer=AnswerSpec("own")) for row in spec.mixture))
