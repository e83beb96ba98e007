"""The energy whatever surrounds the call: autocast, transforms of `torch.func`, a default device, a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
from torch.autograd import forward_ad

from hf_mhe import energy as energies
from hf_mhe import hyperspherical_energy
from hf_mhe.energy.autograd.share import energy_share
from hf_mhe.energy.potential import Potential

VARIANTS = [(2, "euclidean", "full"), (1, "euclidean", "half"), (0, "angular", "full")]
SHAPES = [(9, 5), (100, 40), (700, 33)]  # in float64; one square; several panels

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exact": hyperspherical_energy,
    "dense": lambda weight: hyperspherical_energy(weight, walk="dense"),
    "dense_energy": lambda weight: energies.dense_energy(weight, Potential()),
    "by name": lambda weight: hyperspherical_energy(s=1, weight=weight),
    "sampled, by name": lambda weight: energies.sampled_energy(
        generator=torch.Generator().manual_seed(0), rows=20, weight=weight
    ),
    "sampled": lambda weight: energies.sampled_energy(weight, rows=20, generator=torch.Generator().manual_seed(0)),
    "share": lambda weight: energy_share(weight, weight.detach(), 0, Potential()),
    "random projection": lambda weight: energies.random_projection_energy(weight, dim=8, projections=3, seed=0),
    "angle-preserving": lambda weight: energies.angle_preserving_projection_energy(weight, dim=8, seed=0),
    "adversarial": lambda weight: energies.adversarial_projection_energy(weight, dim=8, seed=0),
    "minimal angle": energies.minimal_angle_penalty,
    "separation": energies.separation_penalty,
    "Gram determinant": energies.gram_determinant_penalty,
    "soft orthogonality": energies.soft_orthogonality_penalty,
    "double soft orthogonality": energies.double_soft_orthogonality_penalty,
    "SRIP": lambda weight: energies.srip_penalty(weight, seed=0),
    "coherence": energies.coherence_penalty,
}


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed), dtype=torch.float64).to(
        dtype
    )


def gradient(weight: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    leaf = weight.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf), leaf)
    return grad


@pytest.mark.parametrize("shape", [(100, 40), (700, 64)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_nothing(name: str, shape: tuple[int, int]) -> None:
    """If this failed, a penalty under mixed precision would have the digits of bfloat16, in value or gradient."""
    function = FUNCTIONS[name]
    results = []
    for enabled in (False, True):
        weight = rows(*shape).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = function(weight)
            assert torch.is_autocast_enabled("cpu") == enabled
        results.append((value, *torch.autograd.grad(value, weight)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_autocast_leaves_statistics_alone() -> None:
    """If this failed, a checkpoint would be analyzed in bfloat16 where the caller's code runs under autocast."""
    plain = energies.pair_statistics(rows(700, 64), Potential())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert energies.pair_statistics(rows(700, 64), Potential()).energy == plain.energy


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_functional_gradients_are_autograds(shape: tuple[int, int], s: float, distance: str, space: str) -> None:
    """If this failed, code that trains with `torch.func` could not have the penalty, or would have another."""

    def function(weight: torch.Tensor) -> torch.Tensor:
        return 3 * hyperspherical_energy(weight, s, distance=distance, space=space)

    weights = torch.stack([rows(*shape, seed=k) for k in range(3)])
    expected = torch.stack([gradient(weight, function) for weight in weights])
    close = 1e-5 * float(expected.abs().max())
    values = torch.stack([function(weight) for weight in weights])

    assert torch.equal(torch.func.grad(function)(weights[0]), expected[0])
    value, pull = torch.func.vjp(function, weights[1])
    torch.testing.assert_close(value, values[1])
    assert torch.equal(pull(torch.tensor(1.0))[0], expected[1])
    torch.testing.assert_close(torch.func.vmap(function)(weights), values)
    torch.testing.assert_close(torch.func.vmap(function, in_dims=1)(weights.transpose(0, 1)), values)
    twice = torch.func.vmap(torch.func.vmap(torch.func.grad(function)))(torch.stack([weights, weights]))
    torch.testing.assert_close(twice, torch.stack([expected, expected]), rtol=0, atol=close)
    batches = torch.func.vmap(function)(torch.stack([weights, weights]))  # each of them a batch of its own
    torch.testing.assert_close(batches, torch.stack([values, values]))
    jacobian = torch.func.jacrev(function)(weights)
    torch.testing.assert_close(jacobian[torch.arange(3), torch.arange(3)], expected, rtol=0, atol=close)
    assert not bool(jacobian[0, 1:].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 9, 5)], ids=str)
