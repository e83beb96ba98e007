"""The sampled walk: some rows against all of them, an unbiased estimate of the energy and of its gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_mhe.checks import check_integer, check_option
from hf_mhe.choices import Distance, Space
from hf_mhe.energy.autograd.once import Scale
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, product_dtype, without_autocast
from hf_mhe.energy.rows import DeadRows, UnitRows, check_weight, pull_back_, unit_rows
from hf_mhe.energy.walks.blocked import PairSum
from hf_mhe.energy.walks.rows_against_all import first_rows_against_all


def sampled_energy(
    weight: Tensor,
    s: float = 2.0,
    *,
    rows: int,
    distance: Distance = "euclidean",
    space: Space = "full",
    reduction: Literal["mean", "sum"] = "mean",
    softening: float = 0.0,
    dead: DeadRows = "error",
    generator: torch.Generator | None = None,
) -> Tensor:
    """An unbiased estimate of `hyperspherical_energy` and its gradient, from a random sample of rows against all rows.

    Each ordered pair `(i, j)` whose first row is in the sample counts n / rows times, and its gradient goes to both
    rows. What has an exact sum that is cheap, the Taylor terms of the potential at c = 0, is not sampled but added
    exactly. The expectation of the value is the energy, and that of the gradient is the energy's gradient.

    Example:
        >>> import torch
        >>> from hf_mhe.energy import hyperspherical_energy, sampled_energy
        >>> weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> draw = torch.Generator().manual_seed(0)
        >>> energy = sampled_energy(weight, rows=64, generator=draw)  # under a quarter of the exact walk's operations
        >>> energy.backward()
        >>> abs(energy.item() - hyperspherical_energy(weight).item()) < 1e-3
        True

    Note:
        Work for rows = m: `3 m n d (2 - m/n)` operations where the exact walk takes `3 n^2 d`, and, where d <= 2 m,
        `4 (n + m) d^2` more. Noise, as standard deviation of the value over the value, and as root of the gradient's
        expected squared error over its norm, measured at m = n/8, s = 2, over 30 draws (and without the exact terms,
        where unstructured rows have `sqrt((n/m - 1) / 2)` = 1.87):

        =================================  ==========  =========================  ==========  =========================
        rows                               full space                             half space
        ---------------------------------  -------------------------------------  -------------------------------------
        (n x d)                            value       gradient                   value       gradient
        =================================  ==========  =========================  ==========  =========================
        random directions, 1024 x 64       1e-5        0.16 (1.83)                7e-6        0.23
        random directions, 1536 x 384      7e-7        0.03 (1.87)
        MiniLM layer 0 intermediate,       1e-4        0.07 (1.34)                6e-5        0.21 (1.34)
        1536 x 384
        MiniLM layer 5 output, 384 x 1536  1e-4        0.47 (3.43)                1e-4        1.60 (1.60)
        MiniLM first 8192 word             8e-3        1.2                        4e-3        1.2
        embeddings, 8192 x 384
        =================================  ==========  =========================  ==========  =========================

        So full space is cheap to estimate; half space wants d <= 2 m; and where near-duplicates make up the gradient,
        as among word embeddings, a sample misses most of them.

    Args:
        weight: `(n, d)`, or `(B, n, d)`, each matrix with its own sample; float16, bfloat16, float32 or float64.
        s: exponent of the Riesz kernel, any number >= 0.
        rows: the size of the sample, 1 to n; n is the exact energy. Where dead rows are skipped, no more than the
            live ones are drawn.
        distance: `"euclidean"` or `"angular"`.
        space: `"full"` or `"half"`.
        reduction: `"mean"` over ordered pairs, or `"sum"`.
        softening: Plummer softening.
        dead: what to do with rows of zeros, or of next to no length: as `hyperspherical_energy`.
        generator: source of the sample, the first `rows` of `torch.randperm(n, generator=generator)` on its device;
            by default torch's global CPU generator. On several ranks, seed it alike.

    Returns:
        0-dim tensor, or `(B,)`; float64 for a float64 weight, float32 otherwise. Differentiable once with respect to
        `weight`. Infinite where a sampled row coincides with another, without softening.

    Raises:
        MHEError: as `hyperspherical_energy`, or `rows` is not an integer from 1 to n.

    Source: the energy is that of Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1);
    the estimator is the difference estimator of survey sampling, see Note [What need not be sampled].
    """
    potential = Potential(s, distance, space, softening)
    return sampled_energy_of(weight, potential, rows=rows, reduction=reduction, dead=dead, generator=generator)


@without_autocast
def sampled_energy_of(
    weight: Tensor,
    potential: Potential,
    *,
    rows: int,
    reduction: str = "mean",
    dead: DeadRows = "error",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`sampled_energy` of a potential."""
    check_option("reduction", reduction, ("mean", "sum"))
    check_option("dead", dead, get_args(DeadRows))
    check_weight(weight)
    n = weight.shape[-2]
    right = f"an integer from 1 to the number of neurons, {n}"
    rows = check_integer("rows", rows, at_least=1, at_most=n, right=right)
    if weight.dim() == 3:
        return torch.stack([_estimate(matrix, potential, rows, reduction, dead, generator) for matrix in weight])
    return _estimate(weight, potential, rows, reduction, dead, generator)


