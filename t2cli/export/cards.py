"""The README.md of what is exported: a Hugging Face model card that says what was made from what."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.export.source import Source


def lora_card(source: Source, kept: float, error: float) -> str:
    """Return the card of a LoRA adapter that holds the share `kept` of the change at the relative `error`."""
    what = (
        f"The expert `{source.reference}` of [Transformer-Squared](https://arxiv.org/abs/2501.06252) as a LoRA"
        f" adapter, by the closed form: {100 * kept:.2f} % of the squared change of the weights, at a relative error of"
        f" {error:.4f}. No adapter of these ranks has less."
    )
    return _card(source, "peft", "adapter", what)


def merged_card(source: Source, dtype: str) -> str:
    """Return the card of a checkpoint with the expert folded in; `dtype` is "stored" or the one it was changed to."""
    kept = "in the base's own precision" if dtype == "stored" else f"in {dtype}"
    what = (
        f"The base model with the expert `{source.reference}` of"
        f" [Transformer-Squared](https://arxiv.org/abs/2501.06252) folded into {len(source.z)} of its weight matrices,"
        f" {kept}. It is used as any model of its kind."
    )
    return _card(source, "transformers", "finetune", what)


def _card(source: Source, library: str, relation: str, what: str) -> str:
    from t2cli.registry.strict_yaml import dump_mapping

    files, manifest = source.files, source.manifest
    hub = files.source.startswith("hub:")
    matter: dict[str, object] = {
        "library_name": library,
        "base_model": files.source.removeprefix("hub:") if hub else source.identity.name,
        "base_model_relation": relation,
        "pipeline_tag": "text-generation",
        "tags": ["t2", "transformer-squared", "svf"],
    }
    rows = [
        ("expert", source.reference),
        ("description", manifest.description),
        ("its digest", source.digest),
        ("made for the base", manifest.base.folder),
        ("exported for the base", f"{source.identity.folder_name} from {files.source} {files.revision}".strip()),
        ("SHA-256 of the base's weights", source.identity.weights),
    ]
    width = max(len(key) for key, _ in rows)
    facts = "\n".join(f"    {key:<{width}}  {value}".rstrip() for key, value in rows)  # indented: shown as it is
    return f"---\n{dump_mapping(matter)}---\n\n# {manifest.name}\n\n{what}\n\n{facts}\n"
