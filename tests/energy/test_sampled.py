"""The estimators: right on average, in value and in gradient, and the same for the same seed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hf_mhe.energy import Potential, hyperspherical_energy, inclusion_probabilities, rotating_share, sampled_energy
from tests.energy.cases import random_rows
from tests.oracle import DISTANCES, SPACES, pair_values

DRAWS = 2000


def with_close_pairs(n: int, d: int) -> torch.Tensor:
    """Rows with a pair that coincides to float32's rounding of its cosine, a near one, and one nearly opposite."""
    weight = random_rows(n, d)
    weight[1] = weight[0] + 1e-4 * weight[1]
    weight[3] = 3 * weight[2] + 0.05 * weight[3]
    weight[5] = -weight[4] + 0.02 * weight[5]
    return weight


def assert_unbiased(draws: torch.Tensor, exact: torch.Tensor) -> None:
    """Each column's mean within four standard errors of its exact value; one that does not vary has to be it."""
    error = draws.std(dim=0) / math.sqrt(len(draws)) + 1e-12 * exact.abs().max()
    assert float(((draws.mean(dim=0) - exact).abs() / error).max()) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("s", "distance", "space", "n", "d", "rows"),
    [
        (2, "euclidean", "full", 24, 5, 6),
        (2, "euclidean", "half", 24, 5, 6),
        (1, "euclidean", "full", 24, 30, 3),  # d > 2 rows: no quadratic term
        (0, "angular", "full", 24, 5, 1),
        (1, "angular", "half", 24, 5, 12),
    ],
)
def test_rows_against_all_are_unbiased(s: float, distance: str, space: str, n: int, d: int, rows: int) -> None:
    """If this failed, training on the estimate would minimize something other than the energy."""
    weight = with_close_pairs(n, d).requires_grad_()
    energy = hyperspherical_energy(weight, s, distance=distance, space=space)
    (gradient,) = torch.autograd.grad(energy, weight)
    directions = torch.randn(n * d, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    draws = []
    for _ in range(DRAWS):
        estimate = sampled_energy(weight, s, rows=rows, distance=distance, space=space, generator=generator)
        (grad,) = torch.autograd.grad(estimate, weight)
        draws.append(torch.cat([estimate.detach()[None], grad.flatten() @ directions]))
    assert_unbiased(torch.stack(draws), torch.cat([energy.detach()[None], gradient.flatten() @ directions]))


def by_definition(
    weight: torch.Tensor, rows: int, seed: int, s: float, distance: str, space: str, quadratic: bool
) -> torch.Tensor:
    """The estimate for a given sample, all pairs in one float64 matrix, the Taylor terms by central differences."""
    n = len(weight)
    unit = weight.double() / weight.double().norm(dim=1, keepdim=True)
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    cos = unit @ unit.T
    potential = Potential(s, distance, space)
    first, second = off_diagonal.nonzero(as_tuple=True)
    pairs = pair_values(unit[first], unit[second], s, distance, space)
    step = 1e-4
    below, middle, above = (float(potential.value(torch.tensor(k * step, dtype=torch.float64))) for k in (-1, 0, 1))
    cheap = (above - below) / (2 * step) * cos
    if quadratic:
        cheap = cheap + (above - 2 * middle + below) / (2 * step**2) * cos.square()
    rest = torch.zeros_like(cos).masked_scatter(off_diagonal, pairs) - cheap.masked_fill(~off_diagonal, 0)
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:rows]
    return potential.mean_of(rest[sample].sum() * (n / rows) + cheap[off_diagonal].sum(), n)


