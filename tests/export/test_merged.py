"""Merged checkpoints: plain transformers models whose logits are the folded model's, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2cli.errors import CorruptArtifactError, UsageError
from t2cli.export.merged import export_merged
from t2cli.export.shards import parse_size
from t2cli.export.source import Source
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel, load_base
from t2cli.models.catalog import DEFAULT_BASE
from t2cli.models.checkpoint import INDEX, Checkpoint
from t2cli.models.reading import left_padded, positions_of
from t2cli.models.targets import checkpoint_targets
from t2cli.paths import shipped_registry
from t2cli.registry.local import LocalRegistry
from t2cli.registry.vectors import read_z

MakeSource = Callable[..., Source]

SINGLE = "model.safetensors"
PROMPTS = [[5, 9, 200, 31, 7, 8], [17, 3, 90], [250, 11, 12, 13]]
ALL = pytest.mark.parametrize(
    "variant",
    [
        *("llama", "llama-grouped", "llama-biased", "qwen3", "gemma2", "phi3", "gpt2", "gpt-neox", "falcon"),
        *("mixtral", "qwen3-moe", "gpt-oss"),
    ],
)
HUGE = 10**12


def logits_of(model: torch.nn.Module, prompts: list[list[int]] = PROMPTS) -> torch.Tensor:
    ids, mask = left_padded(prompts, torch.device("cpu"))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits
    return logits


def loaded(folder: Path, dtype: str | torch.dtype = torch.float32) -> torch.nn.Module:
    """Load a folder as any user of transformers does, with its experts run one by one as t2 runs them."""
    model, how = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not how["missing_keys"]
    assert not how["unexpected_keys"]
    model.config._experts_implementation = "eager"
    return model


@ALL
def test_its_logits_are_those_of_the_folded_model_bit_for_bit(
    variant: str, source: MakeSource, adapt: Callable[..., AdaptedModel], tmp_path: Path
) -> None:
    expert, adapted = source(variant), adapt(variant)
    base = logits_of(adapted.model)
    made = export_merged(expert, tmp_path / "merged", max_shard_bytes=HUGE, quiet=True)
    with adapted.use_z(expert.z):
        wanted = logits_of(adapted.model)
    assert not torch.equal(wanted, base)
    assert torch.equal(logits_of(loaded(tmp_path / "merged")), wanted)
    assert (made.targets, made.shards) == (len(expert.z), (SINGLE,))
    assert (tmp_path / "merged" / SINGLE).stat().st_size > made.bytes


@pytest.mark.parametrize("variant", ["llama", "mixtral", "gpt2"])
def test_names_shapes_and_all_other_tensors_are_the_bases(variant: str, source: MakeSource, tmp_path: Path) -> None:
    expert = source(variant, "attention")
    export_merged(expert, tmp_path / "merged", max_shard_bytes=HUGE, quiet=True)
    old, new = load_file(expert.files.folder / SINGLE), load_file(tmp_path / "merged" / SINGLE)
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(changed) == len(expert.z)
    assert all("attn" in name for name in changed)
    assert all((old[name].dtype, old[name].shape) == (new[name].dtype, new[name].shape) for name in old)


@pytest.mark.parametrize("variant", ["llama-grouped", "mixtral"])
def test_shards_are_of_the_asked_size_and_hold_the_same(variant: str, source: MakeSource, tmp_path: Path) -> None:
    expert, limit = source(variant), 20_000
    export_merged(expert, tmp_path / "whole", max_shard_bytes=HUGE, quiet=True)
    made = export_merged(expert, tmp_path / "parts", max_shard_bytes=limit, quiet=True)
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert files == sorted(made.shards)
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "parts" / INDEX).read_text())
    whole, seen = load_file(tmp_path / "whole" / SINGLE), {}
    for name in files:
        part = load_file(tmp_path / "parts" / name)
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= limit
        assert all(index["weight_map"][tensor] == name for tensor in part)
        seen.update(part)
    assert seen.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(seen[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == made.bytes == sum(tensor.nbytes for tensor in whole.values())
    assert torch.equal(logits_of(loaded(tmp_path / "parts")), logits_of(loaded(tmp_path / "whole")))


@pytest.mark.parametrize("variant", ["llama", "mixtral"])
def test_a_bfloat16_base_stays_so_or_becomes_float32(
    variant: str, source: MakeSource, load: Callable[[str], BaseModel], tmp_path: Path, copied: Callable[..., Path]
) -> None:
    folder = copied(variant)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    base = load_base(str(folder), device="cpu", quiet=True)
    expert = source(variant)
    expert = Source(base.files, base.identity, expert.manifest, expert.digest, expert.z)
    adapted = AdaptedModel(base)
    with adapted.use_z(expert.z):
        wanted = logits_of(adapted.model)
    export_merged(expert, tmp_path / "wide", max_shard_bytes=HUGE, dtype="float32", quiet=True)
    export_merged(expert, tmp_path / "stored", max_shard_bytes=HUGE, quiet=True)
    assert torch.equal(logits_of(loaded(tmp_path / "wide")), wanted)
    assert loaded(tmp_path / "wide", "auto").dtype == torch.float32
    wide, stored = load_file(tmp_path / "wide" / SINGLE), load_file(tmp_path / "stored" / SINGLE)
    assert all(torch.equal(stored[name], wide[name].bfloat16()) for name in wide)


def test_a_narrower_precision_is_the_rounded_one_and_said_in_the_config(source: MakeSource, tmp_path: Path) -> None:
    expert = source("qwen3")
    export_merged(expert, tmp_path / "wide", max_shard_bytes=HUGE, quiet=True)
    export_merged(expert, tmp_path / "half", max_shard_bytes=HUGE, dtype="float16", quiet=True)
    wide, half = load_file(tmp_path / "wide" / SINGLE), load_file(tmp_path / "half" / SINGLE)
    assert all(torch.equal(half[name], wide[name].half()) for name in wide)
    assert loaded(tmp_path / "half", "auto").dtype == torch.float16


def test_it_is_a_whole_model_that_says_what_it_is(source: MakeSource, tmp_path: Path) -> None:
    expert = source("llama")
    export_merged(expert, tmp_path / "merged", max_shard_bytes=HUGE, quiet=True)
    old, new = expert.files.folder, tmp_path / "merged"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (new / name).read_bytes() == (old / name).read_bytes()
    chat = [{"role": "user", "content": "what is the sum"}]
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (new, old))
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    card = (new / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: llama\n")
    assert f"`{expert.reference}`" in card
    assert expert.digest in card
    assert expert.identity.weights in card
    assert load_base(str(new), device="cpu", quiet=True).identity.weights != expert.identity.weights
    with safe_open(new / SINGLE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_code_and_pickles_of_the_base_are_not_copied(
    source: MakeSource, copied: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copied("llama")
    unwanted = {"modeling.py", "pytorch_model.bin", "training_args.pt", "other.safetensors"}
    for name in unwanted | {"LICENSE"}:
        (folder / name).write_text("x")
    base = load_base(str(folder), device="cpu", quiet=True)
    expert = source("llama")
    export_merged(
        Source(base.files, base.identity, expert.manifest, expert.digest, expert.z),
        tmp_path / "merged",
        max_shard_bytes=HUGE,
        quiet=True,
    )
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names & {"modeling.py", "pytorch_model.bin", "training_args.pt", "other.safetensors", "LICENSE"} == {
        "LICENSE"
    }


def test_a_damaged_base_leaves_nothing_behind(source: MakeSource, copied: Callable[..., Path], tmp_path: Path) -> None:
    folder, expert = copied("llama"), source("llama")
    path = folder / SINGLE
    base = load_base(str(folder), device="cpu", quiet=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptArtifactError, match=SINGLE):
        export_merged(
            Source(base.files, base.identity, expert.manifest, expert.digest, expert.z),
            tmp_path / "out" / "merged",
            max_shard_bytes=HUGE,
            quiet=True,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_the_merged_weights_are_the_papers(source: MakeSource, tmp_path: Path) -> None:
    expert = source("gpt-oss")
    export_merged(expert, tmp_path / "merged", max_shard_bytes=HUGE, quiet=True)
    old, new = Checkpoint(expert.files.folder), Checkpoint(tmp_path / "merged")
    for target in checkpoint_targets(expert.files.folder):
        U, S, Vh = torch.linalg.svd(old.weight(target).double(), full_matrices=False)
        wanted = (U * (S * expert.z[target.weight].double())) @ Vh
        assert float((new.weight(target) - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5gb", 1_500_000_000), ("2 GiB", 2 << 30)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "5 bytes", "0MB", "5GBx", "nan GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)


@pytest.mark.slow
def test_the_default_base_with_a_shipped_expert(
    default_base: BaseModel, default_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("T2_HOME", str(default_home))
    entry = LocalRegistry([shipped_registry()]).find("math", base_digest=default_base.identity.weights)
    expert = Source(default_base.files, default_base.identity, entry.manifest, entry.digest, read_z(entry))
    assert expert.identity.name == DEFAULT_BASE
    made = export_merged(expert, tmp_path / "merged", max_shard_bytes=parse_size("200MB"), quiet=True)
    assert len(made.shards) > 1
    prompts = [default_base.encode([{"role": "user", "content": text}]) for text in ("What is 17 + 25?", "Hello")]
    adapted = AdaptedModel(default_base)
    try:
        with adapted.use_z(expert.z):
            wanted = logits_of(adapted.model, prompts)
        assert torch.equal(logits_of(loaded(tmp_path / "merged"), prompts), wanted)
    finally:
        adapted.detach()
