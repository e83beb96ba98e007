"""The model card: what it claims, and that no name can break it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from markdown_it import MarkdownIt

import hf_mhe
from hf_mhe.hub import model_card
from hf_mhe.hub.folder import facts_of
from hf_mhe.hub.markdown import code, text
from hf_mhe.hub.readme import is_only_ours, merge_readme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESNET = facts_of("transformers", "ResNetForImageClassification")


class Cells(HTMLParser):
    """The text of every table row of a page, and all of its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def rendered(markdown: str) -> Cells:
    """A card as a browser gets it, by an independent CommonMark renderer with tables."""
    return Cells(MarkdownIt("commonmark").enable("table").render(markdown))


def test_every_number_comes_from_the_reports(resnet: PreTrainedModel, baseline: PreTrainedModel) -> None:
    """If this fails, a card claims what nobody measured, or leaves out what was."""
    before, after = hf_mhe.analyze(baseline), hf_mhe.analyze(resnet)
    card = model_card(
        after, before, metrics={"accuracy": 0.5}, metrics_before={"accuracy": 0.25}, repo_id="alice/x", facts=RESNET
    )
    page = rendered(card.text)
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["mean spread"] == [f"{report.summary.mean_spread:.4f}" for report in (before, after)]
    for report, cell in zip((before, after), rows["most crowded layer"], strict=True):
        worst = min(report.groups, key=lambda group: group.spread)
        assert cell == f"{worst.name} ({worst.spread:.4f})"
    assert rows["mean score"] == [f"{report.summary.mean_score:.4f}" for report in (before, after)]
    assert rows["accuracy"] == ["0.2500", "0.5000"]
    for report, cell in zip((before, after), rows["most redundant layer"], strict=True):
        worst = max(report.groups, key=lambda group: group.score or 0.0)
        assert cell == f"{worst.name} ({worst.score:.4f})"
    for group in after.groups:
        role, verdict, shape, *cells = rows[group.name]
        assert (role, verdict, shape) == (group.role, group.verdict, f"{group.n} × {group.d}")
        numbers = (group.equivalent_dimension, group.energy, group.expected, group.score, group.max_cosine)
        assert cells == [f"{number:.4f}" for number in (*numbers, group.spread, before[group.name].spread)]
    assert "was trained with" not in card.text, "no config was given, so no training can be claimed"
    assert 'AutoModelForImageClassification.from_pretrained("alice/x")' in card.text
    assert "hf-mhe analyze alice/x\n" in card.text
    assert "1805.09298" in card.text


def test_metadata_says_what_is_known_and_no_more(resnet: PreTrainedModel) -> None:
    """If this fails, the Hub files the model wrongly, or shows a result for a data set that it is not of."""
    after = hf_mhe.analyze(resnet)
    bare = model_card(after)
    assert bare.data.to_dict() == {"tags": ["hf_mhe", "minimum-hyperspherical-energy"]}
    two = model_card(
        after, metrics={"accuracy": 0.5}, datasets=["a/b", "c/d"], facts=RESNET, tags=["x"], license="mit"
    )
    told = two.data.to_dict()
    assert "model-index" not in told, "of which of two data sets the metric is, nobody said"
    assert (told["datasets"], told["metrics"], told["license"]) == (["a/b", "c/d"], ["accuracy"], "mit")
    one = model_card(after, metrics={"accuracy": 0.5}, datasets="a/b", dataset_split="test", facts=RESNET)
    index = yaml.safe_load(str(one).split("---\n")[1])["model-index"]
    assert index == [
        {
            "name": "ResNetForImageClassification",
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"name": "a/b", "type": "a/b", "split": "test"},
                    "metrics": [{"type": "accuracy", "value": 0.5}],
                }
            ],
        }
    ]


