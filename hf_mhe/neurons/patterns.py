"""`include` and `exclude`: which groups are meant, by glob or regular expression on dotted names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

from hf_mhe.errors import MHEError
from hf_mhe.neurons.group import NeuronGroup

Patterns = str | Sequence[str] | None


def select_groups(
    groups: Iterable[NeuronGroup], include: Patterns = None, exclude: Patterns = None
) -> list[NeuronGroup]:
    """The groups that match any `include` pattern (all, where None) and no `exclude` pattern, in their order.

    A pattern is a glob over the whole dotted name (`encoder.layer.*.output.dense`; `*` crosses dots), or with the
    prefix `re:` a regular expression searched in it. A pattern without wildcards also takes everything below that
    module. A group goes by its name, its module's name, and the names of the modules it is tied to.

    Raises:
        MHEError: a pattern matches no group (near misses are listed), is no valid regular expression, or is no string.
    """
    groups = list(groups)
    kept = groups
    if include is not None:
        chosen = matching(groups, include, "include")
        kept = [group for index, group in enumerate(groups) if index in chosen]
    if exclude is not None:
        dropped = {id(groups[index]) for index in matching(groups, exclude, "exclude")}
        kept = [group for group in kept if id(group) not in dropped]
    return kept


def names_of(group: NeuronGroup) -> tuple[str, ...]:
    """All dotted names that a pattern may match a group by."""
    return (group.name, group.module, *group.aliases)


def matching(groups: list[NeuronGroup], patterns: Patterns, option: str) -> set[int]:
    """The positions of the groups that match any of the patterns; `option` names them in errors."""
    found: set[int] = set()
    for pattern in as_patterns(patterns, option):
        hits = matched(groups, pattern, option)
        if not hits:
            raise MHEError(f"{option} pattern {pattern!r} matches no neuron group; {_near_misses(pattern, groups)}")
        found |= hits
    return found


def matched(groups: Sequence[NeuronGroup], pattern: str, option: str) -> set[int]:
    """The positions of the groups that match one pattern, which may be none."""
    regex = _compile(pattern, option)
    return {index for index, group in enumerate(groups) if any(regex.search(name) for name in names_of(group))}


def asks_for(parameter: str, include: Patterns, exclude: Patterns) -> bool:
    """Whether `include` and `exclude` would ask for a parameter that is in no group, by its name or its module's."""
    names = (parameter, parameter.rpartition(".")[0])

    def any_of(patterns: Patterns, option: str) -> bool:
        compiled = (_compile(pattern, option) for pattern in as_patterns(patterns, option))
        return any(regex.search(name) for regex in compiled for name in names)

    return (include is None or any_of(include, "include")) and not any_of(exclude, "exclude")


def as_patterns(patterns: Patterns, option: str) -> list[str]:
    """The patterns of an option as a list.

    Raises:
        MHEError: an entry is no string, or is empty.
    """
    if patterns is not None and not isinstance(patterns, Iterable):
        raise MHEError(f"{option} is {patterns!r}; it must be a pattern, or a list of patterns")
    listed = [patterns] if isinstance(patterns, str) else list(patterns or ())
    for pattern in listed:
        if not isinstance(pattern, str) or not pattern:
            raise MHEError(f"{option} holds {pattern!r}; a pattern is a glob on dotted names, or 're:' and a regex")
    return listed


def _compile(pattern: str, option: str) -> re.Pattern[str]:
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise MHEError(f"{option} pattern {pattern!r} is not a valid regular expression: {error}") from error
    if any(wildcard in pattern for wildcard in "*?["):
        return re.compile(rf"\A{translate(pattern)}")
    return re.compile(rf"\A{re.escape(pattern)}(\.|\Z)")


def _near_misses(pattern: str, groups: list[NeuronGroup]) -> str:
    names = list(dict.fromkeys(name for group in groups for name in names_of(group) if name))
    if not names:
        return "the model has no neuron groups"
    near = _closest(pattern, names)
    return f"did you mean {', '.join(near)}?" if near else f"names look like {', '.join(names[:3])}"


def _closest(pattern: str, names: list[str], most: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names most like the pattern, ignoring case: each by the run of as many components that is most like it."""
    wanted = pattern.removeprefix("re:").replace("\\", "").replace("[.]", ".").strip("*.^$").lower()
    length = wanted.count(".") + 1
    matcher = difflib.SequenceMatcher(b=wanted)
    likeness: dict[str, float] = {}  # layers repeat their components: each is compared once

    def alike(components: str) -> float:
        if components not in likeness:
            matcher.set_seq1(components)
            likely = matcher.real_quick_ratio() >= cutoff and matcher.quick_ratio() >= cutoff
            likeness[components] = matcher.ratio() if likely else 0.0
        return likeness[components]

    scored: list[tuple[float, str]] = []
    for name in names:
        parts = name.lower().split(".")
        windows = [".".join(parts[i : i + length]) for i in range(max(1, len(parts) - length + 1))]
        best = max(map(alike, windows))
        if best >= cutoff:
            scored.append((best, name))
    return [name for _, name in sorted(scored, key=lambda entry: -entry[0])[:most]]
