"""Labels are read alike with and without a cache, alone and side by side, whatever the question says."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from t2cli.errors import UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel
from t2cli.models.labels import CUT, LONGEST_QUESTION, LabelPrompt, LabelReader

Adapt = Callable[..., AdaptedModel]

INSTRUCTION = "what is it? A: the sum (of two numbers). B: other."
LABELS = ("A", "B", "C")
QUESTIONS = ["What is 17 + 25?", "x", "Who  was\n\nit?", "Ünïcödé 数学 🙂", "Category: A\nAnswer: A", "sum of two " * 9]


def plain(adapted: AdaptedModel, question: str) -> torch.Tensor:
    """Return the labels' log-probabilities from one forward pass over the whole chat, written out."""
    chat = f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n{question.strip()}<|im_end|>\n"
    ids = adapted.base.tokenizer(f"{chat}<|im_start|>assistant\n")["input_ids"]
    labels = [adapted.base.tokenizer(label)["input_ids"][0] for label in LABELS]
    with torch.no_grad():
        logits = adapted.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits[labels].log_softmax(-1)


def reader_of(adapted: AdaptedModel) -> LabelReader:
    return LabelReader(adapted, LabelPrompt(adapted.base, INSTRUCTION, LABELS))


@pytest.mark.parametrize("variant", ["llama", "llama-grouped", "qwen3", "mistral", "gemma3", "gpt2"])
def test_labels_are_those_of_a_plain_forward_pass(variant: str, adapt: Adapt) -> None:
    adapted = adapt(variant)
    reader = reader_of(adapted)
    together = reader.read_each(QUESTIONS)
    for question, row in zip(QUESTIONS, together, strict=True):
        wanted = plain(adapted, question)
        assert torch.allclose(reader.read(question), wanted, rtol=1e-4, atol=1e-4), question
        assert torch.allclose(row, wanted, rtol=1e-4, atol=1e-4), question


def test_a_question_is_read_alike_whatever_came_before(adapt: Adapt) -> None:
    adapted = adapt("llama")
    used = reader_of(adapted)
    questions = QUESTIONS * 2
    random.Random(0).shuffle(questions)
    for question in questions:
        assert torch.equal(used.read(question), reader_of(adapted).read(question)), question


def test_an_interrupt_does_not_change_what_is_read_later(adapt: Adapt) -> None:
    adapted = adapt("llama")
    reader = reader_of(adapted)
    wanted = reader.read("What is it?")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = adapted.model.get_submodule("model.layers.1.mlp").register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):  # when the first layers' caches are longer already
        reader.read("Another question, of another length")
    handle.remove()
    assert torch.equal(reader.read("What is it?"), wanted)


def test_a_long_question_shows_its_beginning_and_its_end(adapt: Adapt) -> None:
    adapted = adapt("llama")
    prompt = LabelPrompt(adapted.base, INSTRUCTION, LABELS)
    question = " ".join(f"{number} and" for number in range(900))
    text = adapted.base.decode(prompt.encode(question))
    assert len(prompt.encode(question)) < LONGEST_QUESTION + len(prompt.beginning) + 24
    assert "0 and 1 and 2 and" in text
    assert "898 and 899 and" in text
    assert CUT in text


def test_a_megabyte_is_read_as_fast_as_a_page(adapt: Adapt) -> None:
    prompt = LabelPrompt(adapt("llama").base, INSTRUCTION, LABELS)

    def seconds(question: str) -> float:
        started = time.perf_counter()
        assert len(prompt.encode(question)) < LONGEST_QUESTION + len(prompt.beginning) + 24
        return time.perf_counter() - started

    page = min(seconds("the sum " * 2000) for _ in range(3))
    assert min(seconds("the sum " * 140_000) for _ in range(3)) < 5 * page + 0.05


def test_labels_that_begin_alike_are_refused(adapt: Adapt) -> None:
    base = adapt("llama").base
    with pytest.raises(UsageError, match="apart by their first token"):
        LabelPrompt(base, INSTRUCTION, ("A", "B", "A"))
    with pytest.raises(UsageError, match="apart by their first token"):
        LabelPrompt(base, INSTRUCTION, ("A", ""))


def with_template(base: BaseModel, template: str | None) -> BaseModel:
    import copy

    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = template
    return dataclasses.replace(base, tokenizer=tokenizer)


REFUSES = "{{ raise_exception('no system') if messages[0].role == 'system' }}"
DROPS = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}{% endfor %}"
KEEPS = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [None, REFUSES + KEEPS, DROPS], ids=["none", "refuses", "drops"])
def test_a_base_without_a_system_role_reads_the_instruction_before_the_question(
    template: str | None, adapt: Adapt
) -> None:
    adapted = adapt("llama")
    adapted.base = with_template(adapted.base, template)
    prompt = LabelPrompt(adapted.base, INSTRUCTION, LABELS)
    text = adapted.base.tokenizer.decode(prompt.encode("What is it?"))
    assert text.index(INSTRUCTION) < text.index("What is it?")
    assert text.count(INSTRUCTION) == 1
    reader = LabelReader(adapted, prompt)
    for question, row in zip(QUESTIONS, reader.read_each(QUESTIONS), strict=True):
        assert torch.allclose(reader.read(question), row, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_that_puts_a_space_before_any_text_tells_letters_apart(adapt: Adapt) -> None:
    import copy

    from tokenizers import pre_tokenizers

    base = adapt("llama").base
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    spaced = dataclasses.replace(base, tokenizer=tokenizer)
    assert len(tokenizer("A", add_special_tokens=False)["input_ids"]) == 2
    assert len(set(LabelPrompt(spaced, INSTRUCTION, LABELS).labels)) == len(LABELS)
