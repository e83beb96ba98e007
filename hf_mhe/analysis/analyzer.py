"""`analyze`: from a model in memory, on disk or on the Hub to its energy report, one group at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_mhe._version import __version__
from hf_mhe.analysis.checkpoint.masks import MASK
from hf_mhe.analysis.checkpoint.reader import CheckpointReader, check_finite, open_checkpoint
from hf_mhe.analysis.checkpoint.stored_groups import StoredGroups
from hf_mhe.analysis.in_memory import Pipeline, as_module
from hf_mhe.analysis.measure import Measuring, group_row
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.report import EnergyReport
from hf_mhe.analysis.report.tokens import Vocabulary
from hf_mhe.analysis.report.unseen import unseen_note, unseen_share
from hf_mhe.analysis.vectors import find_vectors
from hf_mhe.analysis.vocabulary.describe import vocabulary_of
from hf_mhe.energy import PairStatistics, Potential
from hf_mhe.energy.near_duplicates import check_duplicate_cosine, check_max_pairs
from hf_mhe.errors import MHEError
from hf_mhe.neurons import Adapters, Coverage, NeuronGroup, WeightCache, coverage, select_groups
from hf_mhe.text import listed

Progress = Callable[[int, int, str], None]
Patterns = str | Sequence[str] | None

_LEFT_OUT = "left out by the include and exclude patterns"


def analyze(
    model: nn.Module | Pipeline | str | os.PathLike[str] | CheckpointReader,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    s: float = 2.0,
    distance: str = "euclidean",
    space: str = "full",
    include: Patterns = None,
    exclude: Patterns = None,
    by_head: bool = False,
    adapters: Adapters = "effective",
    duplicate_cosine: float = 0.95,
    max_pairs: int = 20,
    column: str | None = None,
    spectrum: bool = False,
    variants: bool = False,
    progress: Progress | None = None,
) -> EnergyReport:
    """Measure how redundantly the neurons of a model point, layer by layer.

    A checkpoint is read one tensor at a time, without building a model. Weights of any floating dtype are walked in
    float32, with the pairs that need it in float64. Experts and heads are reported one by one, and together in
    `report.stacks`. A group that cannot be measured (fewer than two neurons with a direction) is in `report.skipped`
    with the reason, as is every other parameter of two or more dimensions that is in no group.

    Example:
        >>> import torch
        >>> from hf_mhe import analyze
        >>> model = torch.nn.Linear(64, 32)
        >>> _ = torch.nn.init.orthogonal_(model.weight)
        >>> analyze(model).groups[0].verdict
        'spread'

    Args:
        model: a module; a diffusers pipeline; or a checkpoint: a folder with safetensors weights (one file or shards;
            of transformers, diffusers, timm or sentence-transformers, or a whole diffusers pipeline, whose layers then
            begin with the name of their component, `unet.mid_block...`), a `.safetensors` file, or a Hub repo id. A
            file of vectors (`.npy`, or a dataset saved to disk, `.parquet`, `.jsonl`, with `column`) is one group of
            the kind "matrix"; `measure` takes such vectors from memory.
        revision: branch, tag or commit of a Hub repository.
        token: Hub token; None takes the stored one.
        cache_dir: folder of the Hub's cache.
        s: exponent of the energy, any real number of at least 0.
        distance: "euclidean" or "angular".
        space: "full", or "half", where a neuron and its mirror image count alike.
        include: groups to measure: globs on dotted names, or regular expressions after `re:`; None takes all.
        exclude: groups to leave out, in the same way.
        by_head: make the queries, keys and values of each attention head a group of their own.
        adapters: of a model with adapters of peft, "effective" measures a layer by the weight that it computes with,
            "own" by its base weight, with the adapter's matrices as groups of their own (see `neuron_groups`).
        duplicate_cosine: pairs whose cosine reaches it are near-duplicates, in (0, 1].
        max_pairs: how many near-duplicate pairs of a group to list, the closest first.
        column: of a dataset, the column of vectors.
        spectrum: also measure the spectral norm and the ranks of each group, from its singular values.
        variants: also measure each group under the paper's twelve potentials (s of 0, 1 and 2, chords and angles, full
            and half space), in the same walk.
        progress: called as `progress(done, total, name)` as each group begins, and once at the end.

    Returns:
        The report, most crowded group first. Its `unseen` is the share of the weights that could not be measured
        though they were asked for; above 5% a note says why.

    Raises:
        MHEError: nothing readable under that name, a damaged checkpoint, a pickle, a NaN or infinity in a tensor, an
            option out of its range, a pattern that matches nothing, no group that can be measured.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298; the columns
    are defined at `GroupEnergy`.
    """
    potential = Potential(s, distance, space)  # type: ignore[arg-type]
    measuring = Measuring(
        potential, check_duplicate_cosine(duplicate_cosine), check_max_pairs(max_pairs), spectrum, variants
    )
    settings = _Settings(measuring, include, exclude, progress)
    vectors = find_vectors(model, column)
    if vectors is not None:
        if revision is not None:
            raise MHEError(f"revision {revision!r} was given for a file of vectors: only Hub repositories have any")
        return _report(vectors.source, None, vectors.coverage, vectors.matrix, settings)
    module = as_module(model)
    if module is not None:
        if revision is not None:
            raise MHEError(f"revision {revision!r} was given for a model in memory: only Hub repositories have any")
        found = coverage(module, by_head=by_head, adapters=adapters)
        return _report(type(model).__name__, None, found, _live_matrices(), settings)
    if not isinstance(model, (str, os.PathLike, CheckpointReader)):
        raise MHEError(
            "analyze takes a torch.nn.Module, a diffusers pipeline, a path or a Hub repo id, "
            f"got {type(model).__name__}: {model!r:.80}"
        )
    if adapters != "effective":
        raise MHEError(f"adapters={adapters!r} was given for a checkpoint: only a model in memory has any adapters")
    with open_checkpoint(model, revision=revision, token=token, cache_dir=cache_dir) as reader:
        stored = StoredGroups(reader, by_head)
        location = reader.location
        settings = replace(settings, stored=frozenset(reader.tensors), describe=partial(vocabulary_of, source=reader))
        return _report(location.source, location.revision, stored.coverage, stored.matrix, settings)


@dataclass(frozen=True)
class _Settings:
    """What `analyze` was asked, apart from of what."""

    measuring: Measuring
    include: Patterns
    exclude: Patterns
    progress: Progress | None
    stored: frozenset[str] | None = None
    """Names of a checkpoint's tensors."""
    describe: Callable[[str, Tensor, PairStatistics], Vocabulary | None] | None = None
    """What says of a role's matrix what it is made of, if it is a vocabulary."""


