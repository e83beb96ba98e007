"""Which group of one report is which of another: by name, also where one model stands inside the other.

Note [Names of one layer]. A layer is called `encoder.layer.0...` in a bare model and `bert.encoder.layer.0...` in the
same model with a head: transformers' loading adds or removes the model's `base_model_prefix`. A component of a
pipeline (`unet.`), a language model inside a vision-language one (`model.language_model.`) and a model inside a user's
own module differ alike: one side's names have further parts in one place near the front. So a group is first matched
with the one of its own name, as transformers does; what is left over on both sides is matched by that one insertion
that brings most groups of equal shape together. Nothing but names and shapes is needed, so that reports which were
saved as JSON are matched as models are. Rejected: the prefixes that transformers' classes declare, which no report
holds, and which know of no pipeline and no user's module; parts replaced by others (`bert.` by `roberta.`, layer 0 by
layer 1), which would set different layers side by side; an insertion that brings less than a quarter of the smaller
model together, which is a name that two layers share by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.errors import MHEError

_MOST_BEFORE = 2  # parts in front of the inserted ones: `model.` of `model.language_model.`
_MOST_INSERTED = 4
_LEAST_SHARE = 4  # one in that many groups of the smaller model
# What training, peft and sentence-transformers put in front of a model's names.
_WRAPPED = re.compile(r"^((_orig_mod|module|base_model\.model|\d+\.(auto_model|model))\.)+")

Shape = tuple[int, int]
Shapes = Mapping[str, Shape]
Pairs = dict[str, str]
"""Name in after -> name in before."""


@dataclass(frozen=True)
class Matching:
    """`pairs`: each matched group's name in after -> its name in before; `notes`: what a reader must know of them."""

    pairs: Pairs
    notes: tuple[str, ...] = ()


def match_groups(before: Iterable[GroupEnergy], after: Iterable[GroupEnergy]) -> Matching:
    """Match the groups of two reports; see Note [Names of one layer].

    Raises:
        MHEError: one model stands in several places inside the other, and nothing says which of them is meant.
    """
    sides = [{group.name: group_shape(group) for group in groups} for groups in (before, after)]
    found = _aligned(*sides)
    outer = [_unwrapped(side) for side in sides]
    if any(names != dict(zip(side, side, strict=True)) for names, side in zip(outer, sides, strict=True)):
        inner = [
            {name: side[whole] for name, whole in names.items()} for names, side in zip(outer, sides, strict=True)
        ]
        looked_through = _aligned(*inner)
        if looked_through.fits > found.fits:
            pairs = {outer[1][name]: outer[0][other] for name, other in looked_through.pairs.items()}
            found = _Alignment(pairs, looked_through.fits, looked_through.undecided)
    if found.undecided is not None:
        raise MHEError(found.undecided)
    return Matching(found.pairs, tuple(_notes(found.pairs, *sides)))


def group_shape(group: GroupEnergy) -> Shape:
    """The shape of the matrix that a group is, its dead rows included."""
    return group.n + group.dead, group.d


@dataclass(frozen=True)
class _Alignment:
    """Pairs, how many of them have equal shapes, and the error where nothing says what belongs together."""

    pairs: Pairs
    fits: int
    undecided: str | None = None


def _aligned(before: Shapes, after: Shapes) -> _Alignment:
    pairs = {name: name for name in after if name in before}
    same = _fits(pairs, before, after)
    left = [{name: shape for name, shape in side.items() if name not in pairs} for side in (before, after)]
    if not all(left):
        return _Alignment(pairs, same)
    candidates = [*_inserted(left[0], left[1])]
    candidates += [{other: name for name, other in found.items()} for found in _inserted(left[1], left[0])]
    ranked: dict[tuple[int, int], list[Pairs]] = {}
    for found in candidates:
        ranked.setdefault((_fits(found, before, after), len(found)), []).append(found)
    rank = max(ranked, default=(0, 0))
    if rank[0] == 0 or _LEAST_SHARE * rank[0] < min(len(before), len(after)):
        return _Alignment(pairs, same)
    best, *others = ranked[rank]
    rival = next((other for other in others if other != best), None)
    if rival is None:
        return _Alignment({**pairs, **best}, same + rank[0])
    return _Alignment(pairs, same + rank[0], _undecided(best, rival)) if rank[0] > same else _Alignment(pairs, same)


def _fits(pairs: Pairs, before: Shapes, after: Shapes) -> int:
    return sum(before[other] == after[name] for name, other in pairs.items())


def _inserted(short: Shapes, long: Shapes) -> Iterator[Pairs]:
    """The ways in which names of `long` are names of `short` with parts inserted: name in long -> name in short."""
    found: dict[tuple[str, str], Pairs] = {}
    for name in long:
        parts = name.split(".")
        for start in range(min(_MOST_BEFORE, len(parts) - 2) + 1):
            if start and parts[start - 1].isdigit():
                break
            for stop in range(start + 1, min(start + _MOST_INSERTED, len(parts) - 1) + 1):
                other = ".".join((*parts[:start], *parts[stop:]))
                if other in short:
                    place = ".".join(parts[:start]), ".".join(parts[start:stop])
                    found.setdefault(place, {})[name] = other
    return iter(found.values())


def _unwrapped(side: Shapes) -> dict[str, str]:
    """Name without what wrappers put in front -> the whole name; the names as they are where two would collide."""
    names = {_WRAPPED.sub("", name): name for name in side}
    return names if len(names) == len(side) else dict(zip(side, side, strict=True))


def _undecided(one: Pairs, other: Pairs) -> str:
    partner = {before: after for after, before in other.items()}
    for after, before in sorted(one.items()):
        if partner.get(before, after) != after:
            places = f"{before} before may be {' or '.join(sorted((after, partner[before])))} after"
            break
        if other.get(after, before) != before:
            places = f"{after} after may be {' or '.join(sorted((before, other[after])))} before"
            break
    else:
        places = f"{min(one)} and {min(other)} after both fit what is before"
    return f"one model stands in several places inside the other: {places}; compare with one of these parts alone"


def _notes(pairs: Pairs, before: Shapes, after: Shapes) -> Iterator[str]:
    renamed = [(other, name) for name, other in pairs.items() if name != other]
    if renamed:
        other, name = renamed[0]
        yield f"{len(renamed)} layers go by other names on the two sides, such as {other} before, {name} after"
    resized = [(name, before[other], after[name]) for name, other in pairs.items() if before[other] != after[name]]
    if resized:
        name, was, is_now = resized[0]
        yield (
            f"{len(resized)} layers have another shape on the two sides, such as {name}: "
            f"{was[0]} x {was[1]} before, {is_now[0]} x {is_now[1]} after"
        )
