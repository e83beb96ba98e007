"""Weights that a checkpoint stores as what torch computes them from: pruned, weight-normed, spectrally normed ones.

`torch.nn.utils.prune`, `weight_norm` and `spectral_norm` take a parameter out of its module and leave others in its
place; a state dict that was saved meanwhile has those, and the model that a config describes has the weight.

Note [Parts that the model itself has]. Some models are built with a norm (wav2vec2's positional convolution), and load
its parts by their own names. Those stay as they are: the model's own module makes the weight of them.

Note [The dimension of a weight norm] is given by the shape of the lengths: it is 1 along every axis that a length is
taken over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from hf_mhe.neurons.model.weight import masked, widened
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.stored import Packed, Tensors, Unread
from hf_mhe.neurons.source import Get

_PARAMETRIZED = re.compile(r"^(?P<module>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)$")


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The weights of which a checkpoint has the parts, and which the model that loads it has whole."""
    for name in tensors.shapes:
        found = _pruned(tensors, name) or _normed(tensors, name) or _spectral(tensors, name)
        if found is not None:
            if not tensors.role(name):  # Note [Parts that the model itself has]
                yield _unless_stored(tensors, found)
        elif name.endswith("_mask") and tensors.shapes.get(name.removesuffix("_mask")) == tensors.shapes[name]:
            yield Unread((name,), f"mask of {name.removesuffix('_mask')}, which is stored beside it", weights=False)


def _unless_stored(tensors: Tensors, found: Packed) -> Packed | Unread:
    if found.name in tensors.shapes:
        return Unread(found.tensor_names, f"part of {found.name}, which is stored beside it", weights=False)
    return found


def _pruned(tensors: Tensors, name: str) -> Packed | None:
    weight = name.removesuffix("_orig")
    mask = f"{weight}_mask"
    if weight == name or mask not in tensors.shapes:
        return None
    shape = tensors.shapes[name]
    tensors.expect(mask, shape, f"one factor for each value of {name}, which it prunes")
    return _packed(weight, (name, mask), shape, "pruned", lambda get: masked(get(name), get(mask)))


def _normed(tensors: Tensors, name: str) -> Packed | None:
    """Lengths times directions: `weight_g` and `weight_v`, or `parametrizations.weight.original0` and `original1`."""
    matched = _PARAMETRIZED.match(name)
    if matched and matched["part"] == "original0":
        weight, directions = matched["module"] + matched["name"], name.removesuffix("0") + "1"
    elif name.endswith("_g"):
        weight, directions = name.removesuffix("_g"), f"{name.removesuffix('_g')}_v"
    else:
        return None
    lengths, shape = tensors.shapes[name], tensors.shapes.get(directions)
    if shape is None or len(shape) < 2 or not _are_lengths(lengths, shape):
        return None
    return _packed(weight, (directions, name), shape, "weight-normed", lambda get: _scaled(get(directions), get(name)))


def _are_lengths(lengths: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if not lengths:
        return True
    fits = len(lengths) == len(shape) and all(a in (1, b) for a, b in zip(lengths, shape, strict=True))
    return fits and sum(length > 1 for length in lengths) <= 1


def _scaled(directions: Tensor, lengths: Tensor) -> Tensor:
    """As torch makes it, whose kernel takes the one axis that is not normed over, or -1 for none."""
    axes = [axis for axis, length in enumerate(lengths.shape) if length > 1]
    axis = axes[0] if axes else (0 if lengths.ndim and directions.shape[0] == 1 else -1)
    return torch._weight_norm(widened(directions), widened(lengths), axis)


def _spectral(tensors: Tensors, name: str) -> Packed | None:
    """A matrix over its largest singular value, by the two vectors that torch keeps of it."""
    matched = _PARAMETRIZED.match(name)
    if matched and matched["part"] == "original":
        weight, vectors = matched["module"] + matched["name"], name.removesuffix("original") + "0._"
    elif name.endswith("_orig"):
        weight = name.removesuffix("_orig")
        vectors = f"{weight}_"
    else:
        return None
    left, right = f"{vectors}u", f"{vectors}v"
    if left not in tensors.shapes or right not in tensors.shapes:
        return None
    names = (name, left, right)
    return _packed(weight, names, tensors.shapes[name], "spectrally normed", lambda get: _over_sigma(get, names))


def _over_sigma(get: Get, names: tuple[str, ...]) -> Tensor:
    """The axis that torch unfolds a matrix along has the length of the left vector."""
    stored, left, right = (widened(get(name)) for name in names)
    axis = next((axis for axis, length in enumerate(stored.shape) if length == len(left)), 0)
    sigma = torch.dot(left, stored.movedim(axis, 0).flatten(1).mv(right))
    return stored / sigma


def _packed(name: str, names: tuple[str, ...], shape: tuple[int, ...], form: str, make: object) -> Packed:
    return Packed(name, names, shape, form, make, quantized=False)  # type: ignore[arg-type]


# A part without its other is a tensor like any other: nothing says that it was one.
FORMAT = Format("pruned or normed", stored_weights)
