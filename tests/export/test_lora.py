"""LoRA adapters: exactly the error that the closed form states, none better, and PEFT computes with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2cli.errors import IncompatibleBaseError, T2Error, UsageError
from t2cli.export.lora import CONFIG_FILE, WEIGHTS_FILE, LoraExport, export_lora
from t2cli.export.source import Source
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel, load_base
from t2cli.models.catalog import DEFAULT_BASE
from t2cli.models.checkpoint import Checkpoint
from t2cli.models.targets import Target, checkpoint_targets
from t2cli.paths import shipped_registry
from t2cli.registry.local import LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors

MakeSource = Callable[..., Source]

VARIANTS = pytest.mark.parametrize("variant", ["llama", "llama-grouped", "qwen3", "phi3", "gpt2", "gpt-neox", "falcon"])


def changes(source: Source) -> dict[Target, torch.Tensor]:
    """Return W' - W (m, n) of each target in float64, from a singular value decomposition of W."""
    checkpoint, found = Checkpoint(source.files.folder), {}
    for target in checkpoint_targets(source.files.folder):
        if target.weight in source.z:
            U, S, Vh = torch.linalg.svd(checkpoint.weight(target).double(), full_matrices=False)
            found[target] = (U * (S * (source.z[target.weight].double() - 1))) @ Vh
    return found


def products(path: Path) -> dict[str, torch.Tensor]:
    """Return B A of each module."""
    tensors = load_file(path / WEIGHTS_FILE)
    modules = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    assert tensors.keys() == {f"{module}.lora_{part}.weight" for module in modules for part in "AB"}
    return {
        module.removeprefix("base_model.model."): tensors[f"{module}.lora_B.weight"].double()
        @ tensors[f"{module}.lora_A.weight"].double()
        for module in modules
    }


@pytest.mark.parametrize("rank", [1, 4, 16, 1000])
@VARIANTS
def test_the_error_is_the_stated_one_and_the_least_there_is(
    variant: str, rank: int, source: MakeSource, tmp_path: Path
) -> None:
    expert = source(variant)
    made = export_lora(expert, tmp_path / "lora", rank=rank, quiet=True)
    layers, found = {layer.name: layer for layer in made.layers}, products(tmp_path / "lora")
    lost = total = 0.0
    for target, change in changes(expert).items():
        layer = layers[target.weight]
        error = float((found[target.module] - change).norm() / change.norm())
        assert error == pytest.approx(layer.error, abs=1e-5)
        assert layer.kept == pytest.approx(1 - error**2, abs=1e-5)
        assert layer.rank == min(rank, target.rank)
        spectrum = torch.linalg.svdvals(change)
        least = float(spectrum[rank:].norm() / spectrum.norm())  # Eckart and Young: of all matrices of this rank
        assert error == pytest.approx(least, abs=1e-5)
        assert int((torch.linalg.svdvals(found[target.module]) > 1e-6 * spectrum[0]).sum()) <= rank
        lost += float((found[target.module] - change).norm()) ** 2
        total += float(change.norm()) ** 2
    assert made.error == pytest.approx(math.sqrt(lost / total), abs=1e-5)
    assert made.kept == pytest.approx(1 - lost / total, abs=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99, 1.0])
def test_auto_takes_the_smallest_ranks_that_keep_the_share(keep: float, source: MakeSource, tmp_path: Path) -> None:
    expert = source("llama-grouped")
    made = export_lora(expert, tmp_path / "lora", rank=None, keep=keep, quiet=True)
    layers = {layer.name: layer for layer in made.layers}
    for target, change in changes(expert).items():
        energy = torch.linalg.svdvals(change).square()
        shares, rank = energy.cumsum(0) / energy.sum(), layers[target.weight].rank
        assert shares[rank - 1] >= keep - 1e-6
        assert rank == 1 or shares[rank - 2] < keep + 1e-6
        assert layers[target.weight].kept == pytest.approx(float(shares[rank - 1]), abs=1e-6)
    assert made.kept >= keep - 1e-9
    config = json.loads((tmp_path / "lora" / CONFIG_FILE).read_text())
    assert config["r"] == max(layer.rank for layer in made.layers)
    assert config["rank_pattern"] == config["alpha_pattern"]


def test_both_factors_have_the_same_norms(source: MakeSource, tmp_path: Path) -> None:
    export_lora(source("llama-grouped"), tmp_path / "lora", rank=4, quiet=True)
    tensors = load_file(tmp_path / "lora" / WEIGHTS_FILE)
    for name, A in tensors.items():
        if "lora_A" in name:
            norms = A.norm(dim=1)
            assert torch.allclose(norms, tensors[name.replace("lora_A", "lora_B")].norm(dim=0), rtol=1e-4)
            assert (norms[:-1] >= norms[1:] * (1 - 1e-5)).all()  # the strongest first


def full_precision(source: Source, load: Callable[[str], BaseModel], variant: str, made: LoraExport) -> torch.nn.Module:
    """Return the base in float64 with what the closed form says that the adapter does to its weights."""
    model = load(variant).model.double()
    model.config._experts_implementation = "eager"  # grouped products know no float64
    with torch.no_grad():
        for target, change in changes(source).items():
            layer = next(layer for layer in made.layers if layer.name == target.weight)
            U, S, Vh = torch.linalg.svd(change, full_matrices=False)
            kept = (U[:, : layer.rank] * S[: layer.rank]) @ Vh[: layer.rank]
            model.get_submodule(target.module).weight += kept.T if target.transposed else kept
    return model


