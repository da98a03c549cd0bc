"""A reward of the user's own: imported from where the user is, checked, and every mistake told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.errors import NotFoundError, T2Error, UsageError
from t2cli.files import sha256_of
from t2cli.tasks.base import SpecTask, load_task, origin
from t2cli.tasks.own_reward import OwnReward, is_changed, locate_reward
from t2cli.tasks.sampling import split_of

Load = Callable[..., OwnReward]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that writes a module and loads its reward as --reward would, in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(code: str, given: str = "mine:reward", file: str = "mine.py") -> OwnReward:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(code)
        return OwnReward.load(locate_reward(given))

    return make


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        *(("True", 1.0), ("False", -1.0), ("0.25", 0.25), ("0", 0.0), ("-1", -1.0)),
        ("__import__('numpy').bool_(0)", -1.0),
        ("__import__('torch').tensor(False)", -1.0),
        ("__import__('torch').tensor(0.5)", 0.5),
    ],
)
def test_truth_values_and_numbers_are_rewards(returned: str, value: float, load: Load) -> None:
    assert load(f"def reward(answer, completion): return {returned}").reward("a", "b") == value


@pytest.mark.parametrize("returned", ["None", "2", "-1.5", "float('nan')", "'1'", "[1]", "10 ** 400"])
def test_anything_else_is_told(returned: str, load: Load) -> None:
    with pytest.raises(T2Error, match="the reward mine:reward returned") as error:
        load(f"def reward(answer, completion): return {returned}").reward("a", "b")
    assert "from -1 to 1" in error.value.hint


def test_an_error_in_it_names_class_and_question(load: Load) -> None:
    with pytest.raises(T2Error, match="the reward mine:reward failed with ZeroDivisionError") as error:
        load("def reward(answer, completion): return 1 / 0").reward("the answer", "said")
    assert "'the answer'" in error.value.hint


def test_one_that_ends_python_is_told(load: Load) -> None:
    with pytest.raises(T2Error, match="failed with SystemExit"):
        load("def reward(answer, completion): raise SystemExit(0)").reward("a", "b")


@pytest.mark.parametrize(
    ("code", "given", "kind", "said"),
    [
        ("", "mine:reward", NotFoundError, "mine has no function reward"),
        ("", "gone:reward", NotFoundError, "no module gone in"),
        ("", "gone.deep:reward", NotFoundError, r"no module gone\.deep in"),
        ("", "gone.py:reward", NotFoundError, r"no file gone\.py"),
        ("import gone_too", "mine:reward", T2Error, "mine needs the module gone_too"),
        ("def", "mine:reward", T2Error, "importing mine failed with SyntaxError"),
        ("1 / 0", "mine:reward", T2Error, "importing mine failed with ZeroDivisionError"),
        ("raise SystemExit(0)", "mine:reward", T2Error, "mine ends Python when it is imported"),
        ("def reward(a): return True", "mine:reward", UsageError, "cannot be called with two texts"),
        ("reward = 3", "mine:reward", UsageError, "cannot be called with two texts"),
        ("", "mine", UsageError, "write it as MODULE:FUNCTION"),
        ("", "mine:", UsageError, "write it as MODULE:FUNCTION"),
        ("", ":reward", UsageError, "write it as MODULE:FUNCTION"),
        ("", "mine:a.b", UsageError, "write it as MODULE:FUNCTION"),
    ],
)
def test_what_cannot_be_used_is_told(code: str, given: str, kind: type[T2Error], said: str, load: Load) -> None:
    with pytest.raises(kind, match=said) as error:
        load(code, given)
    assert error.value.hint


def test_it_is_found_by_name_path_and_package_and_may_import_its_neighbours(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "neighbour.py").write_text("YES = True")
    code = "from neighbour import YES\ndef reward(answer, completion): return YES"
    assert load(code).reward("", "") == 1.0
    assert load(code, "random:reward", file="random.py").reward("", "") == 1.0  # not the standard library's
    assert load(code, "pack.inside:reward", file="pack/inside.py").reward("", "") == 1.0
    place = locate_reward("pack/inside.py:reward")
    file = tmp_path / "pack" / "inside.py"
    assert place == {"name": "inside:reward", "folder": str(file.parent), "sha256": sha256_of(file)}
    monkeypatch.chdir("/")
    assert OwnReward.load(place).reward("", "") == 1.0
    assert not is_changed(place)
    file.write_text(code.replace("YES\n", "YES  # really\n"))
    assert is_changed(place)
    assert not is_changed({"name": "math:sqrt", "folder": "/"})  # installed: not known


def test_a_task_judged_by_it_takes_any_answer(load: Load, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "Name a colour", "answer": "blue, red"}\n')
    (tmp_path / "own.yaml").write_text(
        "name: own\ncategory: own\ndescription: mine\nmax_new_tokens: 8\nanswer: {kind: number}\n"
        "source: {kind: jsonl, file: q.jsonl}\n"
    )
    judge = load("def reward(answer, completion): return completion in answer.split(', ')")
    task = load_task(str(tmp_path / "own.yaml"), reward=judge)
    assert isinstance(task, SpecTask)
    (example,) = task.examples(split_of("Name a colour"), 1, 0)
    assert [task.reward(example, said) for said in ("blue", "red", "green")] == [1.0, 1.0, -1.0]
    assert origin(task)["reward"] == "mine:reward"
