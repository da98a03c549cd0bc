"""Loading a base: frozen weights, chat encoding, ends of answers, devices, and what cannot be loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.models.base import BaseModel, load_base, resolve_device

Load = Callable[[str], BaseModel]
CHAT = [{"role": "user", "content": "what is 1 + 2?"}]


def test_loaded_base_is_frozen_float32_and_known(load: Load) -> None:
    base = load("llama")
    assert not base.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in base.model.parameters())
    assert base.device == torch.device("cpu")
    assert (base.identity.name, base.identity.source, base.identity.architecture) == (
        "llama",
        "local",
        "LlamaForCausalLM",
    )
    assert (base.context, base.eos) == (512, frozenset({base.tokenizer.eos_token_id}))


def test_chat_is_encoded_up_to_where_the_answer_begins(load: Load) -> None:
    base = load("llama")
    text = base.tokenizer.decode(base.encode(CHAT))
    assert text == "<|im_start|>user\nwhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_are_left_out_of_the_answer(load: Load) -> None:
    base = load("llama")
    ids = base.tokenizer("sum: 7")["input_ids"]
    assert base.decode([*ids, base.tokenizer.eos_token_id]) == "sum: 7"


@pytest.mark.parametrize(
    "refusal", ["{{ raise_exception('no') if messages[0].role == 'system' }}", "{% set messages = messages[-1:] %}"]
)
def test_a_system_text_stands_before_the_question_where_the_template_has_no_place_for_it(
    refusal: str, load: Load
) -> None:
    base = load("llama")
    base.tokenizer.chat_template = refusal + base.tokenizer.chat_template
    given = [{"role": "system", "content": "sum"}, {"role": "system", "content": "it"}, *CHAT]
    assert base.encode(given) == base.encode([{"role": "user", "content": f"sum\n\nit\n\n{CHAT[0]['content']}"}])
    assert len(given) == 3
    assert "sum" not in base.tokenizer.decode(base.encode(CHAT)).split("what")[0]


def test_a_chat_that_the_template_refuses_is_a_usage_error(load: Load) -> None:
    base = load("llama")
    base.tokenizer.chat_template = "{{ raise_exception('no chats today') }}"
    with pytest.raises(UsageError, match=r"the template of llama refuses this chat: no chats today"):
        base.encode(CHAT)


def test_without_a_chat_template_the_last_message_is_the_prompt(load: Load) -> None:
    base = load("llama")
    base.tokenizer.chat_template = None
    assert base.tokenizer.decode(base.encode(CHAT)) == "what is 1 + 2?"
    with pytest.raises(UsageError, match="empty"):
        base.encode([{"role": "user", "content": ""}])


def test_several_ends_of_an_answer(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, 7]}))
    assert load_base(str(folder), device="cpu").eos == {1, 7}


def test_end_of_the_tokenizer_counts_too(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 9}))
    assert load_base(str(folder), device="cpu").eos == {1, 9}


def test_stored_bfloat16_is_computed_in_float32_on_the_cpu(
    copied: Callable[..., Path], load: Load, tmp_path: Path
) -> None:
    load("llama").model.bfloat16().save_pretrained(copied())
    base = load_base(str(tmp_path / "copy"), device="cpu")
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_is_refused(file: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / file).write_text('{"half')
    with pytest.raises(CorruptArtifactError, match="cannot be loaded"):
        load_base(str(folder), device="cpu")


def test_missing_tokenizer_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CorruptArtifactError, match="cannot be loaded"):
        load_base(str(folder), device="cpu")


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match="'gpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_absent_device_is_said(device: str) -> None:
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]:
        assert resolve_device(device).type == device
    else:
        with pytest.raises(T2Error, match=f"no {device} device"):
            resolve_device(device)