@pytest.mark.parametrize("rank", [4, None])
@VARIANTS
def test_peft_computes_what_the_closed_form_says(
    variant: str, rank: int | None, source: MakeSource, load: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    expert = source(variant)
    made = export_lora(expert, tmp_path / "lora", rank=rank, keep=0.8, quiet=True)
    adapter = peft.PeftModel.from_pretrained(load(variant).model, tmp_path / "lora").double()
    ids = torch.tensor([[5, 9, 200, 31, 7, 8]])
    with torch.no_grad():
        wanted = full_precision(expert, load, variant, made)(input_ids=ids).logits
        base = load(variant).model.double()(input_ids=ids).logits
        found = adapter(input_ids=ids).logits
    assert float((wanted - base).norm() / base.norm()) > 1e-2
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    config = adapter.peft_config["default"]
    assert config.base_model_name_or_path == str(expert.files.folder)
    for name, module in adapter.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            target = name.removeprefix("base_model.model.")
            layer = next(layer for layer in made.layers if layer.name == f"{target}.weight")
            assert (module.r["default"], module.scaling["default"]) == (layer.rank, 1.0)


def test_all_components_are_the_folded_model(
    source: MakeSource, adapt: Callable[..., AdaptedModel], load: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    expert = source("llama")
    export_lora(expert, tmp_path / "lora", rank=1000, quiet=True)
    adapter = peft.PeftModel.from_pretrained(load("llama").model, tmp_path / "lora")
    adapted, ids = adapt("llama"), torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad(), adapted.use_z(expert.z):
        wanted, found = adapted.model(input_ids=ids).logits, adapter(input_ids=ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_only_changed_matrices_are_in_it(source: MakeSource, tmp_path: Path) -> None:
    z = source("llama", "attention").z
    name = next(iter(z))
    expert = source("llama", z=ZVectors({**z, name: torch.ones(z[name].numel())}))
    made = export_lora(expert, tmp_path / "lora", rank=2, quiet=True)
    config = json.loads((tmp_path / "lora" / CONFIG_FILE).read_text())
    wanted = sorted(other.removesuffix(".weight") for other in z if other != name)
    assert config["target_modules"] == wanted == [layer.name.removesuffix(".weight") for layer in made.layers]


def test_an_expert_of_the_attention_of_a_mixture_of_experts_can_be_one(
    source: MakeSource, load: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    expert = source("mixtral", "attention")
    made = export_lora(expert, tmp_path / "lora", rank=3, quiet=True)
    adapter = peft.PeftModel.from_pretrained(load("mixtral").model, tmp_path / "lora").double()
    adapter.config._experts_implementation = "eager"
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        wanted = full_precision(expert, load, "mixtral", made)(input_ids=ids).logits
        assert float((adapter(input_ids=ids).logits - wanted).norm() / wanted.norm()) < 1e-5


def test_slices_of_3d_weights_are_refused_with_the_reason(source: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(T2Error, match="16 matrices inside 3-D weights") as caught:
        export_lora(source("mixtral"), tmp_path / "lora", rank=4, quiet=True)
    assert "--to merged" in caught.value.hint
    assert not (tmp_path / "lora").exists()


def test_what_changes_nothing_is_refused(source: MakeSource, tmp_path: Path) -> None:
    ones = ZVectors({name: torch.ones(z.numel()) for name, z in source("llama").z.items()})
    with pytest.raises(T2Error, match="changes nothing"):
        export_lora(source("llama", z=ones), tmp_path / "lora", rank=4, quiet=True)


def test_other_shapes_are_refused(source: MakeSource, tmp_path: Path) -> None:
    short = ZVectors({"model.layers.0.mlp.up_proj.weight": torch.zeros(5)})
    with pytest.raises(IncompatibleBaseError, match="5 numbers"):
        export_lora(source("llama", z=short), tmp_path / "lora", rank=4, quiet=True)


def test_an_existing_folder_is_left_alone(source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        export_lora(source("llama"), tmp_path / "lora", rank=4, quiet=True)
    assert not list((tmp_path / "lora").iterdir())


@pytest.mark.slow
def test_peft_loads_a_shipped_expert_for_the_default_base_with_the_stated_error(
    default_base: BaseModel, default_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    monkeypatch.setenv("T2_HOME", str(default_home))
    entry = LocalRegistry([shipped_registry()]).find("math", base_digest=default_base.identity.weights)
    expert = Source(default_base.files, default_base.identity, entry.manifest, entry.digest, read_z(entry))
    made = export_lora(expert, tmp_path / "lora", rank=16, quiet=True)
    model = load_base(DEFAULT_BASE, device="cpu", quiet=True).model
    before = {layer.name: model.get_parameter(layer.name).detach().clone() for layer in made.layers}
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "lora").double().merge_and_unload()
    for layer in made.layers[::15]:
        W = before[layer.name].double()
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        change = (U * (S * (expert.z[layer.name].double() - 1))) @ Vh
        error = float((merged.get_parameter(layer.name) - W - change).norm() / change.norm())
        assert error == pytest.approx(layer.error, abs=1e-5)
