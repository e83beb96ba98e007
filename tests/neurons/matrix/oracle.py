"""What must hold for the groups of any model, checked without the code that made them.

Note [Tiles]. Groups may take a parameter apart, and must neither lose a row nor take one twice. A layout takes, of a
weight of so many elements, those at `place = neuron + coordinate`, one number for each neuron and one for each
coordinate. The places of all groups of a weight together must be 0, 1, ..., elements - 1. They are compared by their
numbers, sums, sums of squares and of cubes, modulo 2^64: for the sums of so many places each in range to agree by
chance is out of the question, and the weights of the largest models need not be there. (Rejected: marking each element
in a bitmap, which takes minutes and gigabytes for each of them.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from hf_mhe.neurons import Coverage, NeuronGroup

_MODULUS = 1 << 64
_MOMENTS = 4


def faults(model: nn.Module, found: Coverage) -> Iterator[str]:
    """Whatever is wrong with the coverage of a model, a sentence for each."""
    yield from _unaccounted(model, found)
    yield from _names(found)
    for group in found.groups:
        if group.n < 2 or group.d < 2:
            yield f"group {group.name} is empty or has no directions: ({group.n}, {group.d})"
    yield from _tiles(found)
    yield from _embedding_roles(model, found)


def _unaccounted(model: nn.Module, found: Coverage) -> Iterator[str]:
    expected = {name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2}
    grouped = {name for group in found.groups for name in group.parameters}
    for name in sorted(expected - grouped - found.skipped.keys()):
        yield f"parameter {name} is neither in a group nor skipped"
    for name in sorted(grouped & found.skipped.keys()):
        yield f"parameter {name} is both in a group and skipped"
    for name in sorted(found.skipped.keys() - expected):
        yield f"{name} is skipped and no parameter of two or more dimensions"
    for name, reason in found.skipped.items():
        if len(reason) < 10 or "not known" in reason:
            yield f"parameter {name} is skipped without a reason: {reason!r}"


def _names(found: Coverage) -> Iterator[str]:
    for name, times in Counter(group.name for group in found.groups).items():
        if times > 1:
            yield f"{times} groups are called {name}"


def _tiles(found: Coverage) -> Iterator[str]:
    groups: dict[tuple[str, tuple[str, ...]], list[NeuronGroup]] = defaultdict(list)
    for group in found.groups:
        assert group.source is not None
        groups[group.source.module_path, group.source.tensor_names].append(group)
    for (owner, parts), together in groups.items():
        where = f"{owner}.{', '.join(parts)}"
        source = together[0].source
        assert source is not None
        blank = {
            part: torch.empty(shape, device="meta") for part, shape in zip(parts, source.shapes, strict=True)
        }  # fmt: skip
        shape = tuple(source.combine(blank).shape)
        sums = [0] * _MOMENTS
        for group in together:
            neurons, coordinates = _places(group, shape)
            if (len(neurons), len(coordinates)) != (group.n, group.d):
                yield f"group {group.name} is ({len(neurons)}, {len(coordinates)}), not ({group.n}, {group.d})"
            if int(neurons.min() + coordinates.min()) < 0 or int(neurons.max() + coordinates.max()) >= prod(shape):
                yield f"group {group.name} reaches out of {where}"
            sums = [a + b for a, b in zip(sums, _moments(neurons, coordinates), strict=True)]
        if [s % _MODULUS for s in sums] != [s % _MODULUS for s in _moments_to(prod(shape))]:
            names = ", ".join(group.name for group in together[:4])
            yield f"{where} {shape}: {sums[0]} of its {prod(shape)} elements in {names}, or some of them twice"


def _places(group: NeuronGroup, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where in the weight each neuron begins, and how far from there each of its coordinates lies."""
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    neurons, coordinates = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for axis, (length, stride) in enumerate(zip(shape, strides, strict=True)):
        along = [1] * len(shape)
        along[axis] = length
        index = group.layout(torch.arange(length, dtype=torch.int32).view(along).expand(shape))
        first = index[0, 0].long()
        for corner, end in pairwise((index[0] - first, index[-1] - index[-1, 0])):
            assert torch.equal(corner, end), f"{group.name}: the coordinates of its neurons differ"
        neurons = neurons + index[:, 0].long() * stride
        coordinates = coordinates + (index[0].long() - first) * stride
    return neurons, coordinates


def _moments(neurons: Tensor, coordinates: Tensor) -> list[int]:
    """The sums of the powers 0 to 3 of all neuron + coordinate; int64 wraps around, which is the modulus."""
    a, b = ([int((values**power).sum()) for power in range(_MOMENTS)] for values in (neurons, coordinates))
    binomials = [[1], [1, 1], [1, 2, 1], [1, 3, 3, 1]]
    return [sum(c * a[k] * b[p - k] for k, c in enumerate(binomials[p])) for p in range(_MOMENTS)]


def _moments_to(count: int) -> list[int]:
    """The sums of the powers 0 to 3 of 0, 1, ..., count - 1."""
    last = count - 1
    total = last * count // 2
    return [count, total, last * count * (2 * last + 1) // 6, total**2]


def _embedding_roles(model: nn.Module, found: Coverage) -> Iterator[str]:
    """What a model of transformers calls its input and output embeddings has the role, and its rows compete."""
    group_of = {name: group for group in found.groups for name in group.parameters}
    name_of = {id(p): name for name, p in model.named_parameters()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            answer = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
        for layer in answer.children() if isinstance(answer, nn.ModuleList) else [answer]:
            if not isinstance(layer, (nn.Embedding, nn.Linear)) or min(layer.weight.shape) < 2:
                continue
            name = name_of[id(layer.weight)]
            if getter == "get_input_embeddings":
                expected = "embedding" if isinstance(layer, nn.Embedding) else "hidden"
            else:
                expected = "embedding" if id(layer.weight) in tables else "output"
            group = group_of[name]
            if group.role != expected:
                yield f"{name}, of {getter}(), has the role {group.role}, not {expected}"
            if not group.competes:
                yield f"{name}, of {getter}(), is kept apart: {group.apart}"
