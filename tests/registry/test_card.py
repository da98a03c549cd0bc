from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import yaml
from huggingface_hub import ModelCard

from t2cli.registry.card import model_card
from t2cli.registry.manifest import ExpertManifest


def test_the_hub_understands_the_front_matter(manifest: ExpertManifest) -> None:
    data: Any = ModelCard(model_card(manifest)).data
    assert data.library_name == "t2"
    assert data.base_model == "org/tiny-model"
    assert {"t2", "expert"} <= set(data.tags)
    assert data.license is None
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == ("sums", "test", "accuracy")
    assert result.metric_value == 0.42


def test_people_can_read_what_was_measured_and_how_to_use_it(manifest: ExpertManifest) -> None:
    card = model_card(manifest)
    assert "| sums | test | 200 | 0.150 | 0.420 | 0.350 to 0.490 | +0.270 (+0.200 to +0.340) | 1e-09 |" in card
    assert "| 31.2 and 12.5 (40 and 0 cut at the limit) |" in card
    assert "12 s on cpu, 2 threads" in card
    assert "t2 chat --expert math@1" in card
    assert manifest.base.fingerprint.weights in card
    assert f"| add@2 | 0.6 | {'a' * 64} |" in card


def test_lengths_that_were_not_recorded_have_no_column_of_their_own(manifest: ExpertManifest) -> None:
    (measured,) = manifest.evaluation
    older = replace(measured, base_answer_tokens=None, expert_answer_tokens=None, base_cut=None, expert_cut=None)
    assert "tokens per answer" not in model_card(replace(manifest, evaluation=(older,)))
    lines = model_card(replace(manifest, evaluation=(older, measured))).splitlines()
    table = [line for line in lines[lines.index("## Evaluation") :] if line.startswith("|")]
    assert [line.count("|") for line in table[:4]] == [10] * 4
    assert table[2].endswith("| 1e-09 | - |")


def test_a_bare_manifest_has_no_empty_sections(make: Callable[..., ExpertManifest]) -> None:
    bare = make(training=None, evaluation=(), parents=(), description="")
    card = model_card(replace(bare, base=replace(bare.base, source="a wheel on an index")))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "tiny"
    assert "model-index" not in front
    assert "## Evaluation" not in card
    assert "## Made from" not in card
    assert "\n\n\n" not in card


def test_text_of_strangers_stays_text(make: Callable[..., ExpertManifest]) -> None:
    card = model_card(make(description="<img src=x> [a](b) | *c*", category="x|y"))
    assert r"\<img src=x\> \[a\](b) \| \*c\*" in card
    assert r"| category | x\|y |" in card
