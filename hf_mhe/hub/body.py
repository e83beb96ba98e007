"""The text of a model card, section by section: no sentence without a number or a setting that was handed in."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from hf_mhe.analysis import EnergyReport, GroupEnergy
from hf_mhe.analysis.report.columns import LEADING, Shown, columns
from hf_mhe.citation import BIBTEX
from hf_mhe.hub.markdown import code, number, table, text
from hf_mhe.training import MHEConfig
from hf_mhe.training.objectives import in_words

TOP_ROWS = 10
_PACKAGES = ("hf-mhe", "torch", "transformers", "safetensors", "huggingface_hub")


def introduction(config: MHEConfig | None, before: EnergyReport | None, after: EnergyReport) -> str:
    """What was done and what a score is."""
    summary = after.summary
    which = f"{summary.groups} of its groups" if after.left_out else f"its {summary.groups} groups"
    measured = f"The mean spread of {which} of neurons is **{number(summary.mean_spread)}**"
    if summary.apart:
        measured += f" ({summary.apart} more do not count, because their neurons do not compete)"
    if before is not None:
        measured += f"; it was **{number(before.summary.mean_spread)}** before"
    done = (
        f"This model was trained with {_regularizer(config)}. {measured}."
        if config is not None and (config.weight_across or any(config.weight(role) > 0 for role in summary.by_role))
        else f"How redundantly the neurons of this model point, measured by their hyperspherical energy. {measured}."
    )
    meaning = (
        "The spread of a layer is the share of its dimensions in which independent random directions would be as "
        "crowded as its neurons: 1 is a random draw, below 1 is more crowded than chance.\n\n"
        f"The score of a layer compares its energy ({after.potential.describe()}) with that of as many independent "
        "random directions: 1 is a random draw, 0 the provable minimum; above 1 is more redundant than chance."
    )
    return f"{done}\n\n{meaning}"


def _regularizer(config: MHEConfig) -> str:
    paper = f"[arXiv:{in_words.source(config)}](https://arxiv.org/abs/{in_words.source(config)})"
    if config.objective == "energy":
        return (
            "minimum hyperspherical energy (MHE), a regularizer that pushes the directions of a layer's neurons apart "
            f"({paper})"
        )
    return f"a penalty on the neurons of its layers, {in_words.title(config)} ({paper})"


def regularized(config: MHEConfig, after: EnergyReport) -> str:
    """Which objective was minimized, with every setting and how many groups each weight applied to."""
    rows = [[code(key), code(value)] for key, value in in_words.in_use(config).items()]
    objective = f"Task loss + Σ over groups of (weight of the group's role) × {in_words.title(config)}"
    if config.weight_across:
        kinds = ", ".join(config.across or ())
        objective += f" + Σ over stacks ({kinds}) of {config.weight_across:g} × mean energy between their members"
    parts = ["### What was regularized\n", f"{objective}.\n"]
    parts.append(table(["setting", "value"], rows))
    if config.include is None and config.exclude is None:
        counts = Counter(group.role for group in (after.competing if config.only_competing else after.groups))
        spread = [
            f"{count} {role} (weight {config.weight(role):g}, {in_words.of_role(config, role)})"
            for role, count in sorted(counts.items())
            if config.weight(role) > 0
        ]
        left_out = sum(config.weight(group.role) > 0 for group in after.apart) if config.only_competing else 0
        more = f"; {left_out} more, whose neurons do not compete, were left out" if left_out else ""
        parts.append(f"\nGroups with a weight above 0: {'; '.join(spread) or 'none'}{more}.")
    return "\n".join(parts)


def comparison(
    before: EnergyReport | None,
    after: EnergyReport,
    metrics: Mapping[str, float],
    metrics_before: Mapping[str, float],
) -> str:
    """The model in a few numbers, with those of the run before beside them where they are known."""
    reports = [after] if before is None else [before, after]
    header = ["", "value"] if before is None else ["", "before", "after"]
    rows = [
        ["mean spread", *(number(report.summary.mean_spread) for report in reports)],
        ["most crowded layer", *(_named(report, "most_crowded", "lowest_spread") for report in reports)],
        ["mean score", *(number(report.summary.mean_score) for report in reports)],
        ["median score", *(number(report.summary.median_score) for report in reports)],
        ["most redundant layer", *(_named(report, "most_redundant", "most_redundant_score") for report in reports)],
        ["largest cosine", *(number(report.summary.max_cosine) for report in reports)],
        [
            f"pairs with a cosine of {after.duplicate_cosine:g} or more",
            *(number(report.summary.near_duplicates) for report in reports),
        ],
        ["dead neurons", *(number(report.summary.dead) for report in reports)],
        ["groups", *(number(report.summary.groups) for report in reports)],
    ]
    names = [*metrics, *(name for name in metrics_before if name not in metrics)]
    sides = [metrics] if before is None and not metrics_before else [metrics_before, metrics]
    if len(sides) > len(reports):
        header = ["", "before", "after"]
        rows = [[row[0], "–", *row[1:]] for row in rows]
    rows = [[text(name), *(number(side.get(name)) for side in sides)] for name in names] + rows
    title = "### Before and after" if len(header) == 3 else "### In numbers"
    return f"{title}\n\n{table(header, rows)}"


def layers(before: EnergyReport | None, after: EnergyReport) -> str:
    """The layers that stood out: most crowded first, by the report before where there is one."""
    first = before or after
    old = {group.name: group for group in before.groups} if before is not None else {}
    new = {group.name: group for group in after.groups}
    names = [group.name for group in first.competing if group.name in new][:TOP_ROWS]
    # The leading number comes last, beside the one before.
    numbers = [each for each in columns(GroupEnergy, Shown.CARD) if not each.is_text]
    numbers.sort(key=lambda column: column.key == LEADING)
    texts = [each for each in columns(GroupEnergy, Shown.CARD) if each.is_text and not each.is_name]
    header = ["layer", *(each.label for each in texts), "n × d", *(each.label for each in numbers)]
    if before is not None:
        header += [f"{numbers[-1].label} before"]
    rows = []
    for name in names:
        group = new[name]
        row = [code(name), *(text(each.of(group) or "–") for each in texts), f"{group.n} × {group.d}"]
        row += [number(each.of(group)) for each in numbers]
        rows.append(row + ([number(numbers[-1].of(old[name]))] if before is not None else []))
    which = "most crowded before" if before is not None else "most crowded"
    caption = f"The {len(names)} {which}, of {len(after.competing)}; all of them in `energy_report.json`."
    return f"### Layers\n\n{caption}\n\n{table(header, rows, numbers_from=1 + len(texts))}"


def figures(paths: Mapping[str, str]) -> str:
    """The figures, which lie beside the card: path to caption."""
    return "\n\n".join(f"![{caption}]({path})" for path, caption in paths.items())


def versions() -> str:
    """What wrote this card."""
    found = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"### Versions\n\nMeasured and written with {', '.join(map(text, found))}."


def citation() -> str:
    """The paper."""
    return f"### Citation\n\n```bibtex\n{BIBTEX}```"


def _named(report: EnergyReport, layer: str, value: str) -> str:
    name = getattr(report.summary, layer)
    return "–" if name is None else f"{code(name)} ({number(getattr(report.summary, value))})"
