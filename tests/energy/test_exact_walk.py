"""The exact walk against the definition, which `tests/oracle.py` writes out in float64."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from hf_mhe.energy import dense_energy, hyperspherical_energy
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.walks.exact import matrices_at_a_time
from hf_mhe.energy.walks.panels import panel_batches, panel_rounds
from hf_mhe.energy.walks.small_cosines import power_series
from hf_mhe.energy.walks.squares import products_of_rows
from tests.energy.cases import random_rows
from tests.oracle import DISTANCES, SPACES, VARIANTS, quick_energy, slow_energy

SHAPES = [(2, 2), (7, 3), (65, 33), (300, 17), (129, 1000)]


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.float32, shape) for shape in SHAPES[:4]]
    + [pytest.param(torch.float32, SHAPES[4], marks=pytest.mark.slow)]
    + [(dtype, shape) for dtype in (torch.bfloat16, torch.float16) for shape in SHAPES[:4]],
    ids=str,
)
@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_value_and_gradient_are_those_of_the_double_loop(
    shape: tuple[int, int], s: float, distance: str, space: str, dtype: torch.dtype
) -> None:
    """If this failed, the penalty that people train with would not be the paper's energy.

    The loop sees the very numbers that the walk sees, so the value agrees to 1e-6 from any dtype. The gradient is
    returned in the weight's own dtype, whose rounding is added to 1e-5.
    """
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    weight = random_rows(*shape).to(dtype).requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = slow_energy(reference, s, distance, space)
    expected.backward()

    energy = hyperspherical_energy(weight, s, distance=distance, space=space)
    energy.backward()
    assert energy.dtype == torch.float32
    assert energy.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    error = (weight.grad.double() - reference.grad).abs()
    tiny = torch.finfo(dtype).tiny if dtype == torch.float16 else 0.0
    assert float((error - rounding * reference.grad.abs() - tiny).max()) <= 1e-5 * float(reference.grad.abs().max())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("s", [0, 0.5, 1, 2, 3.7])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("space", SPACES)
def test_every_exponent_and_reduction_in_float64(reduction: str, s: float, distance: str, space: str) -> None:
    """If this failed, an exponent without a fast path, or the sum, would follow another formula."""
    weight = random_rows(23, 6)
    energy = hyperspherical_energy(weight, s, distance=distance, space=space, reduction=reduction)
    assert energy.item() == pytest.approx(float(slow_energy(weight, s, distance, space, reduction)), rel=1e-11)
    dense = hyperspherical_energy(weight, s, distance=distance, space=space, reduction=reduction, walk="dense")
    assert float(dense) == pytest.approx(float(energy), rel=1e-11)


@pytest.mark.parametrize(("s", "distance", "space"), [*VARIANTS, (0.5, "euclidean", "full"), (2.5, "angular", "half")])
@pytest.mark.parametrize("softening", [0.0, 0.3])
def test_gradcheck(s: float, distance: str, space: str, softening: float) -> None:
    """If this failed, the gradient would not be the derivative of the value."""
    weight = random_rows(9, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: hyperspherical_energy(rows, s, distance=distance, space=space, softening=softening), (weight,)
    )


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize(("n", "d"), [(513, 40), (650, 384), (1411, 40)])  # one round, mirrored, several rounds
def test_many_panels_agree_with_one_matrix(s: float, distance: str, space: str, n: int, d: int) -> None:
    """If this failed, pairs would be lost or counted twice where panels meet: n is no multiple of any block."""
    weight = random_rows(n, d).float().requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = dense_energy(reference, Potential(s, distance, space))
    expected.backward()
    energy = hyperspherical_energy(weight, s, distance=distance, space=space)
    energy.backward()
    assert energy.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(weight.grad.double(), reference.grad, rtol=0, atol=1e-5 * float(reference.grad.abs().max()))
    # A value alone has panels of its own.
    alone = hyperspherical_energy(weight.detach(), s, distance=distance, space=space)
    assert alone.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.quick_cases(22)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("s", [0, 0.5, 1, 2, 3.7, 12, 60])
@pytest.mark.parametrize("softening", [0.0, 0.7])
@pytest.mark.parametrize("common", [0.0, 0.18, 0.3])
def test_a_value_alone_of_nearly_orthogonal_neurons(
    s: float, distance: str, space: str, softening: float, common: float
) -> None:
    """Small cosines are summed by their powers: if this failed, the value alone would not be that of training.

    Apart from noise all cosines are `common`, which lies within the series' reach, or beyond it.
    """
    weight, cosines = nearly_orthogonal(common)
    potential = Potential(s, distance, space, softening)
    if (distance != "euclidean" or s == 0.5) and s <= 2:
        assert power_series(potential) is not None
    expected = potential.mean_of(2 * potential.value(cosines).sum(), len(weight)).item()
    energy = hyperspherical_energy(weight, s, distance=distance, space=space, softening=softening)
    assert energy.item() == pytest.approx(expected, rel=1e-6 * max(1, s))


@functools.cache
def nearly_orthogonal(common: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in float32, and the cosines of their pairs in float64."""
    n, d = 520, 5000
    weight = random_rows(n, d) / d**0.5
    weight[:, 0] = (common / (1 - common)) ** 0.5
    unit = torch.nn.functional.normalize(weight.float().double(), dim=1)
    first, second = torch.triu_indices(n, n, offset=1)
    return weight.float(), (unit @ unit.T)[first, second]


