"""The model card: metadata that the Hub indexes, and a body that proves what was done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypedDict

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError
from hf_mhe.hub import body
from hf_mhe.hub.folder import ModelFacts
from hf_mhe.hub.load_lines import loading, verifying
from hf_mhe.hub.markdown import text
from hf_mhe.hub.names import check_repo_id
from hf_mhe.hub.paths import hub_id
from hf_mhe.training import MHEConfig

BEGIN, END = "<!-- hf_mhe: begin, rewritten by every push -->", "<!-- hf_mhe: end -->"
TAGS = ("hf_mhe", "minimum-hyperspherical-energy")


class CardKeywords(TypedDict, total=False):
    """What a user may say of a model beside what was measured; see `model_card`."""

    base_model: str | None
    license: str | None
    datasets: str | Sequence[str] | None
    dataset_split: str | None
    language: str | Sequence[str] | None
    tags: Sequence[str]


def check_card_keywords(given: Mapping[str, Any]) -> None:
    """Make sure that further keywords are known ones, of the right type.

    Raises:
        MHEError: an unknown keyword (the known ones are listed), or a value of a wrong type.
    """
    lists = ("datasets", "language", "tags")
    for name, value in given.items():
        if name not in CardKeywords.__annotations__:
            known = ", ".join(CardKeywords.__annotations__)
            raise MHEError(f"{name!r} is no keyword of a model card; there are: {known}")
        if value is None or (isinstance(value, str) and name != "tags"):
            continue
        listed = name in lists and isinstance(value, Sequence) and not isinstance(value, str)
        if not listed or not all(isinstance(item, str) for item in value):
            right = "a list of strings" if name == "tags" else "a string or a list" if name in lists else "a string"
            raise MHEError(f"{name} must be {right}; got {value!r}")
    base = given.get("base_model")
    if base is not None and hub_id(base) is None:
        raise MHEError(f"base_model must be the id of a repository, such as 'google/vit-base'; got the path {base!r}")


def model_card(
    after: EnergyReport,
    before: EnergyReport | None = None,
    *,
    config: MHEConfig | None = None,
    metrics: Mapping[str, float] | None = None,
    metrics_before: Mapping[str, float] | None = None,
    repo_id: str | None = None,
    facts: ModelFacts | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: str | Sequence[str] | None = None,
    dataset_split: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
    figures: Mapping[str, str] | None = None,
) -> ModelCard:
    """A model card from what was measured; nothing is claimed that is not in the arguments.

    Args:
        after: the energies of the model that the card is for.
        before: those of what it is compared with: the model before the training, or trained without MHE.
        config: what was regularized.
        metrics: the model's task metrics by name, such as `{"accuracy": 0.97}`; a `model-index` is made of them when
            the task is known and there is exactly one data set.
        metrics_before: the same of the model that it is compared with.
        repo_id: where the model is published; named in the lines to load and to verify.
        facts: library, architecture and task; `hub.folder.read_facts` reads them from a folder.
        base_model: repo id of the model that was fine-tuned. Not guessed: None leaves it out.
        license: the Hub's name of a licence, such as `"apache-2.0"`.
        datasets: id or ids of the data sets, of which the metrics are when it is one.
        dataset_split: the split that the metrics were measured on.
        language: language code or codes.
        tags: further tags.
        figures: paths of figures, relative to the card, and their captions.

    Raises:
        MHEError: an argument of a wrong type, reports of different potentials, a metric that is not a finite number.
    """
    check_reports(before, after)
    if config is not None and not isinstance(config, MHEConfig):
        raise MHEError(f"config must be an MHEConfig or None; got {type(config).__name__}")
    if repo_id is not None:
        check_repo_id(repo_id)
    facts = facts or ModelFacts()
    metrics, metrics_before = check_metrics(metrics, "metrics"), check_metrics(metrics_before, "metrics_before")
    named = [datasets] if isinstance(datasets, str) else list(datasets or ())
    name = repo_id.split("/")[1] if repo_id else (facts.architecture or "Model")
    results = None
    if metrics and facts.task and len(named) == 1:
        results = [
            EvalResult(
                task_type=facts.task,
                dataset_type=named[0],
                dataset_name=named[0],
                dataset_split=dataset_split,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in metrics.items()
        ]
    if base_model is None and facts.adapter is not None:
        base_model = facts.adapter.base
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if base_model and facts.adapter is not None else {}
    data = ModelCardData(
        library_name=facts.library,
        pipeline_tag=facts.task,
        base_model=base_model,
        license=license,
        datasets=named or None,
        language=language if language is None or isinstance(language, str) else list(language),
        metrics=list(metrics) or None,
        tags=[*TAGS, *tags],
        model_name=name if results else None,
        eval_results=results,
        **relation,
    )
    sections = ["## Minimum hyperspherical energy", body.introduction(config, before, after)]
    if config is not None:
        sections.append(body.regularized(config, after))
    sections.append(body.comparison(before, after, metrics, metrics_before))
    sections.append(body.layers(before, after))
    if figures:
        sections.append(body.figures(figures))
    how_to_load = None if repo_id is None else loading(facts, repo_id)
    if how_to_load is not None:
        sections.append(how_to_load)
    sections += [verifying(after, facts, repo_id or "."), body.versions(), body.citation()]
    section = "\n\n".join([BEGIN, *sections, END])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {text(name)}\n\n{section}\n")


def check_reports(before: EnergyReport | None, after: EnergyReport) -> None:
    """Make sure that two reports can stand side by side.

    Raises:
        MHEError: one is not an `EnergyReport`, has no group, or their potentials differ.
    """
    for label, report in (("after", after), ("before", before)):
        if report is None and label == "before":
            continue
        if not isinstance(report, EnergyReport):
            raise MHEError(f"{label} must be an EnergyReport (what analyze returns); got {type(report).__name__}")
        if not report.groups:
            raise MHEError(
                f"the report {label} ({report.source}) has no group of neurons; there is nothing to publish"
            )
    if before is not None and before.potential != after.potential:
        raise MHEError(
            f"before and after must be of one potential; before has {before.potential.describe()}, "
            f"after {after.potential.describe()}: analyze both alike"
        )


def check_metrics(metrics: Mapping[str, float] | None, label: str) -> dict[str, float]:
    """The metrics as plain floats.

    Raises:
        MHEError: not a mapping of names to finite numbers.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise MHEError(f'{label} must be a mapping such as {{"accuracy": 0.97}}; got {type(metrics).__name__}')
    for name, value in metrics.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, Real):
            raise MHEError(f"{label} must map names to numbers; got {name!r}: {value!r}")
        if not math.isfinite(value):
            raise MHEError(f"{label}[{name!r}] must be finite; got {value!r}")
    return {name: float(value) for name, value in metrics.items()}
