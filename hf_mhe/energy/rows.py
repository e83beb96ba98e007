"""Rows of a weight matrix as points on the unit sphere: what may come in, and how it is normalised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.workspace import scratch
from hf_mhe.errors import MHEError

DeadRows = Literal["error", "skip", "skip_negligible"]

# Note [Negligible rows]
# Weight decay takes a neuron that nothing speaks for down by a constant factor a step: to 1e-25 of the others' length,
# never to zero. It has a direction, but the energy's gradient there goes as 1 / |w|: at 1e-25 its square overflows,
# the norm that gradients are clipped by is infinite, and nothing trains any more; at 1e-6 one step of SGD throws the
# row thousands of times beyond its layer. So training takes for dead what is shorter than 2^-12 of the longest row:
# its square is a rounding error of float32, 2^-24, beside that row's. One rule for all dtypes, so that a layer keeps
# its energy when it is cast; and a rule of ratios, so that a layer that is small as a whole is alive.
# Rejected: the rounding error of the length itself, 2^-23, which lets gradients a million times the others' through;
# the median or the mean length as the measure, for where most neurons of a layer have decayed they are negligible
# themselves; dividing by no less than some length, which is the gradient of no energy. The exact functions and the
# analysis leave out rows of zeros alone: there a direction is a direction, however short the row.
NEGLIGIBLE = 2.0**-12


class TooFewLiveRowsError(MHEError):
    """An energy needs two rows with a direction, and there are not."""


_CHUNK_ELEMENTS = 1 << 18  # 1 MiB of float32
_WHOLE_ELEMENTS = 1 << 20  # up to here the calls for chunks cost more than what they find in the cache


class UnitRows(NamedTuple):
    """Live rows, normalised.

    Attributes:
        unit: `(n, d)`, float32 or float64, every row of length one.
        norm: `(n, 1)`, the lengths that were divided out.
        live: `(n,)` int64, the rows' places in the weight, or None where all of them are live.
    """

    unit: Tensor
    norm: Tensor
    live: Tensor | None


def check_weight(weight: Tensor, *, ranks: tuple[int, ...] = (2, 3)) -> None:
    """Refuse what has no energy, by shape and dtype alone.

    Raises:
        MHEError: not a tensor, of the wrong rank, of a dtype that is not real floating point, sparse, on the meta
            device, or with n < 2 or d < 1.
    """
    if not isinstance(weight, Tensor):
        raise MHEError(f"weight must be a torch.Tensor of shape (n, d); got {type(weight).__name__}")
    shape = tuple(weight.shape)
    if weight.dim() not in ranks:
        raise MHEError(f"weight must have shape (n, d), one neuron a row{_batch_hint(ranks)}; got shape {shape}")
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        raise MHEError(f"weight must be float16, bfloat16, float32 or float64; got {weight.dtype}")
    if weight.layout != torch.strided:
        raise MHEError(f"weight must be dense; got layout {weight.layout}: pass weight.to_dense()")
    if weight.device.type == "meta":
        raise MHEError(f"weight of shape {shape} is on the meta device and has no values: load the weights first")
    if weight.shape[-2] < 2 or weight.shape[-1] < 1 or 0 in shape:
        raise MHEError(f"an energy needs at least two neurons (rows) of at least one dimension; got shape {shape}")


def _batch_hint(ranks: tuple[int, ...]) -> str:
    return ", or (B, n, d)" if 3 in ranks else ""


def unit_rows(weight: Tensor, dtype: torch.dtype, *, dead: DeadRows = "error", out: Tensor | None = None) -> UnitRows:
    """Normalise the rows of a `(n, d)` weight in `dtype`, in `out` (same shape, that dtype) if given and useful.

    Raises:
        MHEError: a value is not finite, or a row is zero and `dead` is `"error"`.
        TooFewLiveRowsError: fewer than two rows are live.
    """
    rows = plain_unit_rows(weight, dtype, dead=dead, out=out)
    return _careful_unit_rows(weight.to(dtype), dead) if rows is None else rows


def plain_unit_rows(
    weight: Tensor, dtype: torch.dtype, *, dead: DeadRows = "error", out: Tensor | None = None
) -> UnitRows | None:
    """The same where every row has an ordinary length; None where one is dead, extreme or not finite."""
    if _one_chunk(weight):  # without the slicing, which would cost a small layer as much as its work
        rows = weight.to(dtype)
        norm = row_norms(rows, out)
        unit = torch.div(rows, norm, out=out)
    else:
        unit = torch.empty(weight.shape, dtype=dtype, device=weight.device) if out is None else out
        norm = torch.empty((*weight.shape[:-1], 1), dtype=dtype, device=weight.device)
        for part in row_chunks(unit):
            rows = weight[part].to(dtype)
            norm[part] = row_norms(rows, unit[part])
            torch.div(rows, norm[part], out=unit[part])
    return UnitRows(unit, norm, None) if are_ordinary(norm, dead) else None


# Note [Norms]
# A norm's error is common to all pairs of its row and does not average out: `2 - 2c` of neurons in a narrow cone has
# lost a factor of forty of its digits already. torch's float32 norm adds the squares one after the other in each lane
# of a vector register, and in 4096 dimensions, one of which outweighs the rest, is off by 7e-7, an energy by 5e-5.
# Where there are few dimensions it is right. So many are cut into segments, and the norm is that of the segments'
# norms: 2.5e-7 at most, in one pass that writes nothing. Where no length of segments divides them, torch's sum goes by
# pairs of pairs, and is as good, over squares that have to be written first. Rejected: float64 sums, at four times the
# time.
_SUMMED_IN_A_ROW = 256


def row_norms(rows: Tensor, spare: Tensor | None = None) -> Tensor:
    """The lengths of `(..., n, d)` rows, `(..., n, 1)`, right to the last place; overwrites `spare`, if given."""
    segments = _segments(rows.shape[-1])
    if rows.device.type != "cpu" or rows.dtype == torch.float64 or segments == 1:
        return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if segments:
        by_segment = torch.linalg.vector_norm(rows.unflatten(-1, (segments, -1)), dim=-1)
        return torch.linalg.vector_norm(by_segment, dim=-1, keepdim=True)
    return torch.square(rows, out=spare).sum(dim=-1, keepdim=True).sqrt_()


def _segments(d: int) -> int:
    """Into how many parts of equal length, neither too long nor short, d coordinates can be cut; 0 if they cannot."""
    least, most = -(-d // _SUMMED_IN_A_ROW), max(1, d // 64)
    return next((count for count in range(least, most + 1) if d % count == 0), 0)


def are_ordinary(norm: Tensor, dead: DeadRows) -> bool:
    """Whether rows of these lengths are finite, and neither dead nor so long or short that their squares are lost."""
    smallest, largest = (float(x) for x in torch.aminmax(norm))
    enough = max(1e-15, NEGLIGIBLE * largest) if dead == "skip_negligible" else 1e-15
    return smallest >= enough and largest < 1e15


def pull_back_(grad: Tensor, rows: UnitRows, scale: float, *, out: Tensor | None = None) -> Tensor:
    """Turn the gradient on unit rows into `scale` times the gradient on the rows as they were, `(n, d)`.

    Projects on the tangent of each sphere and goes through the division by the norm; overwrites `grad`, and returns
    `out` (same shape, any dtype) if given.
    """
    out = grad if out is None else out
    if _one_chunk(grad):
        return _pull_back_(grad, rows.unit, rows.norm, scale, out)
    for part in row_chunks(grad):
        _pull_back_(grad[part], rows.unit[part], rows.norm[part], scale, out[part])
    return out


def _pull_back_(grad: Tensor, unit: Tensor, norm: Tensor, scale: float, out: Tensor) -> Tensor:
    return torch.div(project_(grad, unit), norm / scale, out=out)


def project_(vectors: Tensor, unit: Tensor) -> Tensor:
    """Make vectors `(..., n, d)` tangent to the unit sphere at the rows of `unit` `(n, d)`, in place."""
    # torch's vecdot is the same product and sum, in memory that it asks for anew.
    room = scratch("projected", vectors.numel(), vectors.dtype, vectors.device).view(vectors.shape)
    along = torch.mul(vectors, unit, out=room).sum(dim=-1, keepdim=True)
    return vectors.addcmul_(unit, along, value=-1)


def _one_chunk(rows: Tensor) -> bool:
    return rows.numel() <= _WHOLE_ELEMENTS or rows.device.type != "cpu"


def row_chunks(rows: Tensor) -> Iterator[slice]:
    """Slices of rows that fit a processor's cache: what goes over a matrix several times does it chunk by chunk.

    On a layer of 3072 x 768 whole-matrix passes cost a tenth of the walk's products.
    """
    n = len(rows)
    step = n if _one_chunk(rows) else max(1, _CHUNK_ELEMENTS // rows.shape[-1])
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _careful_unit_rows(rows: Tensor, dead: DeadRows) -> UnitRows:
    # Note [Rows of extreme length]
    # Squares overflow float32 above 1.8e19 and vanish below 1e-23: a row of length 1e-24 is not dead, and one of 1e20
    # is not infinite. Each row is scaled by its largest element first. Rejected: float64 for all, which doubles the
    # memory of every call for the sake of one row in a million.
    largest = rows.abs().amax(dim=-1, keepdim=True)
    broken = ~torch.isfinite(largest.squeeze(-1))
    if bool(broken.any()):
        row = int(broken.nonzero()[0])
        value = float(rows[row][~torch.isfinite(rows[row])][0])
        raise MHEError(
            f"weight has a value that is not finite ({value} in row {row}; {int(broken.sum())} of {len(rows)} rows)"
        )
    scaled = rows / largest.masked_fill(largest == 0, 1)
    norm = row_norms(scaled)
    alive = largest.squeeze(-1) > 0
    if dead == "skip_negligible" and bool(alive.any()):
        length = (norm * (largest / largest.amax())).squeeze(-1)  # a product of the two may be beyond float32
        alive &= length >= NEGLIGIBLE * length.amax()
    live = None
    if not bool(alive.all()):
        zero = (~alive).nonzero().flatten().tolist()
        if dead == "error":
            raise MHEError(
                f"row {zero[0]} of the weight is zero ({len(zero)} of {len(rows)} rows are) and has no direction: "
                "leave such rows out, or pass dead='skip'"
            )
        live = alive.nonzero().flatten()
        if len(live) < 2:
            long = "has a length" if dead == "skip_negligible" else "is not zero"
            raise TooFewLiveRowsError(
                f"only {len(live)} of {len(rows)} rows {long}: an energy needs at least two live neurons"
            )
        scaled, norm, largest = scaled[live], norm[live], largest[live]
    return UnitRows(scaled / norm, norm * largest, live)
