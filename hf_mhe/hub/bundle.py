"""A publishable folder: the model, what it was trained with, what was measured, the figures and the card."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis import Comparison, EnergyReport, analyze, compare
from hf_mhe.analysis.page.plots import why_no_figures
from hf_mhe.analysis.report.files import write_atomic, write_json
from hf_mhe.errors import MHEError
from hf_mhe.hub.adapter import Adapter, find_adapter, is_peft_model, measure_adapter, of_model, read_adapter, with_note
from hf_mhe.hub.card import CardKeywords, check_card_keywords, check_metrics, check_reports, model_card
from hf_mhe.hub.finite import check_finite
from hf_mhe.hub.folder import check_weights, read_facts
from hf_mhe.hub.loader_files import published_files
from hf_mhe.hub.names import (
    COMPARISON,
    FIGURE_COMPARISON,
    FIGURE_REPORT,
    METRICS,
    OURS,
    README,
    REPORT,
    REPORT_BEFORE,
    check_repo_id,
)
from hf_mhe.hub.own_model import check_same_model, own_model
from hf_mhe.hub.paths import hub_id, public_name, without_local_paths
from hf_mhe.hub.readme import BASE_MODEL, check_readme, merge_readme, read_readme
from hf_mhe.hub.saving import save_model
from hf_mhe.hub.staged import staged
from hf_mhe.json_files import read_json_object
from hf_mhe.training import MHEConfig
from hf_mhe.training.config import CONFIG_NAME

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claims:
    """What is said of a model beside its weights; `card` holds further keywords of `model_card`.

    `adapter` is what is known of an adapter from the model in memory, `guessed` the metadata of which a README's owner
    knows better.
    """

    config: MHEConfig | None = None
    before: Any = None
    after: EnergyReport | None = None
    metrics: Mapping[str, float] | None = None
    metrics_before: Mapping[str, float] | None = None
    repo_id: str | None = None
    card: CardKeywords = field(default_factory=CardKeywords)
    adapter: Adapter | None = None
    guessed: frozenset[str] = BASE_MODEL

    def check(self) -> None:
        """Find what is wrong with the claims before anything is computed or written.

        Raises:
            MHEError: an argument of a wrong type, a metric that is not finite, reports of different potentials.
        """
        if self.repo_id is not None:
            check_repo_id(self.repo_id)
        if self.config is not None and not isinstance(self.config, MHEConfig):
            raise MHEError(f"config must be an MHEConfig or None; got {type(self.config).__name__}")
        if self.after is not None:
            check_reports(self.before if isinstance(self.before, EnergyReport) else None, self.after)
        named = self.before is None or isinstance(self.before, EnergyReport | str | os.PathLike)
        if not named and not hasattr(self.before, "named_parameters"):
            raise MHEError(
                f"before must be an EnergyReport, a model, a path, a repo id or None; got {type(self.before).__name__}"
            )
        check_card_keywords(self.card)
        check_metrics(self.metrics, "metrics")
        check_metrics(self.metrics_before, "metrics_before")


def save_for_hub(
    model: Any,
    folder: str | Path,
    *,
    config: MHEConfig | None = None,
    before: Any = None,
    after: EnergyReport | None = None,
    metrics: Mapping[str, float] | None = None,
    metrics_before: Mapping[str, float] | None = None,
    processor: Any = None,
    repo_id: str | None = None,
    **card: Unpack[CardKeywords],
) -> Path:
    """Write a model with all that proves what was done to it into a folder that loads and can be pushed as it is.

    The folder then holds what `model.save_pretrained` writes, `mhe_config.json`, `energy_report.json`,
    `energy_report_before.json` and `comparison.json`, `task_metrics.json`, `figures/` and `README.md`: each as far as
    its input was given. A README that is there keeps its text; only the section between our marks is rewritten.

    Args:
        model: a model with `save_pretrained`, such as any of transformers, as it is or as DDP, torch.compile or
            `AveragedModel` wrapped it.
        folder: where to; made if needed.
        config: what was regularized.
        before: the energies of what the model is compared with: a report, the path of one, or a model, path or repo id
            to analyze.
        after: the model's own energies; measured here if None.
        metrics: the model's task metrics by name, such as `{"accuracy": 0.97}`.
        metrics_before: the same of the model that it is compared with.
        processor: a tokenizer, image processor or the like, saved with the model.
        repo_id: where it will be published, if that is known already.
        **card: further keywords of `model_card`: `base_model`, `license`, `datasets`, `dataset_split`, `language`,
            `tags`.

    Returns:
        The folder.

    Raises:
        MHEError: the model cannot be saved or is not finite, an argument has a wrong type, the reports are of
            different potentials or another model, or the folder is a file. Nothing is written then.
    """
    claims = Claims(config, before, after, metrics, metrics_before, repo_id, card)
    claims.check()
    model = own_model(model)
    target = Path(folder)
    if target.is_file():
        raise MHEError(f"folder must be a folder to write into; {str(target)!r} is a file")
    for label, value in (("model", model), ("processor", processor)):
        if value is not None and not hasattr(value, "save_pretrained"):
            raise MHEError(f"{label} must have save_pretrained, as those of transformers; got {type(value).__name__}")
    if not hasattr(model, "named_parameters"):
        raise MHEError(f"model must be a torch module with save_pretrained; got {type(model).__name__}")
    check_finite(model)
    readme = target / README
    written = readme.read_bytes() if readme.is_file() else None
    if written is not None:
        check_readme(readme, bool(metrics))
    if after is None:
        after = analyze(model, **_settings_of(before))
    else:
        check_same_model(model, after)
    comparison = None if before is None else compare(before, after)
    complete = Claims(config, comparison and comparison.before, after, metrics, metrics_before, repo_id, card)
    if card.get("base_model") is not None:
        complete = replace(complete, guessed=frozenset())
    elif not is_peft_model(model) and (base_model := _hub_origin(model)) is not None:
        card["base_model"] = base_model
    with staged(target, begin_with=[README], replaced=OURS) as staging:
        save_model(model, staging)
        if written is not None:  # some libraries write a README anew, and with it what an owner wrote
            write_atomic(staging / README, written)
        if processor is not None:
            processor.save_pretrained(staging)
        place = find_adapter(staging)
        if is_peft_model(model) and place is not None:
            complete = replace(complete, adapter=of_model(model, read_adapter(staging, place)))
        write_claims(staging, staging, complete, comparison)
    return target


def claims_of_folder(folder: Path, given: Claims) -> tuple[Claims, Comparison | None]:
    """The claims to publish with a folder: those given, else those that an earlier `save_for_hub` left in it.

    The model's energies are measured anew unless they are given, so that a report never outlives its weights.

    Raises:
        MHEError: the folder holds no whole, finite model, or a file in it cannot be read, or the claims do not fit.
    """
    facts = read_facts(folder)
    check_weights(folder)
    config, before, after = given.config, given.before, given.after
    if config is None and (folder / CONFIG_NAME).is_file():
        config = MHEConfig.from_pretrained(folder)
    if before is None and (folder / REPORT_BEFORE).is_file():
        before = EnergyReport.load(folder / REPORT_BEFORE)
    if after is None:
        measured = folder / REPORT
        earlier = EnergyReport.load(measured) if measured.is_file() else None
        settings = _settings_of(before if earlier is None else earlier)
        place = find_adapter(folder) if facts.library == "peft" else None
        after = analyze(folder, **settings) if place is None else measure_adapter(folder, place, earlier, settings)
    metrics, metrics_before = given.metrics, given.metrics_before
    if (folder / METRICS).is_file():
        stored = read_json_object(folder / METRICS, "task metrics")
        metrics = stored.get("after") if metrics is None else metrics
        metrics_before = stored.get("before") if metrics_before is None else metrics_before
    if (folder / README).is_file():
        check_readme(folder / README, bool(metrics))
    comparison = None if before is None else compare(before, after)
    claims = replace(
        given,
        config=config,
        before=comparison and comparison.before,
        after=after,
        metrics=metrics,
        metrics_before=metrics_before,
        guessed=frozenset() if given.card.get("base_model") is not None else given.guessed,
    )
    claims.check()
    return claims, comparison


def write_claims(model_folder: Path, target: Path, claims: Claims, comparison: Comparison | None) -> None:
    """Write all but the weights of a saved model's bundle into a folder, which may be the model's own."""
    assert claims.after is not None
    facts = read_facts(model_folder)
    files = {path.relative_to(model_folder).as_posix(): path for path in published_files(model_folder)}
    base = claims.card.get("base_model")
    without_local_paths({name: path for name, path in files.items() if name not in OURS}, target, base)
    if facts.adapter is not None:
        adapter = claims.adapter or facts.adapter
        facts = replace(facts, adapter=replace(adapter, base=adapter.base or base))
    own_name = claims.repo_id or facts.architecture or model_folder.name
    after = replace(claims.after, source=own_name, revision=None)
    if facts.adapter is not None:
        after = replace(after, notes=with_note(after, model_folder / facts.adapter.folder))
    if target == model_folder:
        for name in OURS:
            (target / name).unlink(missing_ok=True)
    if claims.config is not None:
        claims.config.save_pretrained(target)
    after.save(target / REPORT)
    figures = {}
    if (undrawn := why_no_figures()) is not None:
        _log.warning("the card has no figures: %s", undrawn)
    if comparison is not None:
        before = replace(comparison.before, source=public_name(comparison.before.source))
        shown = Comparison.of(before, after)
        before.save(target / REPORT_BEFORE)
        shown.save(target / COMPARISON)
        if undrawn is None and any(row.score_change is not None for row in shown.rows):
            shown.plot(target / FIGURE_COMPARISON)
            figures[FIGURE_COMPARISON] = "Score of every layer, before and after"
    if undrawn is None and any(group.score is not None for group in after.groups):
        after.plot(target / FIGURE_REPORT)
        figures[FIGURE_REPORT] = "Score of every layer"
    metrics = check_metrics(claims.metrics, "metrics")
    metrics_before = check_metrics(claims.metrics_before, "metrics_before")
    if metrics or metrics_before:
        sides = {"after": metrics, "before": metrics_before}
        write_json(target / METRICS, {side: values for side, values in sides.items() if values})
    card = model_card(
        after,
        None if comparison is None else comparison.before,
        config=claims.config,
        metrics=metrics,
        metrics_before=metrics_before,
        repo_id=claims.repo_id,
        facts=facts,
        figures=figures,
        **claims.card,
    )
    readme = model_folder / README
    existing = read_readme(readme, str(readme)) if readme.is_file() else None
    write_atomic(target / README, merge_readme(existing, card, str(readme), found=claims.guessed))


def _settings_of(before: Any) -> dict[str, Any]:
    """How to analyze so that the result can be compared with a report that is there already."""
    if not isinstance(before, EnergyReport):
        return {}
    return {
        "s": before.s,
        "distance": before.distance,
        "space": before.space,
        "duplicate_cosine": before.duplicate_cosine,
    }


def _hub_origin(model: Any) -> str | None:
    """The repo id that a transformers model was loaded from; None unless the Hub's cache shows that it was."""
    from huggingface_hub import try_to_load_from_cache

    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    known = hub_id(name)
    if known is None or known.count("/") != 1:
        return None
    return known if isinstance(try_to_load_from_cache(known, "config.json"), str) else None
