"""Modules that do the same work beside each other or in turn: the experts of a layer, its heads, repeated layers.

Note [Members]
A member is what is compared as a whole: an expert, an attention head, a layer. It is made of neuron groups, its
matrices, and the members of one stack have matrices of the same names and shapes.

- Experts: those stored as one tensor for all (Mixtral, Qwen, DeepSeek, GPT-OSS), and modules in a list named
  `experts`. The router is no part of an expert. Shared experts see every token, and are left out.
- Heads: their queries, keys and values, where the attention module says which rows are whose. Those of one number are
  one product: with fewer keys and values than queries, the queries are one stack, and keys with values another. In the
  output projection a head has columns and not neurons, and it takes no part.
- Layers: modules of one list, at its outermost place; where those have different shapes, as the stages of a Swin,
  those within. Their hidden groups count, and no table, head, or class vector.

A matrix that several members share is in each of them, and members that share all of theirs are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from hf_mhe.choices import Across
from hf_mhe.errors import MHEError
from hf_mhe.neurons.coverage import coverage
from hf_mhe.neurons.group import NeuronGroup
from hf_mhe.neurons.matrices import Adapters
from hf_mhe.neurons.patterns import Patterns, select_groups

_LISTED = re.compile(r"^(?P<stack>(?:.*\.)?(?:\w*_)?experts)\.(?:expert_)?(?P<number>\d+)(?:\.(?P<slot>.+))?$")
_STACKED = re.compile(r"^(?:(?P<stack>.+)\.)?(?P<number>\d+)(?:\.(?P<slot>[^.]*[^.\d][^.]*))?$")
_HEAD = re.compile(r"^(?P<projection>.+)\.head\.(?P<number>\d+)$")
_SHARED = re.compile(r"(^|[._])shared([._]|$)")


@dataclass(frozen=True)
class Stack:
    """Members that are compared with each other.

    `name` is their common name, with `*` for the number; `slots` are the names of a member's matrices, and `members`
    has for each member its groups in that order.
    """

    kind: Across
    name: str
    slots: tuple[str, ...]
    members: tuple[tuple[NeuronGroup, ...], ...]

    @property
    def k(self) -> int:
        """How many members there are."""
        return len(self.members)

    @property
    def size(self) -> int:
        """The coordinates of one member."""
        return sum(group.n * group.d for group in self.members[0])

    @property
    def groups(self) -> list[NeuronGroup]:
        """All groups that it is made of, each once."""
        return list({id(group): group for member in self.members for group in member}.values())

    @property
    def requires_grad(self) -> bool:
        """Whether something in one of its members trains."""
        return any(group.requires_grad for group in self.groups)


def stacks(
    model: nn.Module,
    kinds: Sequence[Across],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    adapters: Adapters = "effective",
) -> list[Stack]:
    """The stacks of members of some kinds in a model, each with two or more; see Note [Members].

    Args:
        model: as in `neuron_groups`.
        kinds: `"experts"`, `"heads"`, `"layers"`.
        include: as in `neuron_groups`: the groups that members are made of.
        exclude: likewise.
        adapters: as in `neuron_groups`.

    Raises:
        MHEError: there is none of a kind; says what there is. Or as `neuron_groups`.
    """
    groups = coverage(model, adapters=adapters).groups
    kept = [group for group in select_groups(groups, include, exclude) if group.role == "hidden"]
    found: dict[Across, list[Stack]] = {}
    for kind in get_args(Across):
        members = _heads(model, kept, adapters) if kind == "heads" else _NAMED[kind](kept)
        found[kind] = list(_stacks(kind, members))
    for kind in kinds:
        if not found[kind]:
            raise MHEError(_nothing(model, kind, found, include is not None or exclude is not None))
    return [stack for kind in kinds for stack in found[kind]]


def _nothing(model: nn.Module, kind: Across, found: dict[Across, list[Stack]], chosen: bool) -> str:
    there = [
        f"{each}: {len(one)} x {one[0].k} ({one[0].name}{', ...' if len(one) > 1 else ''})"
        for each, one in found.items()
        if one
    ]
    within = " among the groups that include and exclude leave" if chosen else ""
    return f"across={kind!r}: {type(model).__name__} has no two {kind} of one shape to push apart{within}; it has " + (
        "; ".join(there) or "neither experts nor heads nor repeated layers"
    )


Place = tuple[str, int, str, NeuronGroup]
"""Of a group: the stack, which member of it, and which matrix of the member."""


def _experts(groups: Sequence[NeuronGroup]) -> Iterator[Place]:
    for group in groups:
        for name in (group.name, *group.aliases):
            match = (_STACKED if group.kind == "expert" else _LISTED).match(name)
            if match is None or _SHARED.search(name):
                continue
            stack, slot = match["stack"] or "", match["slot"] or ""
            if group.kind == "expert" and not slot:  # one module for each matrix of all experts (JetMoe)
                stack, _, slot = stack.rpartition(".")
            yield f"{stack}.*".lstrip("."), int(match["number"]), slot, group


def _heads(model: nn.Module, kept: Sequence[NeuronGroup], adapters: Adapters) -> list[Place]:
    names = {group.name for group in kept}
    found: dict[tuple[str, str], list[tuple[int, NeuronGroup]]] = {}
    for group in coverage(model, by_head=True, adapters=adapters).groups:
        match = _HEAD.match(group.name)
        if match is not None and match["projection"] in names:
            attention = group.module.rpartition(".")[0]
            slot = match["projection"].removeprefix(attention).lstrip(".")
            found.setdefault((attention, slot), []).append((int(match["number"]), group))
    alike: dict[tuple[str, int], list[str]] = {}
    for (attention, slot), heads in found.items():
        alike.setdefault((attention, len(heads)), []).append(slot)
    return [
        (f"{attention}.{'+'.join(slots)}.head.*".lstrip("."), number, slot, group)
        for (attention, _), slots in alike.items()
        for slot in slots
        for number, group in found[attention, slot]
    ]


def _layers(groups: Sequence[NeuronGroup]) -> Iterator[Place]:
    """At the outermost place where there are two of one shape."""
    left, depth = list(groups), 0
    while left:
        placed = [(place, group) for group in left if (place := _layer_at(group, depth)) is not None]
        places = [(*place, group) for place, group in placed]
        taken: set[int] = set()
        for stack, alike in _alike(places):
            for number, member in alike:
                for slot, group in member.items():
                    taken.add(id(group))
                    yield stack, number, slot, group
        left = [group for _, group in placed if id(group) not in taken]
        depth += 1


def _layer_at(group: NeuronGroup, depth: int) -> tuple[str, int, str] | None:
    parts = group.module.split(".")
    listed = _LISTED.match(group.module)
    # The numbers of experts are not those of layers.
    end = len(parts) if listed is None else len([part for part in listed["stack"].split(".") if part])
    at = [index for index, part in enumerate(parts[:end]) if part.isdigit()]
    if depth >= len(at):
        return None
    before, number = ".".join(parts[: at[depth]]), int(parts[at[depth]])
    slot = group.name.removeprefix(".".join(parts[: at[depth] + 1])).lstrip(".")
    return f"{before}.*".lstrip("."), number, slot


_NAMED = {"experts": _experts, "layers": _layers}

Member = dict[str, NeuronGroup]


def _alike(places: Iterable[Place]) -> Iterator[tuple[str, list[tuple[int, Member]]]]:
    """Members of one stack whose matrices have the same names and shapes, two or more; see Note [Members]."""
    found: dict[str, dict[int, Member]] = {}
    for stack, number, slot, group in places:
        found.setdefault(stack, {}).setdefault(number, {})[slot] = group
    for stack, members in found.items():
        by_shape: dict[tuple[tuple[str, int, int], ...], dict[tuple[int, ...], tuple[int, Member]]] = {}
        for number, member in sorted(members.items()):
            shape = tuple(sorted((slot, group.n, group.d) for slot, group in member.items()))
            same = by_shape.setdefault(shape, {})
            same.setdefault(tuple(id(member[slot]) for slot, _, _ in shape), (number, member))
        for same in by_shape.values():
            if len(same) > 1:
                yield stack, list(same.values())


def _stacks(kind: Across, places: Iterable[Place]) -> Iterator[Stack]:
    for name, members in _alike(places):
        slots = tuple(members[0][1])
        yield Stack(kind, name, slots, tuple(tuple(member[slot] for slot in slots) for _, member in members))