def _live_matrices() -> Callable[[NeuronGroup], Tensor]:
    """The matrix of a group of a model; a weight that several are cut from is made once."""
    cache = WeightCache()

    def matrix(group: NeuronGroup) -> Tensor:
        made = group.matrix(cache)
        check_finite(made, f"parameter {' / '.join(group.parameters)}")
        return made

    return matrix


def _report(
    source: str,
    revision: str | None,
    found: Coverage,
    matrix_of: Callable[[NeuronGroup], Tensor],
    settings: _Settings,
) -> EnergyReport:
    potential, progress = settings.measuring.potential, settings.progress
    chosen = select_groups(found.groups, settings.include, settings.exclude) if found.groups else []
    names = {group.name for group in chosen}
    left_out = [(group, _LEFT_OUT) for group in found.groups if group.name not in names]
    rows: list[GroupEnergy] = []
    with torch.no_grad():
        for done, group in enumerate(chosen):
            if progress is not None:
                progress(done, len(chosen), group.name)
            row = _measure(group, matrix_of, settings)
            if isinstance(row, str):
                left_out.append((group, row))
            else:
                rows.append(row)
    if progress is not None and chosen:
        progress(len(chosen), len(chosen), chosen[-1].name)
    skipped = {**found.skipped, **_skipped(left_out, rows)}
    unseen = unseen_share(chosen, found.skipped, settings.stored, settings.include, settings.exclude)
    notes = filter(None, (found.note, unseen_note(unseen, found.skipped, settings.include, settings.exclude)))
    if not rows:
        raise MHEError(f"{source} has no group of neurons that can be measured: {_reasons(skipped)}")
    return EnergyReport(
        groups=rows,
        skipped={name: str(reason) for name, reason in skipped.items()},
        source=source,
        revision=revision,
        s=potential.s,
        distance=potential.distance,
        space=potential.space,
        duplicate_cosine=settings.measuring.duplicate_cosine,
        hf_mhe_version=__version__,
        torch_version=str(torch.__version__),
        notes=(note,) if (note := "; ".join(notes)) else (),
        unseen=unseen,
        left_out=len(found.groups) - len(chosen),
    )


def _measure(group: NeuronGroup, matrix_of: Callable[[NeuronGroup], Tensor], settings: _Settings) -> GroupEnergy | str:
    """The group's row, or the reason why it has none."""
    if group.n < 2:
        return "one neuron only: there is no pair to compare"
    if group.d < 2:
        return "neurons of dimension 1 have no direction to compare"
    matrix = matrix_of(group)
    if group.kind == "unknown" and torch.isneginf(matrix.float()).any():
        return MASK
    live = int(torch.count_nonzero(matrix.detach().ne(0).any(dim=1)))
    if live < 2:
        return f"{live} of {group.n} neurons has a direction, the others are zero: there is no pair to compare"
    try:
        return group_row(
            matrix,
            settings.measuring,
            name=group.name,
            kind=group.kind,
            role=group.role,
            parameters=group.parameters,
            stack=group.stack,
            apart=group.apart,
            describe=None if settings.describe is None else partial(settings.describe, group.role),
        )
    except MHEError as error:
        raise MHEError(f"group {group.name} ({' / '.join(group.parameters)}): {error}") from error


def _skipped(left_out: list[tuple[NeuronGroup, str]], rows: list[GroupEnergy]) -> dict[str, str]:
    """Why groups were not measured, by parameter; by group where another part of the same parameter was measured."""
    measured = {parameter for row in rows for parameter in row.parameters}
    skipped: dict[str, str] = {}
    for group, reason in left_out:
        shared = measured.intersection(group.parameters)
        for name in (group.name,) if shared else group.parameters:
            skipped.setdefault(name, reason)
    return skipped


def _reasons(skipped: dict[str, str]) -> str:
    """The distinct reasons, each with the parameters that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for parameter, reason in skipped.items():
        by_reason.setdefault(reason, []).append(parameter)
    lines: Iterable[str] = (f"{listed(names, 3)}: {reason}" for reason, names in by_reason.items())
    return "; ".join(lines) or "it has no parameter of two or more dimensions"