@pytest.mark.parametrize("softening", [0.0, 0.5, 2.0, 2.1, 30.0, 1e4])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("n", "dtype"), [(200, torch.float32), (700, torch.float32), (700, torch.float64)], ids=str)
def test_logarithms_of_products_stay_in_range(n: int, dtype: torch.dtype, space: str, softening: float) -> None:
    """The logarithms of a block are those of its products: if this failed, one would overflow, or vanish.

    The rows lie in a cone of 9 degrees, just outside of what is recomputed pair by pair, so that all factors of a
    product are as small as they get.
    """
    weight = torch.zeros(n, n + 1, dtype=torch.float64)
    weight[:, 0] = 1.0
    weight[:, 1:] = 0.11 * torch.eye(n, dtype=torch.float64)  # every pair at a squared chord of 0.0239
    weight = (weight + 1e-4 * random_rows(n, n + 1)).to(dtype)
    expected = dense_energy(weight.double(), Potential(0, "euclidean", space, softening))
    for rows in (weight, weight.clone().requires_grad_()):  # a value alone, and one with its gradient
        energy = hyperspherical_energy(rows, 0, space=space, softening=softening)
        assert energy.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_rotation_and_scale_leave_the_energy_alone(s: float, distance: str, space: str) -> None:
    """If this failed, the energy would depend on more than directions."""
    weight = random_rows(31, 12)
    rotation = torch.linalg.qr(random_rows(12, 12, seed=1)).Q
    scale = torch.rand(31, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 100 + 0.01
    energy = hyperspherical_energy(weight, s, distance=distance, space=space)
    moved = hyperspherical_energy(scale * weight @ rotation, s, distance=distance, space=space)
    assert float(moved) == pytest.approx(float(energy), rel=1e-12)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_the_two_oracles_agree(s: float, distance: str, space: str) -> None:
    """If this failed, the faster oracle would not be the definition."""
    weight = random_rows(19, 4)
    loop = slow_energy(weight, s, distance, space)
    assert quick_energy(weight, s, distance, space).item() == pytest.approx(loop.item(), rel=1e-12)


def test_simplex_by_its_formula() -> None:
    """If this failed, the distance would be wrong: every squared chord of a regular simplex is 2n/(n-1)."""
    n = 6
    simplex = torch.eye(n, dtype=torch.float64) - 1 / n
    square = 2 * n / (n - 1)
    for s in (0.5, 1, 2):
        assert float(hyperspherical_energy(simplex, s)) == pytest.approx(square ** (-s / 2), rel=1e-13)
    assert float(hyperspherical_energy(simplex, 0)) == pytest.approx(-0.5 * math.log(square), rel=1e-13)


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("gap", [1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("n", [2, 40, 700])
@pytest.mark.parametrize("sign", [1, -1])
def test_near_duplicates_keep_their_digits(distance: str, space: str, gap: float, n: int, sign: int) -> None:
    """If this failed, `2 - 2c` would have cancelled in float32: redundant pairs are the ones it gets wrong."""
    weight = random_rows(n, 64).float()
    step = random_rows(1, 64, seed=7)[0].float()
    weight[1] = sign * (weight[0] + gap * step * weight[0].norm() / step.norm())
    weight.requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = quick_energy(reference, 2, distance, space)
    expected.backward()
    energy = hyperspherical_energy(weight, 2, distance=distance, space=space)
    energy.backward()
    assert energy.item() == pytest.approx(expected.item(), rel=1e-5)
    # The pair's own pull is the largest gradient by far; the error is held against each row's.
    error = (weight.grad.double() - reference.grad).norm(dim=1)
    assert float((error[:2] / reference.grad[:2].norm(dim=1)).max()) < 1e-4


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("shape", [(130, 4096), (600, 4096), (700, 1024), (600, 64)], ids=str)
@pytest.mark.parametrize("noise", [0.11, 0.12, 0.2])
@pytest.mark.parametrize("common", ["one coordinate", "all coordinates"])
def test_a_narrow_cone_keeps_its_digits(common: str, noise: float, shape: tuple[int, int], s: float) -> None:
    """All pairs are just too far apart to be recomputed one by one: if this failed, the error of a row's length, which
    is that of all its cosines, would be an error of the layer's energy. An outlying dimension makes it large."""
    n, d = shape
    weight = noise * random_rows(n, d) * (d**-0.5 if common == "one coordinate" else 1)
    weight[:, : 1 if common == "one coordinate" else d] += 1
    weight = weight.float()
    expected = dense_energy(weight.double(), Potential(s))
    for rows in (weight, weight.clone().requires_grad_()):
        assert hyperspherical_energy(rows, s).item() == pytest.approx(expected.item(), rel=5e-6)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_a_collapsed_layer_is_still_exact(s: float, distance: str, space: str) -> None:
    """If this failed, a layer whose neurons all point one way, the worst there is, would be measured by noise."""
    weight = (torch.ones(700, 50, dtype=torch.float64) + 1e-3 * random_rows(700, 50)).float().requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = quick_energy(reference, s, distance, space)
    expected.backward()
    energy = hyperspherical_energy(weight, s, distance=distance, space=space)
    energy.backward()
    assert energy.item() == pytest.approx(expected.item(), rel=1e-5)
    error = (weight.grad.double() - reference.grad).abs().max()
    assert float(error) < 1e-4 * float(reference.grad.abs().max())


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_rows(distance: str) -> None:
    """If this failed, two equal rows would poison training with NaN, or softening would not bound them."""
    weight = random_rows(5, 4)
    weight[3] = weight[1]
    weight.requires_grad_()
    assert hyperspherical_energy(weight, 2, distance=distance).item() == math.inf
    softened = hyperspherical_energy(weight, 2, distance=distance, softening=1e-3)
    softened.backward()
    assert math.isfinite(softened.item())
    assert bool(torch.isfinite(weight.grad).all())


def test_gradient_descent_separates_rows_that_differ_by_one_unit_in_the_last_place() -> None:
    """If this failed, coinciding neurons would stay together for ever: the very thing that a clamp does to them."""
    weight = random_rows(4, 3).float()
    weight[1] = weight[0]
    weight[1, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    weight.requires_grad_()
    for _ in range(300):
        energy = hyperspherical_energy(weight, 2, softening=1e-2)
        (grad,) = torch.autograd.grad(energy, weight)
        with torch.no_grad():
            weight -= 0.02 * grad / grad.norm().clamp(min=1.0)
    unit = torch.nn.functional.normalize(weight.detach(), dim=1)
    assert float((unit[0] - unit[1]).norm()) > 0.5


def test_a_batch_is_its_matrices() -> None:
    """If this failed, experts or heads walked together would differ from the same ones walked apart."""
    batch = torch.stack([random_rows(11, 5, seed=k) for k in range(3)]).requires_grad_()
    energies = hyperspherical_energy(batch, 1, space="half")
    energies.dot(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).backward()
    for k in range(3):
        matrix = batch.detach()[k].clone().requires_grad_()
        energy = hyperspherical_energy(matrix, 1, space="half")
        energy.backward()
        torch.testing.assert_close(energies[k], energy, rtol=1e-14, atol=0)
        torch.testing.assert_close(batch.grad[k], (k + 1) * matrix.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["plain", "close pair", "dead row", "transposed"])
def test_matrices_walked_together_are_those_walked_apart(case: str, dtype: torch.dtype) -> None:
    """Many small ones are one square each, in the same calls: if this failed, one of them would leak into another."""
    count, n, d = 9, 100, 40
    batch = torch.stack([random_rows(n, d, seed=k) for k in range(count)]).to(dtype)
    if case == "close pair":  # far beyond what the products can tell, in one of the matrices
        batch[4, 7] = batch[4, 3]
        batch[4, 7, 0] *= 1.01
    elif case == "dead row":
        batch[5, 2] = 0
    elif case == "transposed":
        batch = batch.transpose(1, 2).contiguous().transpose(1, 2)
    assert matrices_at_a_time(batch) > 1
    factors = torch.arange(1.0, count + 1)
    for s, distance, space in VARIANTS:
        options = {"s": s, "distance": distance, "space": space, "dead": "skip"}
        weight = batch.clone().requires_grad_()
        energies = hyperspherical_energy(weight, **options)
        (grad,) = torch.autograd.grad(energies.dot(factors), weight)
        torch.testing.assert_close(hyperspherical_energy(batch, **options), energies.detach())
        for k in range(count):
            alone = batch[k].clone().requires_grad_()
            energy = hyperspherical_energy(alone, **options)
            (expected,) = torch.autograd.grad(energy, alone)
            torch.testing.assert_close(energies[k], energy, rtol=1e-6, atol=0)
            close = 1e-5 if dtype == torch.float32 else 1e-2
            assert (grad[k].float() - factors[k] * expected.float()).norm() <= close * (
                factors[k] * expected.float()
            ).norm()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("n", "count"), [(2, 3000), (3, 3000), (5, 700)])
def test_many_tiny_matrices(n: int, count: int, space: str) -> None:
    """Fewer cosines than logarithms are taken at once, in each of many: if this failed, the rest would be lost."""
    batch = random_rows(count, n * 4).view(count, n, 4)
    expected = dense_energy(batch, Potential(0, "euclidean", space))
    torch.testing.assert_close(hyperspherical_energy(batch, 0, space=space), expected, rtol=1e-10, atol=1e-10)


def test_more_matrices_than_are_walked_at_a_time() -> None:
    """The last, smaller call is one more call, not left out."""
    batch = torch.stack([random_rows(384, 8, seed=k) for k in range(5)]).float()
    assert 1 < matrices_at_a_time(batch) < 5
    expected = torch.stack([hyperspherical_energy(matrix) for matrix in batch])
    torch.testing.assert_close(hyperspherical_energy(batch), expected)


def test_dead_rows_are_left_out_or_refused() -> None:
    """If this failed, a row of zeros (a padding embedding, say) would count as a direction."""
    weight = random_rows(6, 4)
    weight[2] = 0
    with pytest.raises(ValueError, match="row 2 of the weight is zero"):
        hyperspherical_energy(weight)
    weight.requires_grad_()
    energy = hyperspherical_energy(weight, dead="skip")
    energy.backward()
    rest = weight.detach()[[0, 1, 3, 4, 5]]
    assert energy.item() == pytest.approx(float(slow_energy(rest, 2, "euclidean", "full")), rel=1e-12)
    assert torch.equal(weight.grad[2], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("length", [1e-30, 1e-20, 1e20, 1e30])
def test_rows_of_extreme_length_have_directions(length: float) -> None:
    """If this failed, a norm would have overflowed or vanished in float32, and the direction with it."""
    weight = random_rows(6, 4).float()
    extreme = weight.clone()
    extreme[2] *= length
    energy = hyperspherical_energy(extreme)
    assert energy.item() == pytest.approx(float(hyperspherical_energy(weight)), rel=1e-5)


def test_same_input_same_bits() -> None:
    """If this failed, a training run could not be repeated."""
    weight = random_rows(1500, 96).float().requires_grad_()
    results = []
    for _ in range(3):
        energy = hyperspherical_energy(weight, 2, space="half")
        results.append((energy, *torch.autograd.grad(energy, weight)))
    for energy, grad in results[1:]:
        assert torch.equal(energy, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.slow
def test_compile_export_and_operator_checks() -> None:
    """If this failed, a compiled or exported model could not hold the penalty."""
    weight = random_rows(12, 7).float().requires_grad_()
    compiled = torch.compile(
        lambda rows: 0.5 * hyperspherical_energy(rows, 1, space="half"), fullgraph=True, backend="aot_eager"
    )
    value = compiled(weight)
    (grad,) = torch.autograd.grad(value, weight)
    plain = 0.5 * hyperspherical_energy(weight, 1, space="half")
    assert torch.equal(value, plain)
    assert torch.equal(grad, *torch.autograd.grad(plain, weight))

    class Penalty(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return hyperspherical_energy(rows)

    exported = torch.export.export(Penalty(), (weight.detach(),))
    assert torch.equal(exported.module()(weight.detach()), hyperspherical_energy(weight.detach()))
    from hf_mhe.energy.autograd.operator import operator

    columns = torch.randn(70, 300, dtype=torch.float64, requires_grad=True)
    for rows in (weight, columns.t()):
        torch.library.opcheck(operator, (rows, 2.0, "euclidean", "half", 0.0, 0.0, False, "mean", "error", True))


def test_second_derivative_is_refused_and_the_dense_walk_has_it() -> None:
    """If this failed, a Hessian of the energy would silently be wrong."""
    weight = random_rows(4, 3).requires_grad_()
    (grad,) = torch.autograd.grad(hyperspherical_energy(weight), weight, create_graph=True)
    with pytest.raises(ValueError, match="no second derivative"):
        grad.square().sum().backward()
    assert torch.autograd.gradgradcheck(lambda rows: hyperspherical_energy(rows, walk="dense"), (weight,))


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        ([[1.0]], {}, "torch.Tensor"),
        (torch.ones(3), {}, r"shape \(n, d\).*\(3,\)"),
        (torch.ones(3, 3, dtype=torch.int64), {}, "int64"),
        (torch.ones(3, 3, dtype=torch.complex64), {}, "complex64"),
        (torch.ones(1, 3), {}, r"at least two neurons.*\(1, 3\)"),
        (torch.ones(3, 0), {}, r"\(3, 0\)"),
        (torch.ones(3, 3, device="meta"), {}, "meta device and has no values"),
        (torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]), {}, "not finite.*nan in row 1"),
        (torch.tensor([[1.0, 0.0], [float("inf"), 1.0]]), {}, "not finite.*inf in row 1"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), {}, "row 1 of the weight is zero"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), {"dead": "skip"}, "only 1 of 2 rows"),
        (torch.eye(3), {"s": -1}, "s must be a finite number >= 0; got -1"),
        (torch.eye(3), {"s": math.nan}, "got nan"),
        (torch.eye(3), {"s": "2"}, "got '2'"),
        (torch.eye(3), {"distance": "cosine"}, "'euclidean', 'angular'; got 'cosine'"),
        (torch.eye(3), {"space": "both"}, "'full', 'half'; got 'both'"),
        (torch.eye(3), {"reduction": "none"}, "'mean', 'sum'; got 'none'"),
        (torch.eye(3), {"walk": "fast"}, "'blocked', 'dense'; got 'fast'"),
        (torch.eye(3), {"softening": -0.1}, "softening must be a finite number >= 0; got -0.1"),
    ],
)
def test_bad_input_is_named(weight: object, options: dict[str, object], message: str) -> None:
    """If this failed, a mistake would surface as a number, or as an error from deep inside."""
    with pytest.raises(ValueError, match=message):
        hyperspherical_energy(weight, **options)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_dense_walk_has_a_value_for_opposite_and_equal_rows(distance: str) -> None:
    """If this failed, a cosine that rounding carried beyond 1 would make the oracle NaN."""
    weight = random_rows(6, 7)
    weight[2] = -3 * weight[1]
    dense = hyperspherical_energy(weight, 1, distance=distance, walk="dense")
    assert dense.item() == pytest.approx(quick_energy(weight, 1, distance, "full").item(), rel=1e-9)
    weight[2] = weight[1]
    assert hyperspherical_energy(weight, 1, distance=distance, walk="dense").item() > 1e5


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("n", [2, 512, 513, 514, 640, 700, 1000, 1023, 1025, 1537, 3072, 3083, 5000, 9000])
@pytest.mark.parametrize("d", [64, 768])
def test_each_pair_is_in_one_panel(n: int, d: int, gradient: bool) -> None:
    """If this failed, pairs of neurons would be lost or counted twice for some numbers of neurons."""
    seen = torch.zeros(n, n, dtype=torch.int8)
    begun = torch.zeros(n, dtype=torch.bool)
    rounds = panel_rounds(n, d, torch.device("cpu"), gradient=gradient)
    for batch in (batch for each in rounds for _, batch in each.parts):
        items = list(batch.items())
        if not batch.opens_rows:
            assert all(begun[panel.row : panel.row_end].all() for panel in items)
        if not batch.opens_columns:
            assert all(begun[panel.column : panel.column_end].all() for panel in items)
        for panel in items:
            assert not (batch.opens_rows and begun[panel.row : panel.row_end].any())
            seen[panel.row : panel.row_end, panel.column : panel.column_end] += 1
            if not panel.diagonal:
                seen[panel.column : panel.column_end, panel.row : panel.row_end] += 1
        for panel in items:
            begun[panel.row : panel.row_end] = True
            begun[panel.column : panel.column_end] = True
    assert bool((seen == 1).all())


