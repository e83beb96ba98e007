"""Rows whose length is a rounding error of their layer: dead in training, alive everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_mhe import hyperspherical_energy
from hf_mhe.energy import Potential, sampled_energy
from hf_mhe.energy.autograd.share import energy_share
from hf_mhe.energy.rows import NEGLIGIBLE
from hf_mhe.errors import MHEError

PATHS: dict[str, Callable[[Tensor], Tensor]] = {
    "blocked": lambda w: hyperspherical_energy(w, space="half", dead="skip_negligible"),
    "dense": lambda w: hyperspherical_energy(w, space="half", dead="skip_negligible", walk="dense"),
    "squares": lambda w: hyperspherical_energy(
        torch.stack((w.flip(0), w)), space="half", dead="skip_negligible"
    ).mean(),
    "sampled": lambda w: sampled_energy(w, rows=len(w), space="half", dead="skip_negligible"),
    "shares": lambda w: torch.stack(
        [energy_share(part, w, start, Potential(space="half")) for part, start in zip(w.split(10), (0, 10, 20, 30))]  # noqa: B905
    ).sum(),
}


def layer(dtype: torch.dtype, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (size * torch.randn(33, 24, generator=generator, dtype=torch.float64)).to(dtype)


def graded(energy: Callable[[Tensor], Tensor], weight: Tensor) -> tuple[float, Tensor]:
    leaf = weight.clone().requires_grad_()
    value = energy(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 1e-6, 0.5 * NEGLIGIBLE])
def test_a_row_of_next_to_no_length_is_as_a_row_of_zeros(path: str, dtype: torch.dtype, length: float) -> None:
    """One neuron that decayed would have the largest gradient of all, or another one on another path."""
    weight = layer(dtype)
    for row in (3, 17):
        weight[row] *= length * float(weight.norm(dim=1).max()) / float(weight[row].norm())
    live = [row for row in range(33) if row not in (3, 17)]
    value, gradient = graded(PATHS[path], weight)
    expected, wanted = graded(lambda w: hyperspherical_energy(w, space="half", walk="dense"), weight[live].double())
    close = {torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-11}[dtype]
    assert value == pytest.approx(expected, rel=1e-11 if dtype == torch.float64 else 1e-5)
    assert not gradient[[3, 17]].any()
    assert (gradient[live].double() - wanted).norm() <= close * wanted.norm()


@pytest.mark.parametrize("path", sorted(PATHS.keys() - {"dense"}))  # the definition squares float32, at any length
@pytest.mark.parametrize("size", [1e-25, 1e-6, 1e20])
def test_length_counts_beside_the_layers_own(path: str, size: float) -> None:
    """A layer that is small, or large, as a whole would be dead, or live with its dead rows."""
    weight = layer(torch.float32)
    weight[5] *= 2e-3 / float(weight[5].norm()) * float(weight.norm(dim=1).max())  # short, and alive
    weight[7] *= 1e-5
    value, gradient = graded(PATHS[path], weight)
    scaled, its = graded(PATHS[path], (size * weight.double()).float())
    assert scaled == pytest.approx(value, rel=1e-5)
    assert gradient[5].any()
    assert not gradient[7].any()
    torch.testing.assert_close(its.double() * size, gradient.double(), rtol=1e-3, atol=1e-6)


def test_most_of_a_layer_may_have_decayed() -> None:
    """A rule that measures by the median would take the dead for the living."""
    weight = layer(torch.float32)
    weight[:25] *= 1e-20
    value, gradient = graded(PATHS["blocked"], weight)
    assert value == pytest.approx(hyperspherical_energy(weight[25:], space="half").item(), rel=1e-6)
    assert not gradient[:25].any()


def test_the_exact_energy_and_skip_leave_out_zeros_alone() -> None:
    """The public energy would change with the length of a row, of which it is said to be independent."""
    weight = layer(torch.float32)
    expected = hyperspherical_energy(weight).item()
    weight[3] *= 1e-25
    for dead in ("error", "skip"):
        assert hyperspherical_energy(weight, dead=dead).item() == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


def test_a_layer_with_one_long_row_has_too_few() -> None:
    """A message about rows of zeros would send somebody to look for them."""
    weight = layer(torch.float32)
    weight[1:] *= 1e-9
    with pytest.raises(MHEError, match="only 1 of 33 rows has a length"):
        hyperspherical_energy(weight, dead="skip_negligible")
    assert energy_share(weight[:4], weight, 0, Potential()).item() == 0.0
