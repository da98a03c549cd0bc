"""The README.md of a Hub repository: one model card for all the experts in it, made from their manifests."""

from __future__ import annotations

from collections.abc import Sequence

from t2cli.errors import CorruptArtifactError
from t2cli.registry.card import base_on_hub, escaped, evaluation_result
from t2cli.registry.manifest import EvaluationRecord, ExpertManifest

# What people write below this line stays when the card is made again.
YOURS = "<!-- t2 push makes what is above again; what is below is yours and stays -->"


def hub_card(repo: str, experts: Sequence[ExpertManifest], *, license_id: str = "", before: str = "") -> str:
    """Return the card of a repository with these experts, the newest version of each.

    `before` is the README.md that is there: its own text is kept, and its license unless `license_id` names one.
    """
    from t2cli.registry.strict_yaml import dump_mapping

    old, text = _taken_apart(before)
    matter = _front_matter(experts)
    kept = license_id or old.get("license")
    if isinstance(kept, str):
        matter["license"] = kept
    yours = text.partition(YOURS)[2] if YOURS in text else text
    sections = [_introduction(repo), _table(experts), _use(repo, experts)]
    return (
        f"---\n{dump_mapping(matter)}---\n\n" + "\n\n".join(sections) + f"\n\n{YOURS}\n{yours.rstrip()}".rstrip() + "\n"
    )


def _taken_apart(card: str) -> tuple[dict[str, object], str]:
    """Return the metadata of a card and the text below; no metadata where they cannot be read."""
    from t2cli.registry.strict_yaml import load_mapping

    card = card.replace("\r\n", "\n")
    head, fence, text = card.removeprefix("---\n").partition("\n---\n")
    if not card.startswith("---\n") or not fence:
        return {}, card if not card or card.startswith("\n") else f"\n{card}"
    try:
        return load_mapping(head, "README.md"), text
    except CorruptArtifactError:
        return {}, text


def _front_matter(experts: Sequence[ExpertManifest]) -> dict[str, object]:
    """Return the metadata that the Hub reads. A base that did not come from the Hub has no id to name."""
    matter: dict[str, object] = {"library_name": "t2"}
    if bases := sorted({hub_id for expert in experts if (hub_id := base_on_hub(expert))}):
        matter |= {"base_model": bases, "base_model_relation": "adapter"}
    kinds = sorted({expert.kind for expert in experts})
    matter |= {"pipeline_tag": "text-generation", "tags": ["t2", "transformer-squared", "svf", *kinds]}
    measured = [expert for expert in experts if expert.evaluation]
    if measured:
        matter["model-index"] = [
            {"name": expert.name, "results": [evaluation_result(row) for row in expert.evaluation]}
            for expert in measured
        ]
    return matter


def _introduction(repo: str) -> str:
    return (
        f"# {repo.rpartition('/')[2]}\n\n"
        "Experts of [Transformer-Squared](https://arxiv.org/abs/2501.06252) for t2: each is one vector z per weight"
        " matrix of its base, which rescales the singular values of that matrix. They hold no weights of the base."
    )


def _table(experts: Sequence[ExpertManifest]) -> str:
    lines = ["| expert | for | base | what it does | accuracy, base -> expert |", "|---|---|---|---|---|"]
    for expert in experts:
        measured = "; ".join(_measured(row) for row in expert.evaluation) or "not measured"
        cells = [f"{expert.name}@{expert.version}", expert.category, expert.base.folder, expert.description, measured]
        lines.append("| " + " | ".join(escaped(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _measured(row: EvaluationRecord) -> str:
    around = f" [{100 * row.gain_ci95[0]:+.1f}, {100 * row.gain_ci95[1]:+.1f}]" if row.gain_ci95 else ""
    return (
        f"{row.task}: {row.base_accuracy:.3f} -> {row.expert_accuracy:.3f}, {100 * row.gain:+.1f}{around} points"
        f" on {row.n} held-out questions"
    )


def _use(repo: str, experts: Sequence[ExpertManifest]) -> str:
    first = experts[0]
    exact = f"{first.name}@{first.version}"
    base = base_on_hub(first)
    option = f" --base {base}" if base else ""
    return "\n".join(
        [
            "## Use",
            "",
            "```",
            f't2 chat{option} --expert hf://{repo}/{exact} "..."',
            f"t2 pull {repo}",
            "```",
            "",
            "The first answers as one expert; the second copies all of them into your registry, where `t2 chat` chooses"
            " among them by the question.",
        ]
    )