@pytest.mark.parametrize("n", [2, 500, 513, 640, 1001, 1406, 1407, 3083])
def test_a_round_is_one_block(n: int) -> None:
    """If this failed, a pass over a round would miss pairs, or count those of a square as those of a rectangle."""
    rounds = panel_rounds(n, 768, torch.device("cpu"))
    assert [each.has_all for each in rounds] == [len(rounds) == 1] * len(rounds)
    for each in rounds:
        places = [part.start for part, _ in each.parts] + [each.elements]
        assert places == [0, *(part.stop for part, _ in each.parts)]
        for part, batch in each.parts:
            assert part.stop - part.start == batch.elements
            assert batch.first.diagonal == (part.start >= each.rectangles)


@pytest.mark.parametrize("n", [513, 640, 1001, 1406])
def test_a_round_of_all_pairs_is_mirrored(n: int) -> None:
    """If this failed, a neuron would be pushed by another that it does not push back."""
    rows = random_rows(n, 3)
    cosines = rows @ rows.mT
    (each,) = panel_rounds(n, 768, torch.device("cpu"))
    block = torch.cat([(batch.left(rows) @ batch.right(rows).mT).flatten() for _, batch in each.parts])
    each.fill_diagonals_(block, 7.0)
    square = torch.full((n, n), torch.nan, dtype=rows.dtype)
    each.mirror_(block, square)
    assert torch.allclose(square, cosines.fill_diagonal_(7.0))