@pytest.mark.parametrize(
    ("shape", "rows", "dtype", "tolerance"),
    [
        ((40, 7), 9, torch.float64, 1e-7),
        ((40, 7), 1, torch.float32, 1e-6),
        ((700, 24), 560, torch.float32, 1e-5),  # several panels, in float32
        ((300, 60), 20, torch.bfloat16, 1e-2),
    ],
    ids=str,
)
@pytest.mark.parametrize(("s", "distance", "space"), [(2, "euclidean", "full"), (1, "angular", "half")])
def test_a_given_sample_is_what_is_documented(
    shape: tuple[int, int], rows: int, dtype: torch.dtype, tolerance: float, s: float, distance: str, space: str
) -> None:
    """If this failed, a pair would be lost, counted twice or out of place where square, rectangle and panels meet."""
    weight = with_close_pairs(*shape).to(dtype).requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = by_definition(reference, rows, 11, s, distance, space, quadratic=shape[1] <= 2 * rows)
    expected.backward()
    generator = torch.Generator().manual_seed(11)
    energy = sampled_energy(weight, s, rows=rows, distance=distance, space=space, generator=generator)
    energy.backward()
    assert energy.item() == pytest.approx(expected.item(), rel=min(tolerance, 1e-5))
    assert weight.grad.dtype == dtype
    error = (weight.grad.double() - reference.grad).abs().max()
    assert float(error) <= tolerance * float(reference.grad.abs().max())


def test_a_collapsed_layer_keeps_its_digits() -> None:
    """If this failed, a sample of neurons that all point one way, the worst layer there is, would be noise."""
    weight = (torch.ones(600, 50, dtype=torch.float64) + 1e-3 * random_rows(600, 50)).float().requires_grad_()
    reference = weight.detach().double().requires_grad_()
    expected = by_definition(reference, 75, 4, 2, "euclidean", "full", quadratic=True)
    expected.backward()
    energy = sampled_energy(weight, rows=75, generator=torch.Generator().manual_seed(4))
    energy.backward()
    assert energy.item() == pytest.approx(expected.item(), rel=1e-5)
    error = (weight.grad.double() - reference.grad).abs().max()
    assert float(error) < 1e-4 * float(reference.grad.abs().max())


