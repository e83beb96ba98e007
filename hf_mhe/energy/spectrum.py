"""How many directions a weight uses, and how strongly: norms and ranks by its singular values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_mhe.energy.precision import without_autocast
from hf_mhe.energy.rows import check_weight
from hf_mhe.errors import MHEError

# Note [Singular values by a Gram matrix]
# The eigenvalues of the smaller of W Wᵀ and Wᵀ W are the squares of the singular values. In float64 they cost one
# product and k² memory, k = min(n, d), a fraction of an SVD, and no float64 copy of the weight is made. But a square
# that is smaller than the rounding of the largest, max(n, d) · 2^-52 of it, is lost: singular values below some 1e-7
# of the largest, of which the entropy of a thousand would be off by a part in a thousand, and a numerical rank in
# float64 by all of them. So where the smallest eigenvalue lies below that, the weight is factored, Q R block by block,
# which keeps the digits, and the singular values are those of R (k x k). Rejected: an SVD of every weight, which took
# up to four times as long at full rank, and a float64 copy; to set such eigenvalues to zero, which is right for a
# weight of exact rank r and wrong for one of rank r and rounding.
_BLOCK_ELEMENTS = 1 << 22  # 32 MiB of float64

# Note [Numerical rank]
# The tolerance of numpy.linalg.matrix_rank: eps · max(n, d) of the largest singular value. `eps` is that of float64
# for a weight in float64 and that of float32 for all others, half precision included: a value in bfloat16 is a
# float32, and with its own eps (2^-7) the tolerance of a layer of 1,536 neurons would exceed the largest singular
# value, and every rank be 0. So a weight of rank 8 that was rounded to bfloat16 has a numerical rank of hundreds, that
# of its rounding; the effective rank stays near 9.


@dataclass(frozen=True)
class Spectrum:
    """What the singular values σ of a weight say, dead rows included; all of a weight of zeros is 0.

    Attributes:
        spectral_norm: σ₁, the largest: by how much the layer stretches an input at most.
        stable_rank: ‖W‖_F² / σ₁², from 1 to min(n, d).
        effective_rank: the exponential of the entropy of σ / Σσ, from 1 to min(n, d).
        numerical_rank: how many σ are above rounding; see Note [Numerical rank].
    """

    spectral_norm: float
    stable_rank: float
    effective_rank: float
    numerical_rank: int


@torch.no_grad()
@without_autocast
def spectrum(weight: Tensor) -> Spectrum:
    """Spectral norm, stable, effective and numerical rank of a `weight` `(n, d)` as it is stored, lengths included.

    Example:
        >>> import torch
        >>> from hf_mhe.energy.spectrum import spectrum
        >>> spectrum(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
        Spectrum(spectral_norm=2.0, stable_rank=2.0, effective_rank=2.0, numerical_rank=2)

    Args:
        weight: `(n, d)`; float16, bfloat16, float32 or float64.

    Raises:
        MHEError: wrong rank or dtype, or a value that is not finite.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1;
    Rudelson and Vershynin, "Sampling from large matrices", J. ACM 54(4), 2007, for the stable (numerical) rank.
    """
    check_weight(weight, ranks=(2,))
    if weight.device.type == "mps":  # which has no float64
        weight = weight.cpu()
    largest = float(weight.abs().amax())
    if not largest < float("inf"):
        raise MHEError(f"weight has a value that is not finite ({largest}): its singular values are not defined")
    if largest == 0:
        return Spectrum(0.0, 0.0, 0.0, 0)
    sigma = singular_values(weight, largest)
    top = float(sigma[0])
    share = sigma[sigma > 0] / sigma.sum()
    eps = torch.finfo(torch.float64 if weight.dtype == torch.float64 else torch.float32).eps
    return Spectrum(
        spectral_norm=top * largest,
        stable_rank=float((sigma / top).square().sum()),
        effective_rank=float(torch.exp(-(share * share.log()).sum())),
        numerical_rank=int((sigma > top * max(weight.shape) * eps).sum()),
    )


def singular_values(weight: Tensor, scale: float) -> Tensor:
    """The min(n, d) singular values of `weight / scale` in float64, largest first.

    `scale` is the largest absolute value, so that no square is too large or too small for a float64.
    """
    tall = weight if len(weight) >= weight.shape[1] else weight.t()
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=weight.device)
    for block in _blocks(tall, scale):
        gram.addmm_(block.t(), block)
    squares = torch.linalg.eigvalsh(gram).flip(0)
    if float(squares[-1]) > len(tall) * torch.finfo(torch.float64).eps * float(squares[0]):
        return squares.sqrt()
    upper = gram.new_zeros(0, tall.shape[1])
    for block in _blocks(tall, scale):
        upper = torch.linalg.qr(torch.cat([upper, block]), mode="r").R
    return torch.linalg.svdvals(upper)


def _blocks(tall: Tensor, scale: float) -> Iterator[Tensor]:
    """The rows of `tall / scale` in float64, block by block, each no flatter than it is wide."""
    for rows in tall.split(max(tall.shape[1], _BLOCK_ELEMENTS // tall.shape[1])):
        yield rows.double() / scale
