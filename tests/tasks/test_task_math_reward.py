"""The reward `math`: what means the same is right, many answers are not, and no answer can hang or break it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from t2cli.errors import T2Error
from t2cli.tasks import math_reward
from t2cli.tasks.math_worker import final, plain


def test_without_math_verify_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_reward.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(math_reward, "_judge", math_reward._Judge())
    with pytest.raises(T2Error, match="math-verify, which is not installed") as error:
        math_reward.math("1", "1")
    assert "t2cli[tasks]" in error.value.hint


@pytest.mark.parametrize(
    ("completion", "formula"),
    [
        (r"First $x$, so $y = \frac{1}{2}$.", r"\frac{1}{2}"),
        (r"$1$ and \boxed{\sqrt{2}} or $3$", r"\sqrt{2}"),
        (r"\boxed{1", ""),
        (r"So \[x = 3\]", "3"),
        (r"So \(x\)", "x"),
        ("Reasons.\nThe answer is **7**.", "7"),
        ("Answer: x^2", "x^2"),
        ("**Answer:** 7", "7"),
        ("The ratio is 3:4", "3:4"),
        ("It is 12:30.", "12:30"),
        ("So $ x = 3 $.", "3"),
        ("So $x = 3 $.", "3"),
        ("The total is $10.", "10"),
        ("It costs $5 and I pay with $20, so the change is $15", "15"),
        ("A cup costs $ 5 and a plate $ 10. The sum is 15", "15"),
        ("Each costs $5, so $n$ cost $10.", "n"),
        ("", ""),
    ],
)
def test_a_completion_commits_to_its_last_formula(completion: str, formula: str) -> None:
    assert final(completion) == formula


def test_marks_without_meaning_are_passed_over() -> None:
    assert plain(r"\left( 3, \dfrac{1}{2} \right)") == plain(r"(3,\frac{1}{2})")
    assert plain(r"\text{Evelyn}") == "Evelyn"
    assert plain("ab") != plain("ba")


class TestWithMathVerify:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("math_verify", reason="the extra [tasks] is not installed")

    @pytest.mark.parametrize(
        ("answer", "completion"),
        [
            (r"\frac{1}{2}", "0.5"),
            (r"\frac{1}{2}", r"The answer is $\frac{2}{4}$."),
            (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
            ("p - q", r"\boxed{-q+p}"),
            (r"\text{Evelyn}", "It is Evelyn."),
            ("x^2+2x+1", "$(x+1)^2$"),
            (r"3\sqrt{13}", r"$\sqrt{117}$"),
            (r"90^\circ", "90"),
            (r"\$18.90", "18.90"),
            ("11,111,111,100", "$11111111100$"),
            ("y = 2x + 3", r"\boxed{y = 3 + 2x}"),
            (r"(-\infty, 2)", r"$(-\infty,2)$"),
            ("6", "6 cm"),
            ("10", "Each costs $5, so two cost $10."),
            ("3:4", "The ratio is 3:4"),
        ],
    )
    def test_what_means_the_same_is_right(self, answer: str, completion: str) -> None:
        assert math_reward.math(answer, completion)

    @pytest.mark.parametrize(
        ("answer", "completion"),
        [
            (r"\frac{1}{2}", "0.4"),
            ("2", "$1, 2, 3$"),
            ("2", "$2$, no: $3$"),
            ("2", r"\boxed{2}, no: \boxed{3}"),
            ("2", r"$\{1, 2, 3\}$"),
            ("2", ""),
            ("2", "two"),
            ("5", "Each costs $5, so two cost $10."),
            ("4", "The ratio is 3:4"),
            (r"\text{Evelyn}", "Evelyn or Carla"),
            ("(1, 2)", "(2, 1)"),
        ],
    )
    def test_anything_else_is_wrong(self, answer: str, completion: str) -> None:
        assert not math_reward.math(answer, completion)

    @pytest.mark.parametrize(
        ("question", "answer"),
        [
            (r"Compute $\dbinom{8}{4}$.", "70"),
            ("Evaluate $(1+2i)6-3i$.", "6+9i"),
            (r"Simplify $\sqrt{180}$.", r"6\sqrt{5}"),
            ("Expand $(x+2)(x-3)$.", "x^2-x-6"),
            ("Factor $x^2-1$.", "(x-1)(x+1)"),
            (r"What is $\frac{6}{4}$ in lowest terms times $\frac{1}{3} + 1$?", "2"),
        ],
    )
    def test_the_question_is_no_answer_to_itself(self, question: str, answer: str) -> None:
        formula = question.split("$")[-2]
        for completion in (question, f"${formula}$", rf"\boxed{{{formula}}}", rf"\boxed{{\left({formula}\right)}}"):
            if completion != rf"\boxed{{\left({formula}\right)}}" or answer.isdigit():
                assert not math_reward.math(answer, completion, [question]), completion
        assert math_reward.math(answer, rf"It is $\boxed{{{answer}}}$.", [question])

    def test_a_number_must_be_worked_out_and_not_otherwise_written(self) -> None:
        for calculation in ("1+2+3+4", r"2 \cdot 5", "20-10", r"\binom{5}{2}", "(5)(2)", "5 * 2"):
            assert not math_reward.math("10", rf"\boxed{{{calculation}}}", ["How many?"]), calculation
        for number in ("10", "10.0", r"\frac{20}{2}", r"10\text{ cm}", r"10^\circ"):
            assert math_reward.math("10", rf"\boxed{{{number}}}", ["Of 10 birds, how many?"]), number

    HOSTILE = (
        "$9^{9^{9^{9}}}$",
        "$2^{1000000000000}$",
        "$(10^{9})!$",
        r"\boxed{" + "(" * 3000 + "2" + ")" * 3000 + "}",
        "$" + "{" * 4000 + "}" * 4000 + "$",
        "$" + "x^" * 3000 + "2$",
        "\x00\ud800$2$\x00",
        "$" * 20_000,
        "1" * 10_000_000,
    )

    @pytest.mark.parametrize("completion", HOSTILE, ids=range(len(HOSTILE)))
    def test_a_hostile_answer_is_wrong_soon_and_the_next_one_is_judged(self, completion: str) -> None:
        assert math_reward.math("2", "$2$")  # the worker is there
        began = time.monotonic()
        assert not math_reward.math("3", completion)
        assert time.monotonic() - began < math_reward.SECONDS + 2
        assert math_reward.math("2", "$2$")

    def test_a_worker_that_takes_too_long_is_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert math_reward.math("2", "$2$")
        process = math_reward._judge._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(math_reward, "SECONDS", 0.3)
        assert not math_reward.math("2", "$2$")
        assert process.poll() is not None
        monkeypatch.undo()
        assert math_reward.math("2", "$2$")

    def test_a_worker_that_died_is_replaced(self) -> None:
        assert math_reward.math("2", "$2$")
        process = math_reward._judge._process
        assert process is not None
        process.kill()
        process.wait()
        assert math_reward.math("2", "$2$")

    def test_threads_take_turns(self) -> None:
        verdicts: dict[int, bool] = {}

        def ask(i: int) -> None:
            verdicts[i] = math_reward.math(str(i), f"${i if i % 2 else i + 1}$")

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert verdicts == {i: bool(i % 2) for i in range(20)}

    def test_alarms_of_this_process_are_left_alone(self) -> None:
        before = signal.getsignal(signal.SIGALRM)
        math_reward.math("2", "$2$")
        assert signal.getsignal(signal.SIGALRM) is before