@pytest.mark.quick_cases(9)
@pytest.mark.parametrize("softening", [0.0, 0.2])
@pytest.mark.parametrize(
    ("s", "distance", "space"),
    [(s, distance, space) for s in (0, 1, 2, 2.5) for distance in DISTANCES for space in SPACES],
)
def test_gradcheck(s: float, distance: str, space: str, softening: float) -> None:
    """If this failed, the estimate's gradient would not be that of its value for the sample drawn."""

    def estimate(weight: torch.Tensor, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(8)
        return sampled_energy(
            weight, s, rows=rows, distance=distance, space=space, softening=softening, generator=generator
        )

    for d, rows in ((4, 3), (7, 2)):  # with the quadratic term, and without
        assert torch.autograd.gradcheck(estimate, (random_rows(6, d).requires_grad_(), rows))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("space", SPACES)
def test_all_rows_are_the_exact_energy(space: str, reduction: str) -> None:
    """If this failed, the sample's weight would not tend to one."""
    weight = with_close_pairs(30, 6).requires_grad_()
    exact = hyperspherical_energy(weight, 1, space=space, reduction=reduction)
    (expected,) = torch.autograd.grad(exact, weight)
    estimate = sampled_energy(weight, 1, rows=30, space=space, reduction=reduction)
    (gradient,) = torch.autograd.grad(estimate, weight)
    assert estimate.item() == pytest.approx(exact.item(), rel=1e-12)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize(("shape", "space", "most"), [((512, 64), "full", 0.25), ((512, 64), "half", 0.4)])
def test_the_noise_is_what_the_docstring_says(shape: tuple[int, int], space: str, most: float) -> None:
    """If this failed, the exact terms would not take off the noise, which a plain sample of n/8 rows has at 1.87."""
    weight = random_rows(*shape).float().requires_grad_()
    (exact,) = torch.autograd.grad(hyperspherical_energy(weight, space=space), weight)
    generator = torch.Generator().manual_seed(1)
    square = 0.0
    for _ in range(20):
        estimate = sampled_energy(weight, rows=shape[0] // 8, space=space, generator=generator)
        square += float((torch.autograd.grad(estimate, weight)[0] - exact).square().sum()) / 20
    assert math.sqrt(square) / float(exact.norm()) < most


def test_the_generator_decides() -> None:
    """If this failed, a run could not be repeated, or ranks that seed alike would not sample alike."""
    weight = random_rows(40, 6)
    first, again, other = (
        sampled_energy(weight, rows=5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(sampled_energy(weight, rows=5), first)
    generator = torch.Generator().manual_seed(1)
    state = torch.get_rng_state()
    sampled_energy(weight, rows=5, generator=generator)
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_its_matrices_and_dead_rows_are_left_out_or_refused() -> None:
    """If this failed, experts sampled together, or a padding row, would change the estimate."""
    batch = torch.stack([random_rows(11, 5, seed=k) for k in range(3)]).requires_grad_()
    energies = sampled_energy(batch, 1, rows=4, generator=torch.Generator().manual_seed(6))
    (gradient,) = torch.autograd.grad(energies.sum(), batch)
    generator = torch.Generator().manual_seed(6)
    for k in range(3):
        matrix = batch.detach()[k].clone().requires_grad_()
        energy = sampled_energy(matrix, 1, rows=4, generator=generator)
        assert energy.item() == energies[k].item()
        assert torch.equal(gradient[k], *torch.autograd.grad(energy, matrix))

    weight = random_rows(6, 4)
    weight[2] = 0
    with pytest.raises(ValueError, match="row 2 of the weight is zero"):
        sampled_energy(weight, rows=3)
    weight.requires_grad_()
    energy = sampled_energy(weight, rows=6, dead="skip")
    energy.backward()
    exact = hyperspherical_energy(weight.detach(), dead="skip")
    assert energy.item() == pytest.approx(exact.item(), rel=1e-12)
    assert torch.equal(weight.grad[2], torch.zeros(4, dtype=torch.float64))
    twice = torch.autograd.grad(sampled_energy(weight, rows=3, dead="skip"), weight, create_graph=True)[0]
    with pytest.raises(ValueError, match="no second derivative"):
        twice.sum().backward()


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.eye(3), {"rows": 0}, "rows must be an integer from 1 to the number of neurons, 3; got 0"),
        (torch.eye(3), {"rows": 4}, "got 4"),
        (torch.eye(3), {"rows": 1.5}, "got 1.5"),
        (torch.eye(3), {"rows": True}, "got True"),
        (torch.ones(3), {}, r"shape \(n, d\).*\(3,\)"),
        (torch.ones(3, 3, dtype=torch.int64), {}, "int64"),
        (torch.ones(1, 3), {}, r"at least two neurons.*\(1, 3\)"),
        (torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]), {}, "not finite.*nan in row 1"),
        (torch.eye(3), {"s": -1}, "s must be a finite number >= 0; got -1"),
        (torch.eye(3), {"space": "both"}, "'full', 'half'; got 'both'"),
        (torch.eye(3), {"reduction": "none"}, "'mean', 'sum'; got 'none'"),
        (torch.eye(3), {"dead": "keep"}, "'error', 'skip', 'skip_negligible'; got 'keep'"),
    ],
)
def test_bad_input_is_named(weight: torch.Tensor, options: dict[str, object], message: str) -> None:
    """If this failed, a mistake would surface as a number, or as an error from deep inside."""
    with pytest.raises(ValueError, match=message):
        sampled_energy(weight, **{"rows": 1, **options})


# --- rotating groups ---------------------------------------------------------------------------------------------

# Four square matrices, one tall, one wide, as in MiniLM's layers.
COSTS = [*([384.0**3] * 4), 1536.0**2 * 384, 384.0**2 * 1536] * 2


