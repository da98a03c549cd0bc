"""The settings of a run survive the manifest, and what a manifest cannot say is said."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.config import PRESETS, TRAINER_DEFAULTS, TrainConfig
from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.paths import shipped_registry
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import TrainingRecord
from t2cli.training.recorded import may_be, settings_of


def record(config: TrainConfig, **changes: object) -> TrainingRecord:
    """Return the record that a run with `config` leaves, with some of its settings changed."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("preset", "seed")}
    versions = {"t2cli": "0.0.9"}
    return TrainingRecord(
        "task", config.preset, {**settings, "best_step": 3, **changes}, config.seed, 3, 1.0, "cpu", versions
    )


@given(st.integers(1, 99), st.floats(0, 1, allow_subnormal=False), st.sampled_from(["all", "mlp"]), st.integers(0, 9))
def test_settings_survive_the_record(steps: int, rate: float, selection: str, seed: int) -> None:
    config = TrainConfig(steps=steps, learning_rate=rate, selection=selection, seed=seed)
    assert settings_of(record(config), "x") == (config, {})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_survives_the_record(name: str) -> None:
    assert settings_of(record(PRESETS[name]), "x") == (PRESETS[name], {})


@pytest.mark.parametrize(
    "missing", [field.name for field in fields(TrainConfig) if field.name not in ("preset", "seed")]
)
def test_a_missing_setting_does_nothing_or_is_todays_default_and_is_named(missing: str) -> None:
    full = record(TrainConfig())
    older = replace(full, config={key: value for key, value in full.config.items() if key != missing})
    idle = {"rounds": 1, "stuck": 0, "max_relative_step": 0, "retries": 0}
    value = idle.get(missing, getattr(TrainConfig(), missing))
    config, defaults = settings_of(older, "x")
    assert config == replace(TrainConfig(), **{missing: value})
    assert defaults == {missing: value}


def test_unknown_settings_are_named_with_the_version_that_wrote_them() -> None:
    with pytest.raises(T2Error, match=r"math@1 .*: elite, temper") as caught:
        settings_of(record(TrainConfig(), temper=8, elite=0.5), "math@1")
    assert "0.0.9" in caught.value.hint


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("steps", value) for value in (1.5, True, None, 0, -1)),
        *(("learning_rate", value) for value in ("fast", -1e-3)),
        *[("selection", 3), ("group", [4]), ("group", 0), ("warmup_steps", -1)],
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: str, value: object) -> None:
    with pytest.raises(CorruptArtifactError, match=rf"math@1: training\.config\.{setting}"):
        settings_of(record(TrainConfig(), **{setting: value}), "math@1")


def test_a_float_may_be_written_as_an_int() -> None:
    assert settings_of(record(TrainConfig(), temperature=1), "x").config.temperature == 1


@pytest.mark.parametrize(
    ("value", "declared", "fits"),
    [
        *((value, bool, isinstance(value, bool)) for value in (True, 1, "x", None)),
        *((value, int | None, value in (1, None)) for value in (1, None, 1.5, "x")),
        *((value, Optional[str], value in ("x", None)) for value in (1, None, "x")),  # noqa: UP045
        *((value, Union[int, tuple[str, ...]], value != "x") for value in (1, ("x",), "x")),  # noqa: UP007
        *((value, Literal["a", "b"], value == "a") for value in ("a", "c", 1)),
    ],
)
def test_a_setting_may_be_declared_in_any_of_these_ways(value: object, declared: object, fits: bool) -> None:
    assert may_be(value, declared) is fits


def test_the_experts_that_ship_say_how_they_were_trained() -> None:
    entries = {entry.manifest.name: entry for entry in LocalRegistry([Path(shipped_registry())]).list()}
    labels = {"trainer": "labels", **TRAINER_DEFAULTS["labels"], "rounds": 1, "stuck": 0.0}  # it samples nothing
    for name, changes in (("math", {"steps": 100}), ("reasoning", {}), ("code", {}), ("dispatch", labels)):
        training = entries[name].manifest.training
        assert training is not None
        assert settings_of(training, name).config == replace(TrainConfig(), **changes)


def test_a_setting_that_came_later_does_nothing() -> None:
    entries = LocalRegistry([Path(shipped_registry())])
    training = entries.find("reasoning@2").manifest.training
    assert training is not None
    settings = settings_of(training, "reasoning@2")
    assert settings.config.rounds == settings.defaults["rounds"] == 1


def test_settings_that_do_not_go_together_are_refused() -> None:
    for changes in ({"group": 1}, {"trainer": "genetic"}, {"adapter": "lora"}):
        with pytest.raises(CorruptArtifactError, match=r"math@1: training\.config cannot be"):
            settings_of(record(TrainConfig(), **changes), "math@1")
