"""The reasoning-gym source: its stream, its silence, and what it says when something is amiss."""

from __future__ import annotations

import itertools
import sys

import pytest

from t2cli.errors import NotFoundError, T2Error
from t2cli.tasks import reasoning_gym as source


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(T2Error, match="not installed") as error:
        next(source.items("chain_sum", {}, 0))
    assert error.value.hint == 'pip install "t2cli[tasks]" (building it needs a C compiler)'


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

    def test_item_i_is_made_with_seed_plus_i_across_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = list(itertools.islice(source.items("chain_sum", {}, 7), 30))
        monkeypatch.setattr(source, "_BLOCK", 10)
        assert list(itertools.islice(source.items("chain_sum", {}, 7), 30)) == whole
        assert list(itertools.islice(source.items("chain_sum", {}, 8), 29)) == whole[1:]

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        list(itertools.islice(source.items("bf", {}, 0), 5))
        assert capfd.readouterr().out == ""

    def test_an_unknown_data_set_has_near_matches(self) -> None:
        with pytest.raises(NotFoundError, match="no data set of reasoning-gym named 'chain_sums'") as error:
            next(source.items("chain_sums", {}, 0))
        assert "chain_sum" in error.value.hint

    @pytest.mark.parametrize("config", [{"terms": 2}, {"min_terms": -1}, {"min_terms": "many"}])
    def test_a_refused_configuration_is_said(self, config: dict[str, str | int]) -> None:
        with pytest.raises(T2Error, match="chain_sum refuses its configuration"):
            next(source.items("chain_sum", config, 0))

    def test_words_name_the_members_of_enums(self) -> None:
        (question, answer), *_ = itertools.islice(source.items("word_sorting", {"transformation": "uppercase"}, 0), 1)
        assert answer == answer.upper() != question
        with pytest.raises(T2Error, match="word_sorting refuses its configuration: 'loud'"):
            next(source.items("word_sorting", {"transformation": "loud"}, 0))

    def test_questions_without_one_right_answer_are_refused(self) -> None:
        with pytest.raises(T2Error, match="without a single right answer"):
            next(source.items("propositional_logic", {}, 0))
