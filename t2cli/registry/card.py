"""The README.md of an expert: a Hugging Face model card generated from its manifest."""

from __future__ import annotations

import re

from t2cli.registry.manifest import EvaluationRecord, ExpertManifest, TrainingRecord

_HUB_ID = re.compile(r"(?:hub:|hf://|hf:|https://huggingface\.co/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&!])")


def model_card(manifest: ExpertManifest) -> str:
    """Return the model card: YAML front matter that the Hub understands, then Markdown for people."""
    from t2cli.registry.strict_yaml import dump_mapping

    sections = [
        _introduction(manifest),
        _facts(manifest),
        _evaluation(manifest),
        _dispatcher(manifest),
        _parents(manifest),
        _use(manifest),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{dump_mapping(front_matter(manifest))}---\n\n{body}\n"


def front_matter(manifest: ExpertManifest) -> dict[str, object]:
    """Return the card's metadata as plain data; there is no license, because the manifest knows none."""
    matter: dict[str, object] = {
        "library_name": "t2",
        "base_model": base_on_hub(manifest) or manifest.base.name,
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "tags": ["t2", "transformer-squared", "svf", manifest.kind],
    }
    if manifest.evaluation:
        results = [evaluation_result(row) for row in manifest.evaluation]
        matter["model-index"] = [{"name": manifest.name, "results": results}]
    return matter


def base_on_hub(manifest: ExpertManifest) -> str | None:
    """Return the Hub id of the base model, None if it came from elsewhere."""
    hub_id = _HUB_ID.fullmatch(manifest.base.source)
    return hub_id[1] if hub_id else None


def evaluation_result(row: EvaluationRecord) -> dict[str, object]:
    """Return one evaluation as an entry of a card's model-index."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": row.task, "type": row.task, "split": row.split},
        "metrics": [{"type": "accuracy", "value": row.expert_accuracy, "name": f"accuracy on {row.n} examples"}],
    }


def _introduction(manifest: ExpertManifest) -> str:
    what = {"expert": "an expert", "dispatcher": "a dispatcher", "mix": "a mix of experts"}[manifest.kind]
    base, targets = escaped(manifest.base.name), manifest.targets
    lines = [
        f"# {manifest.name}, version {manifest.version}",
        escaped(manifest.description),
        f"This is {what} of [Transformer-Squared](https://arxiv.org/abs/2501.06252): one vector z for each of"
        f" {targets.count} weight matrices of {base}, {targets.parameters:,} numbers in all, which rescale"
        " the singular values of that matrix. It holds no weights of the base model.",
    ]
    return "\n\n".join(line for line in lines if line)


def _facts(manifest: ExpertManifest) -> str:
    base, training = manifest.base, manifest.training
    rows = [
        ("category", manifest.category),
        ("base model", f"{base.name} from {base.source}" + (f" at {base.revision}" if base.revision else "")),
        ("SHA-256 of the base's weights", base.fingerprint.weights),
        ("adapted matrices", manifest.targets.selection),
        ("parametrisation of z", manifest.z.parametrisation),
        ("SHA-256 of z.safetensors", manifest.z.sha256),
    ]
    if training:
        how = f"{training.task}, preset {training.preset}, {training.steps} steps, seed {training.seed}"
        if reward := training.config.get("reward"):
            rows.append(("judged by", f"a reward of its maker's own, {reward!s:.200}"))
        rows.append(("trained on", f"{how}, {time_of(training)}"))
    rows.append(("created", manifest.created))
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {escaped(value)} |" for key, value in rows)])


def time_of(training: TrainingRecord) -> str:
    """Return how long a training took, and on what."""
    threads = f", {training.threads} thread{'' if training.threads == 1 else 's'}" if training.threads else ""
    return f"{training.seconds:.0f} s on {training.device}{threads}"


def _evaluation(manifest: ExpertManifest) -> str:
    if not manifest.evaluation:
        return ""
    header = ["task", "split", "examples", "base", "expert", "interval", "gain", "McNemar p"]
    lengths = [_lengths(row) for row in manifest.evaluation]
    header += ["tokens per answer"] if any(lengths) else []  # of the base and of the expert, where recorded
    lines = [
        "## Evaluation",
        "",
        "Paired, on examples that neither trained the expert nor chose its checkpoint. Intervals are 95 %.",
        "",
        _table_row(header),
        "|---" * len(header) + "|",
    ]
    for row, length in zip(manifest.evaluation, lengths, strict=True):
        gain = f"{row.gain:+.3f}"
        if row.gain_ci95 is not None:
            gain += f" ({row.gain_ci95[0]:+.3f} to {row.gain_ci95[1]:+.3f})"
        cells = [
            *(escaped(row.task), escaped(row.split), str(row.n)),
            *(f"{row.base_accuracy:.3f}", f"{row.expert_accuracy:.3f}", f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}"),
            *(gain, f"{row.mcnemar_p:.2g}"),
            *([length or "-"] if any(lengths) else []),
        ]
        lines.append(_table_row(cells))
    return "\n".join(lines)


def _dispatcher(manifest: ExpertManifest) -> str:
    if (record := manifest.dispatcher) is None:
        return ""
    names = [escaped(name) for name in record.categories]
    rows = [[name, *map(str, row)] for name, row in zip(names, record.confusion, strict=True)]
    lines = [
        "## What it tells apart",
        "",
        f"Held-out questions of each category, and what it said of them. It is right about {record.accuracy:.1%} of"
        f" {record.n}. A category below {record.threshold:g} is left to the base model.",
        "",
        _table_row(["question of", *(f"said {name}" for name in names)]),
        "|---" * (len(names) + 1) + "|",
        *map(_table_row, rows),
    ]
    return "\n".join(lines)


def _lengths(row: EvaluationRecord) -> str:
    """Return the mean answer length of the base and of the expert, and how many answers were cut; "" if unknown."""
    if row.base_answer_tokens is None or row.expert_answer_tokens is None:
        return ""
    cut = "" if row.base_cut is None else f" ({row.base_cut} and {row.expert_cut} cut at the limit)"
    return f"{row.base_answer_tokens:.1f} and {row.expert_answer_tokens:.1f}{cut}"


def _table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _parents(manifest: ExpertManifest) -> str:
    if not manifest.parents:
        return ""
    rows = [f"| {escaped(parent.ref)} | {parent.alpha:g} | {parent.digest} |" for parent in manifest.parents]
    return "\n".join(["## Made from", "", "| expert | alpha | SHA-256 of expert.yaml |", "|---|---|---|", *rows])


def _use(manifest: ExpertManifest) -> str:
    how = "--adapt classifier" if manifest.kind == "dispatcher" else f"--expert {manifest.name}@{manifest.version}"
    return f"## Use\n\n```\nt2 chat {how}\n```"


def escaped(text: str) -> str:
    """Return `text` so that Markdown shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", text)