@pytest.mark.parametrize("benefits", [None, [1.0 + (k % 5) for k in range(len(COSTS))]])
def test_rotating_groups_are_unbiased_over_the_phase(benefits: list[float] | None) -> None:
    """If this failed, some layers would be regularized more, or less, than the penalty says.

    The gradient of a sum over groups of different parameters is the groups' gradients side by side, so what is to be
    shown for value and gradient is one thing: the weighted sum of what the groups contribute, here matrices' energies
    and directional derivatives along 20 directions.
    """
    contributions = []
    for k in range(len(COSTS)):
        weight = with_close_pairs(9, 4 + k).requires_grad_()
        energy = hyperspherical_energy(weight)
        (gradient,) = torch.autograd.grad(energy, weight)
        directions = torch.randn(weight.numel(), 20, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        contributions.append(torch.cat([energy.detach()[None], gradient.flatten() @ directions]))
    terms = torch.stack(contributions)
    draws = []
    for seed in range(DRAWS):
        weights = torch.zeros(len(COSTS), dtype=torch.float64)
        for group, factor in rotating_share(COSTS, sum(COSTS) / 4, 17, benefits=benefits, seed=seed).items():
            weights[group] = factor
        draws.append(weights @ terms)
    assert_unbiased(torch.stack(draws), terms.sum(0))


def test_every_group_has_its_turns() -> None:
    """If this failed, one run, which has one phase, would neglect a layer for long, or spend more than it may."""
    steps, budget = 2000, sum(COSTS) / 4
    probabilities = inclusion_probabilities(COSTS, budget)
    chosen = [rotating_share(COSTS, budget, step, seed=5) for step in range(steps)]
    for group, probability in enumerate(probabilities):
        turns = [step for step, share in enumerate(chosen) if group in share]
        assert abs(len(turns) - probability * steps) < 4  # independent draws would be off by about 15
        assert max(b - a for a, b in itertools.pairwise(turns)) <= 4 / probability
        assert all(share[group] == pytest.approx(1 / probability) for share in chosen if group in share)
    assert len({len(share) for share in chosen}) <= 2
    spent = [sum(COSTS[group] for group in share) for share in chosen]
    assert sum(spent) / steps == pytest.approx(budget, rel=2e-3)


def test_probabilities_spend_the_budget_with_the_least_variance() -> None:
    """If this failed, another choice of probabilities at the same cost would be less noisy."""
    generator = torch.Generator().manual_seed(0)
    costs = (torch.rand(9, generator=generator) * 10 + 0.1).tolist()
    benefits = (torch.rand(9, generator=generator) * 5 + 0.1).tolist()
    for budget in (0.5, 5.0, sum(costs) / 2):
        best = inclusion_probabilities(costs, budget, benefits)
        assert all(0 < p <= 1 for p in best)
        assert sum(p * c for p, c in zip(best, costs, strict=True)) == pytest.approx(budget)
        variance = sum(a * a / p for p, a in zip(best, benefits, strict=True))
        for i in range(9):
            for j in range(9):  # move a little cost from i to j
                moved = list(best)
                moved[i] -= 1e-4 / costs[i]
                moved[j] += 1e-4 / costs[j]
                if i != j and moved[i] > 0 and moved[j] <= 1:
                    assert sum(a * a / p for p, a in zip(moved, benefits, strict=True)) > variance
    assert rotating_share(costs, sum(costs), 3) == dict.fromkeys(range(9), 1.0)


def test_the_share_depends_on_seed_and_step_alone() -> None:
    """If this failed, two ranks would compute different groups, and wait for each other for ever."""
    shares = [rotating_share(COSTS, COSTS[4], 10**12 + k, seed=3) for k in range(20)]
    assert shares == [rotating_share(COSTS, COSTS[4], 10**12 + k, seed=3) for k in range(20)]
    assert len({tuple(share) for share in shares}) > 3
    assert shares != [rotating_share(COSTS, COSTS[4], 10**12 + k, seed=4) for k in range(20)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"costs": []}, "one number per group; got 0 and 0"),
        ({"benefits": [1.0]}, "one number per group; got 2 and 1"),
        ({"costs": [1.0, 0.0]}, "costs must be finite and > 0; got 0.0"),
        ({"benefits": [1.0, math.nan]}, "benefits must be finite and > 0; got nan"),
        ({"budget": -1}, "budget must be finite and > 0; got -1"),
        ({"step": -1}, "step must be an integer >= 0; got -1"),
        ({"seed": "a"}, "seed must be an integer >= 0; got 'a'"),
    ],
)
def test_bad_shares_are_named(arguments: dict[str, object], message: str) -> None:
    """If this failed, a mistake would silently leave layers out of the penalty."""
    with pytest.raises(ValueError, match=message):
        rotating_share(**{"costs": [1.0, 2.0], "budget": 1.0, "step": 0, **arguments})