def sampled_operations(rows: int, n: int, d: int) -> int:
    """Floating-point operations of `sampled_energy` with its gradient, for a sample of `rows` rows of `(n, d)`."""
    m = min(rows, n)
    second_moments = 4 * (n + m) * d * d if m < n and d <= _DIMENSIONS_PER_SAMPLED_ROW * m else 0
    return 3 * m * (2 * n - m) * d + second_moments


def _estimate(
    weight: Tensor, potential: Potential, rows: int, reduction: str, dead: DeadRows, generator: torch.Generator | None
) -> Tensor:
    """`sampled_energy` of `(n, d)`, for a potential at hand and arguments that are known to be right."""
    if dead != "error":
        live = unit_rows(weight.detach(), product_dtype(weight), dead=dead).live
        weight = weight if live is None else weight[live]
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(len(weight), generator=generator, device=device).to(weight.device)
    energy: Tensor = _SampledEnergy.apply(weight, order, min(rows, len(weight)), potential, reduction)
    return energy


class _SampledEnergy(torch.autograd.Function):
    """The forward pass leaves the gradient ready; the backward pass is one scaling."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, order: Tensor, rows: int, potential: Potential, reduction: str) -> Tensor:
        n = len(weight)
        unit, norm, _ = unit_rows(weight, product_dtype(weight))
        unit = unit[order]
        pairs = first_rows_against_all(unit, weight[order], rows, potential, gradient=ctx.needs_input_grad[0])
        if rows < n:
            pairs = _add_what_need_not_be_sampled(pairs, unit, rows, potential)
        energy = potential.mean_of(pairs.value, n, reduction)
        if pairs.gradient is not None:
            gradient = pull_back_(pairs.gradient, UnitRows(unit, norm[order], None), potential.scale_of(n, reduction))
            gradient = torch.empty_like(weight).index_copy_(0, order, gradient.to(weight.dtype))
            ctx.save_for_backward(gradient, weight)
        return torch.tensor(energy, dtype=energy_dtype(weight), device=weight.device)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        return _ScaleOfSample.apply(upstream, gradient, weight), None, None, None, None


class _ScaleOfSample(Scale):
    of = "sampled_energy"


# Note [What need not be sampled]
# Most cosines are small, and there F(c) is nearly a + b c + q c^2. The sums of c and of c^2 over all pairs need no
# pairs: with t = sum u_i they are |t|^2 - n, and with S = U^T U they are |S|^2 - n. So the estimate is their exact sum
# plus the weighted sample of F(c) - b c - q c^2: the difference estimator of survey sampling (Saerndal, Swensson,
# Wretman, "Model Assisted Survey Sampling", 1992, section 6.3), unbiased whatever b and q are, as long as they do not
# depend on the sample. The first costs O(n d) and takes most of the noise off the gradient in full space; half space
# has no such term, by symmetry. The second costs 4 (n + m) d^2, to be weighed against the 6 m n d of the sample.
_DIMENSIONS_PER_SAMPLED_ROW = 2


def _add_what_need_not_be_sampled(pairs: PairSum, unit: Tensor, rows: int, potential: Potential) -> PairSum:
    n, d = unit.shape
    ratio = n / rows
    gradient = pairs.gradient
    value = pairs.value * ratio
    if gradient is not None:
        gradient.mul_(ratio)
    linear, quadratic = _taylor(potential)
    sample = unit[:rows]
    if linear:
        total, part = unit.sum(0), sample.sum(0)
        value += linear * (float(total @ total) - ratio * float(part @ total))
        if gradient is not None:  # terms along a neuron itself, as of c_ii, are projected away
            gradient.add_(2 * total - ratio * part, alpha=linear)
            gradient[:rows].add_(total, alpha=-ratio * linear)
    if d <= _DIMENSIONS_PER_SAMPLED_ROW * rows:
        second, part = unit.t() @ unit, sample.t() @ sample
        value += quadratic * (float((second * second).sum()) - ratio * float((part * second).sum()))
        if gradient is not None:
            gradient.addmm_(unit, 2 * second - ratio * part, alpha=2 * quadratic)
            gradient[:rows].addmm_(sample, second, alpha=-2 * ratio * quadratic)
    return PairSum(value, gradient, 0)


@lru_cache(maxsize=64)
def _taylor(potential: Potential) -> tuple[float, float]:
    # F'(0) and F''(0) / 2.
    with torch.enable_grad():
        cos = torch.zeros((), dtype=torch.float64, device="cpu", requires_grad=True)
        (slope,) = torch.autograd.grad(potential.value(cos), cos, create_graph=True)
        (bend,) = torch.autograd.grad(slope, cos)
    return float(slope), 0.5 * float(bend)
