"""What a caller passes as embeddings, labels and a mask, as rows of which some take part."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_mhe.errors import MHEError

IGNORED = -100  # as torch.nn.functional.cross_entropy has it by default, and the collators of transformers
_EMBEDDINGS = "embeddings must be float16, bfloat16, float32 or float64 of shape (n, d) or (batch, sequence, d)"


class Rows(NamedTuple):
    """Embeddings as rows.

    Attributes:
        rows: `(n, d)`, with their graph.
        classes: `(n,)` int64, or None where all pairs count.
        selected: `(n,)` bool, or None where all rows take part.
    """

    rows: Tensor
    classes: Tensor | None
    selected: Tensor | None

    def taking_part(self) -> tuple[Tensor, Tensor | None]:
        """The rows that take part, and their classes."""
        if self.selected is None:
            return self.rows, self.classes
        classes = None if self.classes is None else self.classes[self.selected]
        return self.rows[self.selected], classes


def as_rows(embeddings: Tensor, labels: Tensor | None, mask: Tensor | None) -> Rows:
    """Flatten embeddings `(..., d)`, and labels and a mask `(...)` with them.

    Raises:
        MHEError: a tensor has the wrong shape, dtype or device.
    """
    if not isinstance(embeddings, Tensor):
        raise MHEError(f"{_EMBEDDINGS}; got {type(embeddings).__name__}")
    if isinstance(embeddings, DTensor):
        raise MHEError("embeddings are divided over a mesh (DTensor): pass embeddings.full_tensor()")
    shape, dtype = tuple(embeddings.shape), embeddings.dtype
    if len(shape) < 2 or shape[-1] < 1 or not dtype.is_floating_point or dtype.itemsize < 2:
        raise MHEError(f"{_EMBEDDINGS}; got {dtype} of shape {shape}")
    for name, tensor in (("labels", labels), ("mask", mask)):
        if tensor is not None:
            _check_one_each(name, tensor, embeddings)
    if mask is not None and mask.dtype.is_floating_point:  # 0 and -inf in some models, 0 and 1 in others
        raise MHEError(f"mask must be bool, or integers that are 0 where a row takes no part; got {mask.dtype}")
    selected = None if mask is None else mask.reshape(-1).bool()
    classes = None
    if labels is not None:
        if labels.is_floating_point() or labels.is_complex():
            raise MHEError(f"labels must be integers, a class for each embedding; got {labels.dtype}")
        classes = labels.reshape(-1).long()
        known = classes != IGNORED
        selected = known if selected is None else selected & known
    return Rows(embeddings.reshape(-1, shape[-1]), classes, selected)


def _check_one_each(name: str, tensor: Tensor, embeddings: Tensor) -> None:
    right = f"{name} must be a tensor of shape {tuple(embeddings.shape[:-1])}, one for each embedding"
    if not isinstance(tensor, Tensor):
        raise MHEError(f"{right}; got {type(tensor).__name__}")
    if tensor.shape != embeddings.shape[:-1]:
        raise MHEError(f"{right}; got shape {tuple(tensor.shape)}")
    if tensor.device != embeddings.device:
        raise MHEError(f"{name} must be on the device of the embeddings, {embeddings.device}; got {tensor.device}")
