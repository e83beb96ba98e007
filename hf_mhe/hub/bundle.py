"""A publishable folder: the model, what it was trained with, what was measured, the figures and the card."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis import Comparison, EnergyReport, analyze, compare
from hf_mhe.analysis.checkpoint.reader import open_checkpoint
from hf_mhe.analysis.page.plots import why_no_figures
from hf_mhe.analysis.report.files import write_atomic, write_json
from hf_mhe.errors import MHEError
from hf_mhe.hub.adapter import find_adapter, is_peft_model, measure_adapter, of_model, read_adapter, with_note
from hf_mhe.hub.card import write_card
from hf_mhe.hub.claims import CardKeywords, Claims
from hf_mhe.hub.finite import check_finite, check_values
from hf_mhe.hub.folder import ModelFacts, check_files, read_facts
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
)
from hf_mhe.hub.own_model import check_same_model, own_model
from hf_mhe.hub.paths import hub_id, public_name, without_local_paths
from hf_mhe.hub.readme import check_readme, merge_readme, read_readme
from hf_mhe.hub.saving import save_model
from hf_mhe.hub.staged import staged
from hf_mhe.json_files import read_json_object
from hf_mhe.training import MHEConfig
from hf_mhe.training.config import CONFIG_NAME

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger(__name__)


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
    save_bundle(model, Path(folder), Claims(config, before, after, metrics, metrics_before, repo_id, card), processor)
    return Path(folder)


def save_bundle(model: Any, target: Path, claims: Claims, processor: Any = None) -> None:
    """Write a model and what is claimed of it; see `save_for_hub`."""
    model = own_model(model)
    _check_saveable(model, target, processor)
    check_finite(model)
    readme = target / README
    written = readme.read_bytes() if readme.is_file() else None
    if written is not None:
        check_readme(readme, bool(claims.metrics))
    if claims.after is None:
        after = analyze(model, **_settings_of(claims.before))
    else:
        after = claims.after
        check_same_model(model, after)
    origin = None if is_peft_model(model) else _hub_origin(model)
    claims = replace(claims, before=_comparable(claims.before, after), after=after, origin=origin)
    with staged(target, begin_with=[README], replaced=OURS) as staging:
        save_model(model, staging)
        if written is not None:  # some libraries write a README anew, and with it what an owner wrote
            write_atomic(staging / README, written)
        if processor is not None:
            processor.save_pretrained(staging)
        place = find_adapter(staging)
        if is_peft_model(model) and place is not None:
            claims = replace(claims, adapter=of_model(model, read_adapter(staging, place)))
        write_claims(staging, staging, claims)


def _check_saveable(model: Any, target: Path, processor: Any) -> None:
    """Find what cannot be saved before anything is measured or written.

    Raises:
        MHEError: the target is a file, or the model or the processor has no `save_pretrained`.
    """
    if target.is_file():
        raise MHEError(f"folder must be a folder to write into; {str(target)!r} is a file")
    for label, value in (("model", model), ("processor", processor)):
        if value is not None and not hasattr(value, "save_pretrained"):
            raise MHEError(f"{label} must have save_pretrained, as those of transformers; got {type(value).__name__}")
    if not hasattr(model, "named_parameters"):
        raise MHEError(f"model must be a torch module with save_pretrained; got {type(model).__name__}")


def claims_of_folder(folder: Path, given: Claims) -> Claims:
    """The claims to publish with a folder: those given, else those that an earlier `save_for_hub` left in it.

    The model's energies are measured anew unless they are given, so that a report never outlives its weights.

    Raises:
        MHEError: the folder holds no whole, finite model, or a file in it cannot be read, or the claims do not fit.
    """
    config, before, after = given.config, given.before, given.after
    metrics, metrics_before = given.metrics, given.metrics_before
    facts = read_facts(folder)
    check_files(folder)
    if after is not None:
        check_values(folder)
    if config is None and (folder / CONFIG_NAME).is_file():
        config = MHEConfig.from_pretrained(folder)
    if before is None and (folder / REPORT_BEFORE).is_file():
        before = EnergyReport.load(folder / REPORT_BEFORE)
    if (folder / METRICS).is_file():
        stored = read_json_object(folder / METRICS, "task metrics")
        metrics = stored.get("after") if metrics is None else metrics
        metrics_before = stored.get("before") if metrics_before is None else metrics_before
    if (folder / README).is_file():
        check_readme(folder / README, bool(metrics))
    is_of_the_files = after is None
    if after is None:
        after = _measure(folder, facts, before)
    before = _comparable(before, after)
    return replace(
        given,
        config=config,
        before=before,
        after=after,
        metrics=metrics,
        metrics_before=metrics_before,
        is_of_the_files=is_of_the_files,
    )


def _comparable(before: Any, after: EnergyReport) -> EnergyReport | None:
    """The report of what a model is compared with, read or measured if need be.

    Raises:
        MHEError: it cannot be, or the two have no group in common.
    """
    return None if before is None else compare(before, after).before


def _measure(folder: Path, facts: ModelFacts, before: Any) -> EnergyReport:
    """The energies of the model in a folder, all of whose weights are looked at: each tensor is read once.

    Raises:
        MHEError: a weight that is not finite, or a model that cannot be measured.
    """
    measured = folder / REPORT
    earlier = EnergyReport.load(measured) if measured.is_file() else None
    settings = _settings_of(before if earlier is None else earlier)
    place = find_adapter(folder) if facts.library == "peft" else None
    if place is not None:
        check_values(folder)
        return measure_adapter(folder, place, earlier, settings)
    with open_checkpoint(folder) as reader:
        try:
            report = analyze(reader, **settings)
        except MHEError:
            check_values(folder)  # where a weight is not finite, that is the reason to give
            raise
        check_values(folder, known=reader.finite)
    return report


def write_claims(model_folder: Path, target: Path, claims: Claims) -> None:
    """Write all but the weights of a saved model's bundle into a folder, which may be the model's own."""
    before, after = claims.reports()
    facts = read_facts(model_folder)
    files = {path.relative_to(model_folder).as_posix(): path for path in published_files(model_folder)}
    base = claims.base_model
    without_local_paths({name: path for name, path in files.items() if name not in OURS}, target, base)
    if facts.adapter is not None:
        adapter = claims.adapter or facts.adapter
        facts = replace(facts, adapter=replace(adapter, base=adapter.base or base))
    if not claims.is_of_the_files:
        facts = replace(facts, is_repeatable=_is_repeatable(model_folder, facts, after))
    own_name = claims.repo_id or facts.architecture or model_folder.name
    after = replace(after, source=own_name, revision=None)
    if facts.adapter is not None:
        after = replace(after, notes=with_note(after, model_folder / facts.adapter.folder))
    if target == model_folder:
        for name in OURS:
            (target / name).unlink(missing_ok=True)
    if claims.config is not None:
        claims.config.save_pretrained(target)
    figures = _write_reports(target, before, after)
    sides = {"after": claims.metrics, "before": claims.metrics_before}
    if any(sides.values()):
        write_json(target / METRICS, {side: values for side, values in sides.items() if values})
    card = write_card(replace(claims, after=after), facts, figures)
    readme = model_folder / README
    existing = read_readme(readme, str(readme)) if readme.is_file() else None
    write_atomic(target / README, merge_readme(existing, card, str(readme), found=claims.guessed))


def _write_reports(target: Path, before: EnergyReport | None, after: EnergyReport) -> dict[str, str]:
    """Write the reports, their comparison and what can be drawn of them; return the figures' captions by path."""
    figures = {}
    after.save(target / REPORT)
    if (undrawn := why_no_figures()) is not None:
        _log.warning("the card has no figures: %s", undrawn)
    if before is not None:
        before = replace(before, source=public_name(before.source))
        comparison = Comparison.of(before, after)
        before.save(target / REPORT_BEFORE)
        comparison.save(target / COMPARISON)
        if undrawn is None and any(row.score_change is not None for row in comparison.rows):
            comparison.plot(target / FIGURE_COMPARISON)
            figures[FIGURE_COMPARISON] = "Spread of every layer, before and after"
    if undrawn is None and any(group.score is not None for group in after.groups):
        after.plot(target / FIGURE_REPORT)
        figures[FIGURE_REPORT] = "Spread of every layer"
    return figures


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


def _is_repeatable(folder: Path, facts: ModelFacts, after: EnergyReport) -> bool:
    """Whether `analyze` of the files gives what was measured in memory.

    It knows the models of every library by their config. For a class of the user's own it can only guess, so that the
    card would claim what nobody else finds: there the files are measured too.
    """
    is_known = facts.code is None and (facts.library != "transformers" or facts.auto_class is not None)
    if facts.adapter is not None or after.left_out > 0 or (is_known and facts.library is not None):
        return True
    try:
        found = analyze(folder, **_settings_of(after)).summary
    except MHEError:
        return False
    claimed = after.summary
    same = (found.groups, found.neurons) == (claimed.groups, claimed.neurons)
    return same and math.isclose(found.mean_score or 0.0, claimed.mean_score or 0.0, abs_tol=5e-5)


def _hub_origin(model: Any) -> str | None:
    """The repo id that a transformers model was loaded from; None unless the Hub's cache shows that it was."""
    from huggingface_hub import try_to_load_from_cache

    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    known = hub_id(name)
    if known is None or known.count("/") != 1:
        return None
    return known if isinstance(try_to_load_from_cache(known, "config.json"), str) else None