def test_forward_mode_is_the_gradient_along_a_direction(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """If this failed, a directional derivative would be refused, or silently zero."""
    weight, direction = rows(*shape, dtype=dtype), rows(*shape, dtype=dtype, seed=1)
    expected = (gradient(weight, lambda leaf: hyperspherical_energy(leaf).sum()) * direction).sum((-2, -1)).float()
    value, tangent = torch.func.jvp(hyperspherical_energy, (weight,), (direction,))
    torch.testing.assert_close(value, hyperspherical_energy(weight))
    assert tangent.dtype == value.dtype
    scale = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(tangent.float(), expected, rtol=scale, atol=scale * float(expected.abs().max()))
    with forward_ad.dual_level():
        dual = hyperspherical_energy(forward_ad.make_dual(weight, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)


def test_a_jacobian_in_one_backward_pass() -> None:
    """If this failed, batched upstream gradients would meet the gradient that is scaled in place."""
    weights = rows(4, 30, 8).requires_grad_()
    value = hyperspherical_energy(weights)
    (jacobian,) = torch.autograd.grad(value, weights, torch.eye(4), is_grads_batched=True)
    for k in range(4):
        torch.testing.assert_close(jacobian[k, k], gradient(weights[k], hyperspherical_energy))


def second_derivatives() -> Iterator[tuple[str, Callable[[Callable[..., torch.Tensor], torch.Tensor], object]]]:
    func = torch.func
    yield "hessian", lambda function, weight: func.hessian(function)(weight)
    yield "reverse over reverse", lambda function, weight: func.jacrev(func.jacrev(function))(weight)
    yield "forward over forward", lambda function, weight: func.jacfwd(func.jacfwd(function))(weight)
    yield "reverse over forward", lambda function, weight: func.jacrev(func.jacfwd(function))(weight)


@pytest.mark.parametrize(("name", "derivative"), list(second_derivatives()), ids=lambda value: str(value)[:20])
def test_second_derivatives_are_refused_and_the_dense_walk_has_them(
    name: str, derivative: Callable[[Callable[..., torch.Tensor], torch.Tensor], object]
) -> None:
    """If this failed, a Hessian would silently be zero."""
    weight = rows(4, 3)
    with pytest.raises(ValueError, match=r"no second derivative.*walk='dense'"):
        derivative(hyperspherical_energy, weight)
    dense = derivative(lambda leaf: hyperspherical_energy(leaf, walk="dense"), weight)
    assert dense.shape == (4, 3, 4, 3)
    assert float(dense.abs().max()) > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_default_device_is_not_the_weights(shape: tuple[int, int]) -> None:
    """If this failed, a program that sets its default device could not take the energy of a weight on another."""
    weight = rows(*shape)
    for s, distance, space in VARIANTS:
        expected = gradient(weight, lambda leaf: hyperspherical_energy(leaf, s, distance=distance, space=space))  # noqa: B023
        with torch.device("meta"):
            found = gradient(weight, lambda leaf: hyperspherical_energy(leaf, s, distance=distance, space=space))  # noqa: B023
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("n", "d"), [(5, 3), (7, 3), (6, 3), (5, 2), (4, 8)])
def test_a_default_device_is_not_the_solvers(n: int, d: int) -> None:
    """If this failed, prototypes could not be made in a program whose tensors are born on a GPU."""
    expected = energies.minimize_energy(n, d)
    with torch.device("meta"):
        assert torch.equal(energies.minimize_energy(n, d), expected)
        assert energies.sampled_energy(expected, rows=n, s=1).item() < 1


@pytest.mark.slow
def test_dynamic_shapes_compile_without_a_break() -> None:
    """If this failed, a compiler that does not specialise on numbers could not trace the call."""
    compiled = torch.compile(
        lambda weight: hyperspherical_energy(weight, 2.0), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in (20, 31):
        assert torch.equal(compiled(rows(n, 6)), hyperspherical_energy(rows(n, 6)))


@pytest.mark.parametrize("s", [numpy.float32(1), numpy.float64(1), numpy.int64(1), 1])
def test_an_exponent_of_any_kind_of_number(s: float) -> None:
    """If this failed, a loop over an array of exponents would be refused."""
    assert torch.equal(hyperspherical_energy(rows(9, 5), s), hyperspherical_energy(rows(9, 5), 1.0))


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_weights_are_named(layout: str) -> None:
    """If this failed, the error would be torch's, from deep inside."""
    weight = torch.eye(4).to_sparse() if layout == "coo" else torch.eye(4).to_sparse_csr()
    with pytest.raises(ValueError, match=rf"must be dense; got layout torch.sparse_{layout}"):
        hyperspherical_energy(weight)
