"""The model card: metadata that the Hub indexes, and a body that proves what was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_mhe.analysis import EnergyReport
from hf_mhe.hub import body
from hf_mhe.hub.claims import CardKeywords, Claims
from hf_mhe.hub.folder import ModelFacts
from hf_mhe.hub.load_lines import loading, verifying
from hf_mhe.hub.markdown import text
from hf_mhe.training import MHEConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

BEGIN, END = "<!-- hf_mhe: begin, rewritten by every push -->", "<!-- hf_mhe: end -->"
TAGS = ("hf_mhe", "minimum-hyperspherical-energy")


def model_card(
    after: EnergyReport,
    before: EnergyReport | None = None,
    *,
    config: MHEConfig | None = None,
    metrics: Mapping[str, float] | None = None,
    metrics_before: Mapping[str, float] | None = None,
    repo_id: str | None = None,
    facts: ModelFacts | None = None,
    figures: Mapping[str, str] | None = None,
    **card: Unpack[CardKeywords],
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
        figures: paths of figures, relative to the card, and their captions.
        **card: `base_model`, repo id of the model that was fine-tuned (not guessed: None leaves it out); `license`,
            the Hub's name of a licence, such as `"apache-2.0"`; `datasets`, id or ids of the data sets, of which the
            metrics are when it is one; `dataset_split`, the split that the metrics were measured on; `language`, code
            or codes; `tags`, further tags.

    Raises:
        MHEError: an argument of a wrong type, reports of different potentials, a metric that is not a finite number.
    """
    claims = Claims(config, before, after, metrics, metrics_before, repo_id, card)
    return write_card(claims, facts or ModelFacts(), figures or {})


def write_card(claims: Claims, facts: ModelFacts, figures: Mapping[str, str]) -> ModelCard:
    """The card of claims whose reports have been measured; see `model_card`.

    Raises:
        MHEError: one of the reports has not been measured yet.
    """
    before, after = claims.reports()
    metrics, metrics_before = claims.metrics or {}, claims.metrics_before or {}
    name = claims.repo_id.split("/")[1] if claims.repo_id else (facts.architecture or "Model")
    sections = ["## Minimum hyperspherical energy", body.introduction(claims.config, before, after)]
    if claims.config is not None:
        sections.append(body.regularized(claims.config, after))
    sections.append(body.comparison(before, after, metrics, metrics_before))
    sections.append(body.layers(before, after))
    if figures:
        sections.append(body.figures(figures))
    how_to_load = None if claims.repo_id is None else loading(facts, claims.repo_id)
    if how_to_load is not None:
        sections.append(how_to_load)
    how_to_verify = verifying(after, facts, claims.repo_id or ".")
    sections += [how_to_verify, body.versions(), body.citation()]
    section = "\n\n".join([BEGIN, *sections, END])
    return ModelCard(f"---\n{_metadata(claims, facts, name).to_yaml()}\n---\n\n# {text(name)}\n\n{section}\n")


def _metadata(claims: Claims, facts: ModelFacts, name: str) -> ModelCardData:
    card, metrics = claims.card, claims.metrics or {}
    named, language = card.get("datasets"), card.get("language")
    datasets = [named] if isinstance(named, str) else list(named or ())
    results = None
    if metrics and facts.task and len(datasets) == 1:
        results = [
            EvalResult(
                task_type=facts.task,
                dataset_type=datasets[0],
                dataset_name=datasets[0],
                dataset_split=card.get("dataset_split"),
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in metrics.items()
        ]
    base_model = claims.base_model
    if base_model is None and facts.adapter is not None:
        base_model = facts.adapter.base
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if base_model and facts.adapter is not None else {}
    return ModelCardData(
        library_name=facts.library,
        pipeline_tag=facts.task,
        base_model=base_model,
        license=card.get("license"),
        datasets=datasets or None,
        language=language if language is None or isinstance(language, str) else list(language),
        metrics=list(metrics) or None,
        tags=[*TAGS, *(card.get("tags") or ())],
        model_name=name if results else None,
        eval_results=results,
        **relation,
    )