@pytest.mark.parametrize("shape", [(3, 16, 8), (2, 385, 1000), (1, 512, 512)])
def test_products_of_rows_are_the_whole_matrix(shape: tuple[int, int, int]) -> None:
    """If this failed, wide layers of some hundred neurons would lose pairs."""
    rows = torch.randn(shape, dtype=torch.float64)
    products = torch.full((*shape[:2], shape[1]), torch.nan, dtype=torch.float64)
    products_of_rows(rows, products)
    assert torch.allclose(products, rows @ rows.mT)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("n", [40_000, 131_071, 200_000])
def test_no_block_grows_with_the_number_of_rows(n: int, gradient: bool) -> None:
    """If this failed, the walk over a vocabulary would take gigabytes, most of them for a few last rows."""
    batches = panel_batches(n, torch.device("cpu"), gradient=gradient)
    assert max(batch.elements for batch in batches) <= 1 << 22
    assert sum(batch.pairs // (2 if batch.first.diagonal else 1) for batch in batches) == n * (n - 1) // 2


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("n", [513, 1100, pytest.param(1419, marks=pytest.mark.slow)])
@pytest.mark.parametrize("copies", ["pairs", "block"])
def test_close_neurons_anywhere_in_the_matrix(n: int, copies: str) -> None:
    """If this failed, near-duplicates would be lost, or spoil a gradient, in some kind of panel but not in others."""
    weight = random_rows(n, 40)
    generator = torch.Generator().manual_seed(5)
    if copies == "pairs":  # in squares, in batched and in single rectangles, and with the rows left over at the end
        left = torch.randperm(n, generator=generator)[:60]
        right = torch.cat((left[30:], torch.tensor([n - 1, n - 2]), left[32:] - left[32:] % 7))[:60]
        keep = left != right
        left, right = left[keep], right[keep]
        weight[right] = weight[left] + 1e-3 * random_rows(len(left), 40, seed=2)
    else:  # more than one by one is worth: whole pieces go to float64
        weight[n // 3 :] = weight[0] + 1e-2 * random_rows(n - n // 3, 40, seed=2)
    weight = weight.float().requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = dense_energy(reference, Potential(2.0, "euclidean", "full"))
    expected.backward()
    junk = [torch.full((n, 40), torch.nan) for _ in range(4)]  # what the walk's own memory may hold when it begins
    del junk
    energy = hyperspherical_energy(weight)
    energy.backward()
    assert energy.item() == pytest.approx(expected.item(), rel=1e-5)
    error = (weight.grad.double() - reference.grad).norm(dim=1) / reference.grad.norm(dim=1)
    assert float(error.median()) < 1e-4
    assert float(error.max()) < 1e-2
    for s, distance, space in VARIANTS:  # a value alone, which has panels of its own
        alone = hyperspherical_energy(weight.detach(), s, distance=distance, space=space)
        expected = quick_energy(weight.detach(), s, distance, space)
        assert alone.item() == pytest.approx(expected.item(), rel=1e-5)
