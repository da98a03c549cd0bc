"""Load a base model: weights, tokenizer and identity, on the device a person asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.models.catalog import BaseFiles, locate
from t2cli.models.identity import BaseIdentity, identify
from t2cli.models.targets import first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPREAD = "spread"  # one base over all devices there are
DEVICES = ("auto", "cpu", "cuda", "mps", SPREAD)


@dataclass(frozen=True)
class BaseModel:
    """A loaded base. `eos` are the token ids that end an answer, `context` the longest sequence it can read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: BaseIdentity
    files: BaseFiles
    eos: frozenset[int]
    context: int

    @property
    def device(self) -> torch.device:
        """Return where the model's embeddings are, and so where token ids go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of a chat up to where the assistant's answer begins.

        Without a chat template the last message is the prompt. Where the template has no system role, the system text
        stands before the first question. Raises UsageError for a prompt without tokens, and for a chat that the
        template refuses.
        """
        from jinja2 import TemplateError

        if self.tokenizer.chat_template is None:  # a plain language model: the last message is the prompt
            ids = list(self.tokenizer(messages[-1]["content"])["input_ids"])
            if not ids:
                raise UsageError("the prompt is empty", hint="give some text to continue")
            return ids
        try:
            if messages[0]["role"] == "system" and not self.has_system_role:
                return self._templated(_without_system_role(messages))
            return self._templated(messages)
        except TemplateError as error:
            raise UsageError(
                f"the template of {self.identity.name} refuses this chat: {error}",
                hint="write the messages as this base expects them",
            ) from error

    @cached_property
    def has_system_role(self) -> bool:
        """Tell whether there is a chat template that takes a system text, and keeps it."""
        from jinja2 import TemplateError

        if self.tokenizer.chat_template is None:
            return False
        asked = {"role": "user", "content": "?"}
        try:
            return self._templated([{"role": "system", "content": "1"}, asked]) != self._templated([asked])
        except TemplateError:
            return False

    def _templated(self, messages: list[dict[str, str]]) -> list[int]:
        encoded: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated token ids without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _without_system_role(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages with their leading system texts before the first other one's own text."""
    first = next((place for place, message in enumerate(messages) if message["role"] != "system"), None)
    if first is None:
        return messages
    text = "\n\n".join(message["content"] for message in messages[: first + 1])
    return [{**messages[first], "content": text}, *messages[first + 1 :]]


def resolve_device(device: str) -> torch.device:
    """Return the torch device for a --device value; auto takes CUDA, then MPS, then the CPU.

    For a base that is spread, where it begins.
    """
    import torch

    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}", hint=f"choose from {', '.join(DEVICES)}")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device in ("auto", SPREAD):
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise T2Error(f"this machine or this build of torch has no {device} device", hint="use --device auto or cpu")
    return torch.device(device)


def load_base(
    base: str, *, device: str = "auto", device_map: Mapping[str, str | int] | None = None, quiet: bool = False
) -> BaseModel:
    """Return the base named by the catalog, a folder or a Hub id, in evaluation mode and frozen.

    On the CPU weights are float32, which is faster there than bfloat16; elsewhere they stay as stored. With the device
    "spread" transformers puts the layers on all GPUs there are, or as `device_map` says. Raises T2Error where a part
    of the base would have to stay out of their memory: every weight is needed to form W'.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    where = resolve_device(device)
    files = locate(base, quiet=quiet)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    identity = identify(files, quiet=quiet)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False, local_files_only=True)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=torch.float32 if where.type == "cpu" else "auto",
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            device_map=(device_map or "auto") if device == SPREAD else None,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CorruptArtifactError(
            f"the model in {files.folder} cannot be loaded: {first_line(error)}",
            hint="delete the folder and run again to fetch it anew, if it is a cache",
        ) from error
    if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
        raise CorruptArtifactError(
            f"the checkpoint in {files.folder} lacks {len(missing)} weights, {missing[0]} among them",
            hint="fetch the model again",
        )
    if device == SPREAD:
        _check_spread(model, base)
    else:
        model.to(where)
    model.eval().requires_grad_(False)
    return BaseModel(model, tokenizer, identity, files, _eos_of(model, tokenizer), _context_of(model))


def _check_spread(model: PreTrainedModel, base: str) -> None:
    """Raise T2Error if weights are kept out of the devices' memory; let positions to predict stay where they are."""
    away = [name for name, weight in model.named_parameters() if weight.is_meta]
    if away:
        raise T2Error(
            f"{base} does not fit: {len(away)} weights would be kept out of the devices' memory, {away[0]} among them",
            hint="use more or larger devices, or a smaller base",
        )
    if (
        hook := getattr(model, "_hf_hook", None)
    ) is not None:  # else it moves indices to the first device, not the last
        hook.skip_keys = [*([skip] if isinstance(skip := hook.skip_keys or [], str) else skip), "logits_to_keep"]


def _eos_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = declared if isinstance(declared, list) else [declared, tokenizer.eos_token_id]
    return frozenset(int(token) for token in ids if token is not None)


def _context_of(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
