"""The weights of a model's modules as neurons: which module uses which matrix, and those that use one and the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_mhe.neurons.adapters.own import own_matrices
from hf_mhe.neurons.adapters.visits import Visit
from hf_mhe.neurons.find_weight import find_weight
from hf_mhe.neurons.group import full_shape
from hf_mhe.neurons.kinds.fused.split import RowSplit, heads, split
from hf_mhe.neurons.kinds.pieces import pieces
from hf_mhe.neurons.kinds.registry import Piece
from hf_mhe.neurons.model.identity import identity
from hf_mhe.neurons.model.peft_layers import is_adapter_layer
from hf_mhe.neurons.model.unwrap import bare
from hf_mhe.neurons.model.weight import Weight, attribute_at
from hf_mhe.neurons.reasons import Unseen

Adapters = Literal["effective", "own"]


@dataclass(frozen=True)
class MatrixUse:
    """One module's use of a matrix; tied weights have several.

    `path` and `module` are those that store the weight, `name` and `layer` the user's: of an adapted layer, the
    base layer.
    """

    path: str
    module: nn.Module
    name: str
    layer: nn.Module
    piece: Piece
    weight: Weight


class NoGroupError(Exception):
    """A matrix that is no neuron group, and why."""

    def __init__(self, parameters: tuple[str, ...], reason: str) -> None:
        super().__init__(reason)
        self.parameters = parameters
        self.reason = reason


def matrices(
    visited: Iterable[Visit],
    splits: Mapping[int, RowSplit],
    by_head: bool,
    adapters: Adapters,
    ties: Mapping[int, Tensor],
) -> Iterable[list[MatrixUse]]:
    """The uses of each matrix, in the order of first use."""
    by_identity: dict[Hashable, list[MatrixUse]] = {}
    for visit in visited:
        for use in _uses(visit, adapters):
            found = (attribute_at(use.module, name) for name in use.weight.tensor_names)
            tensors = [ties.get(id(tensor), tensor) for tensor in found]
            for piece in _split(use, splits.get(id(use.layer)), by_head):
                key = identity(use.weight, tensors, piece.layout)
                by_identity.setdefault(key, []).append(replace(use, piece=piece))
    return by_identity.values()


def _uses(visit: Visit, adapters: Adapters) -> Iterator[MatrixUse]:
    """The weights that one module holds; an adapter layer has its base layer's weights, or its own matrices."""
    adapted = is_adapter_layer(visit.module)
    if adapted and adapters == "own":
        for piece, weight in own_matrices(visit.module):
            yield MatrixUse(visit.path, visit.module, visit.name, visit.module, piece, weight)
    elif visit.aside is None and not (visit.below_adapter and adapters == "effective"):
        layer = bare(visit.module) if adapted else visit.module
        for piece in pieces(layer):
            found = find_weight(visit.module, piece.weight)
            if found is not None:
                yield MatrixUse(visit.path, visit.module, visit.name, layer, piece, found)


def _split(use: MatrixUse, row_split: RowSplit | None, by_head: bool) -> Iterator[Piece]:
    """The pieces of one use: its projections, where its layer is fused, and of each its heads, where asked for."""
    if row_split is None and not (by_head and use.piece.head):
        yield use.piece
        return
    for piece in split(use.piece, row_split, _rows(use)):
        yield from heads(piece, _rows(replace(use, piece=piece))) if by_head else (piece,)


def _rows(use: MatrixUse) -> int:
    """How many neurons a use has; 0 where its tensors do not fit, which `_group` then says."""
    try:
        return matrix_shape(use, *tensors_of(use), ())[0]
    except NoGroupError:
        return 0


def tensors_of(use: MatrixUse) -> tuple[list[Tensor], tuple[tuple[int, ...], ...]]:
    """The tensors that a use is made of, with their whole shapes; () for one that has none yet."""
    tensors = [attribute_at(use.module, name) for name in use.weight.tensor_names]
    return tensors, tuple(() if is_lazy(tensor) else full_shape(tensor) for tensor in tensors)


def matrix_shape(
    use: MatrixUse, tensors: list[Tensor], shapes: tuple[tuple[int, ...], ...], parameters: tuple[str, ...]
) -> tuple[int, int]:
    """(n, d), from the very transform that makes the matrix, on tensors without storage."""
    blank = [torch.empty(shape, dtype=t.dtype, device="meta") for t, shape in zip(tensors, shapes, strict=True)]
    try:
        with torch.no_grad():
            make = use.weight.outline or use.weight.combine
            matrix = use.piece.layout(make(dict(zip(use.weight.tensor_names, blank, strict=True))))
    except (RuntimeError, IndexError, ValueError) as error:
        reason = f"shapes {', '.join(map(str, shapes))} do not fit {use.piece.kind} of {type(use.layer).__name__}"
        raise NoGroupError(
            parameters, Unseen.of_shape(f"{reason}: {str(error).splitlines()[0]}", shapes[0])
        ) from error
    if matrix.ndim != 2:
        rank = f"{use.piece.kind} of {type(use.layer).__name__} gives rank {matrix.ndim}, not 2"
        raise NoGroupError(parameters, Unseen.of_shape(rank, shapes[0]))
    return matrix.shape[0], matrix.shape[1]