def test_config_and_other_potentials_are_stated(resnet: PreTrainedModel) -> None:
    """If this fails, nobody can repeat the training or the measurement from the card."""
    config = hf_mhe.MHEConfig(s=1.0, distance="angular", hidden_weight=2.5, output_weight=0.0)
    after = hf_mhe.analyze(resnet, s=0.0, distance="angular", space="half")
    card = model_card(after, config=config, repo_id="alice/x")
    rows = {row[0]: row[1:] for row in rendered(card.text).rows}
    for name, value in config.to_dict().items():
        assert rows[name] == [str(value)]
    assert "This model was trained with" in card.text
    across = model_card(after, config=hf_mhe.MHEConfig(hidden_weight=0.5, across=["experts", "layers"]))
    assert "mean energy + Σ over stacks (experts, layers) of 0.5 × mean energy between their members." in across.text
    off = model_card(after, config=hf_mhe.MHEConfig(hidden_weight=0.0, output_weight=0.0))
    assert "was trained with" not in off.text, "with every weight at 0 nothing was regularized"
    assert "6 hidden (weight 2.5, s=1, angular, half space)." in card.text
    assert "hf-mhe analyze alice/x --s 0 --distance angular --space half\n" in card.text
    call = next(line for line in card.text.splitlines() if line.startswith("report = "))
    assert call == 'report = hf_mhe.analyze("alice/x", s=0, distance="angular", space="half")'


OTHERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "soft_orthogonality": ("soft orthogonality (SO)", "1810.09102", {}),
    "minimal_angle": ("minimal angle (MMA)", "2006.06527", {"space": "half"}),
    "srip": ("spectral restricted isometry (SRIP)", "1810.09102", {"objective_options": "{'iterations': 2}"}),
    "comhe_random": (
        "random-projection CoMHE",
        "1906.04892",
        {
            "s": "2.0",
            "distance": "euclidean",
            "space": "half",
            "softening": "auto",
            "part_copies": "True",
            "objective_options": "{'dim': 40, 'projections': 20}",
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_objective_is_not_passed_off_as_the_energy(name: Any, resnet: PreTrainedModel) -> None:
    """If this fails, a card says that a model was trained with an energy that nothing minimized."""
    title, paper, settings = OTHERS[name]
    config = hf_mhe.MHEConfig(objective=name, hidden_weight=2.5, output_weight=0.0)
    card = model_card(hf_mhe.analyze(resnet), config=config)
    rows = {row[0]: row[1:] for row in rendered(card.text).rows}
    assert rows["objective"] == [name]
    shown = {key: rows[key][0] for key in OTHERS["comhe_random"][2] if rows.get(key, ["None"]) != ["None"]}
    assert shown == settings
    assert (
        f"This model was trained with a penalty on the neurons of its layers, {title} ([arXiv:{paper}](" in card.text
    )
    assert f"(weight of the group's role) × {title}." in card.text
    assert f"6 hidden (weight 2.5, {title}" in card.text
    assert "trained with minimum hyperspherical energy" not in card.text


def test_what_does_not_compete_is_counted_where_it_was_regularized() -> None:
    """If this fails, a card says that depthwise kernels were regularized which were not, or the other way round."""
    import torch

    layers = [torch.nn.Conv2d(6, 6, 3, groups=6), torch.nn.Conv2d(6, 9, 1), torch.nn.Conv2d(9, 9, 3, groups=9)]
    report = hf_mhe.analyze(torch.nn.Sequential(*layers))
    card = model_card(report, config=hf_mhe.MHEConfig())
    hidden = "hidden (weight 1, s=2, euclidean, half space"
    assert f"weight above 0: 1 {hidden}" in card.text
    assert "; 2 more, whose neurons do not compete, were left out." in card.text
    card = model_card(report, config=hf_mhe.MHEConfig(only_competing=False))
    assert f"weight above 0: 3 {hidden}" in card.text
    assert "were left out" not in card.text


def test_partial_report_is_not_passed_off_as_the_whole(resnet: PreTrainedModel) -> None:
    """If this fails, a card promises a mean score of the model that is only that of some of its layers."""
    part = hf_mhe.analyze(resnet, include="resnet.encoder.*")
    card = model_card(part, repo_id="alice/x")
    assert "hf-mhe analyze alice/x" not in card.text
    assert f"of these {len(part.groups)} groups" in card.text
    assert "left out" in card.text


@pytest.mark.parametrize(
    "name", ["a|b", "`code`", "``", "<script>", "[x](y)", "**bold**", "_a_b_", "a\\", "#h", "$x$", "&amp;", "a\n| b |"]
)
def test_hostile_names_stay_names(name: str, resnet: PreTrainedModel) -> None:
    """If this fails, a layer's or metric's name breaks a table, or puts markup into somebody's browser."""
    report = hf_mhe.analyze(resnet)
    groups = [dataclasses.replace(report.groups[0], name=name), *report.groups[1:]]
    card = model_card(dataclasses.replace(report, groups=groups), metrics={name: 0.5})
    page = rendered(card.text)
    shown = " ".join(name.split())
    first_cells = [row[0] for row in page.rows]
    assert first_cells.count(shown) == 2
    assert len({len(row) for row in page.rows if row[0] in {shown, *(group.name for group in groups)}}) == 2
    assert not {"script", "strong"} & set(rendered(text(name) + code(name)).tags)


def test_owner_text_and_metadata_stay(resnet: PreTrainedModel) -> None:
    """If this fails, publishing again destroys what somebody wrote by hand."""
    first, second = (model_card(hf_mhe.analyze(resnet), license=name) for name in ("mit", "apache-2.0"))
    assert is_only_ours(merge_readme(None, first, "here"))
    written = "---\nlanguage: de\ntags: mine\nmodel-index:\n- name: old\n  results:\n  - task:\n      type: t\n"
    written += "    dataset:\n      type: d\n      name: D\n    metrics:\n    - type: m\n      value: 1\n---\n"
    mine = merge_readme(written + "# Mine\n\nabove\n", first, "here")
    assert not is_only_ours(mine)
    again = merge_readme(mine + "\nbelow\n", second, "here")
    assert again.count("## Minimum hyperspherical energy") == 1
    assert again.index("above") < again.index("## Minimum hyperspherical energy") < again.index("\nbelow\n")
    data = yaml.safe_load(again.split("---\n")[1])
    assert data["tags"] == ["mine", "hf_mhe", "minimum-hyperspherical-energy"]
    assert (data["language"], data["license"], data["model-index"][0]["name"]) == ("de", "apache-2.0", "old")
    assert merge_readme(again, second, "here") == again, "the same push again must change nothing"
    no_metadata = merge_readme("only text\n", first, "here")
    assert no_metadata.startswith("---\n")
    assert "\nonly text\n" in no_metadata


def test_results_replace_only_their_own(resnet: PreTrainedModel) -> None:
    """If this fails, a second push shows a stale accuracy, or drops the results on another data set."""
    report = hf_mhe.analyze(resnet)

    def card(value: float, dataset: str) -> Any:
        return model_card(report, metrics={"accuracy": value}, datasets=dataset, facts=RESNET)

    readme = merge_readme(str(card(0.1, "a/a")), card(0.2, "b/b"), "here")
    readme = merge_readme(readme, card(0.3, "a/a"), "here")
    results = yaml.safe_load(readme.split("---\n")[1])["model-index"][0]["results"]
    assert {row["dataset"]["type"]: row["metrics"][0]["value"] for row in results} == {"a/a": 0.3, "b/b": 0.2}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"metrics": {"accuracy": math.nan}}, r"metrics\['accuracy'\] must be finite"),
        ({"metrics": {"accuracy": "high"}}, "metrics must map names to numbers; got 'accuracy': 'high'"),
        ({"metrics": [0.5]}, "metrics must be a mapping"),
        ({"config": {"s": 2}}, "config must be an MHEConfig or None; got dict"),
        ({"before": "folder"}, "before must be an EnergyReport"),
        ({"repo_id": "x"}, "'namespace/name'"),
    ],
)
def test_bad_arguments(keywords: Mapping[str, Any], message: str, resnet: PreTrainedModel) -> None:
    """If this fails, a slip in a call ends up published."""
    with pytest.raises(hf_mhe.MHEError, match=message):
        model_card(hf_mhe.analyze(resnet), **keywords)
