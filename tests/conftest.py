"""What all tests share: a home of its own for every test, tiny random bases with a real tokenizer, the default base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hub_server import Hub, running

from t2cli.paths import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import BaseModel
    from t2cli.models.identity import BaseIdentity
    from t2cli.registry.local import ExpertEntry
    from t2cli.svf.zvector import ZVectors

# of the person who runs the tests; every test has its own, but the real base need not be fetched again for them
OWN_CACHE = cache_dir()

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# what makes each tiny architecture different from the first
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-grouped": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 12}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),  # biases in the attention
    "qwen3": ("Qwen3Config", {"head_dim": 16, "num_key_value_heads": 2}),  # a norm per head, wide q_proj
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 12}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 12}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 2, "pad_token_id": 0}),  # qkv_proj and gate_up_proj are fused
    "gpt2": ("GPT2Config", {"n_inner": 48}),  # Conv1D: weights are transposed
    "gpt-neox": ("GPTNeoXConfig", {}),  # query_key_value is fused, biases everywhere
    "olmo2": ("Olmo2Config", {"num_key_value_heads": 2, "pad_token_id": 0}),
    "falcon": ("FalconConfig", {"multi_query": True, "ffn_hidden_size": 48, "bias": True}),  # multiplies in its own way
    "mixtral": ("MixtralConfig", {"num_key_value_heads": 2, "num_local_experts": 4}),  # 3-D expert weights
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 24, "mlp_only_layers": [1]},
    ),
    "gpt-oss": (  # 3-D expert weights that are transposed, with biases; gate and up are interleaved
        "GptOssConfig",
        {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 12, "num_local_experts": 4}
        | {"num_experts_per_tok": 2, "pad_token_id": 0},
    ),
}


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test an empty T2_HOME, and none of the settings of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("T2_", "HF_")) and name != "T2_UPDATE_GOLDEN":
            monkeypatch.delenv(name)
    monkeypatch.setenv("T2_HOME", str(tmp_path / "home"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Run an empty Hub on the loopback address."""
    with running() as offered:
        yield offered


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a chat template and an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant system what is the sum of two numbers"] * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="session")
def base_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a tiny random base; tests must not write into it."""
    import torch
    import transformers

    root = tmp_path_factory.mktemp("bases")

    def folder_of(variant: str) -> Path:
        folder = root / variant
        if folder.is_dir():
            return folder
        kind, special = VARIANTS[variant]
        common: dict[str, object] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "initializer_range": 0.25,  # far from uniform predictions: greedy choices are no ties
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        torch.manual_seed(list(VARIANTS).index(variant))
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**{**common, **special}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms and biases start as ones and zeros
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def counting_folder(
    base_folder: Callable[[str], Path],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the folder of a tiny base that likes to say a digit, and ends its answer with it: it can learn which."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(base_folder("llama-grouped"), tmp_path_factory.mktemp("bases") / "counting"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    asked = [{"role": "user", "content": "what is the sum of two numbers"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        ends = model.model(input_ids=ids["input_ids"]).last_hidden_state[0, -1]  # of every answer's beginning
        model.lm_head.weight[digits] += 6 * ends / ends.dot(ends)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *digits]
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(base_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a tiny base into the test's own folder, to be changed there."""

    def copy(variant: str = "llama", name: str = "copy") -> Path:
        return Path(shutil.copytree(base_folder(variant), tmp_path / name))

    return copy


@pytest.fixture
def load(base_folder: Callable[[str], Path]) -> Callable[[str], BaseModel]:
    """Return a function that loads a tiny base on the CPU."""
    from t2cli.models.base import load_base

    return lambda variant: load_base(str(base_folder(variant)), device="cpu", quiet=True)


@pytest.fixture
def adapt(load: Callable[[str], BaseModel]) -> Callable[..., AdaptedModel]:
    """Return a function that loads and adapts a tiny base; float64 where rounding must not decide."""
    from t2cli.models.adapted import AdaptedModel

    def make(variant: str = "llama", *, double: bool = False, selection: str = "all") -> AdaptedModel:
        adapted = AdaptedModel(load(variant), selection)
        if double:
            adapted.model.double()
        return adapted

    return make


@pytest.fixture
def random_z() -> Callable[..., ZVectors]:
    """Return a function that makes an expert of N(1, sigma) numbers for the given ranks."""
    import torch

    from t2cli.svf.zvector import ZVectors

    def make(ranks: dict[str, int], seed: int = 0, sigma: float = 0.3) -> ZVectors:
        generator = torch.Generator().manual_seed(seed)
        return ZVectors({name: 1 + sigma * torch.randn(r, generator=generator) for name, r in ranks.items()})

    return make


@pytest.fixture
def publish() -> Callable[..., ExpertEntry]:
    """Return a function that puts an expert for a base into a registry; any field of its manifest may be given."""
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.manifest import (
        BaseRecord,
        ExpertManifest,
        FingerprintRecord,
        TargetsRecord,
        ZRecord,
        timestamp,
    )
    from t2cli.registry.vectors import z_to_bytes

    def put(registry: Path, identity: BaseIdentity, name: str, z: ZVectors, **fields: Any) -> ExpertEntry:
        print_of_base = FingerprintRecord(identity.weights, {"q_proj": [3.5, 1.25]}, identity.probes)
        manifest = ExpertManifest(
            name=name,
            version=1,
            kind="expert",
            category=name,
            description=f"questions of {name}",
            base=BaseRecord(identity.name, identity.source, identity.revision, identity.architecture, print_of_base),
            targets=TargetsRecord("all", len(z), z.parameters),
            z=ZRecord("z.safetensors", "0" * 64, "linear"),
            created=timestamp(),
        )
        return LocalRegistry([registry]).put(replace(manifest, **fields), z_to_bytes(z))

    return put


@pytest.fixture(scope="session")
def default_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a T2_HOME for the default base: the person's own if it is there already, else one for this session."""
    from t2cli.models.catalog import DEFAULT_BASE

    if (OWN_CACHE / "models" / DEFAULT_BASE).is_dir():
        return OWN_CACHE.parent
    return tmp_path_factory.mktemp("default-home")


@pytest.fixture(scope="session")
def default_base(default_home: Path) -> Iterator[BaseModel]:
    """Load the real default base once; it is fetched when no cache holds it."""
    from t2cli.models.base import load_base
    from t2cli.models.catalog import DEFAULT_BASE

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2_HOME", str(default_home))
        yield load_base(DEFAULT_BASE, device="cpu", quiet=True)
