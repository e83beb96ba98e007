"""EnergyLoss against its formula, on every kind of batch that a training hands it."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_mhe import EnergyLoss, MHEError
from tests.energy.cases import random_rows
from tests.oracle import VARIANTS, directions, pair_values, slow_energy


def by_formula(
    rows: Tensor, labels: Tensor, s: float = 2.0, distance: str = "euclidean", space: str = "full", eps: float = 0.0
) -> Tensor:
    """The mean over ordered pairs of different classes; in half space over the four pairs of points that each is."""
    unit = directions(rows)
    values = [
        pair_values(unit[i], unit[j], s, distance, space, eps)
        for i in range(len(unit))
        for j in range(len(unit))
        if labels[i] != labels[j]
    ]
    return torch.stack(values).mean() / (2 if space == "half" else 1)


def check(energy: Tensor, expected: Tensor, rows: Tensor, close: float = 1e-12) -> None:
    assert energy.item() == pytest.approx(expected.item(), rel=close, abs=close)
    (found,), (right,) = torch.autograd.grad(energy, rows), torch.autograd.grad(expected, rows)
    assert (found - right).abs().max().item() <= close * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("softening", [0.0, 0.3])
@pytest.mark.parametrize(("s", "distance", "space"), [*VARIANTS, (2.5, "euclidean", "full")])
def test_all_pairs_count_or_those_of_different_classes(s: float, distance: Any, space: Any, softening: float) -> None:
    """The loss would be another energy than its formula, or its gradient that of another loss."""
    rows = random_rows(23, 5).requires_grad_()
    labels = torch.arange(23) % 4
    loss = EnergyLoss(s, distance=distance, space=space, softening=softening)
    check(loss(rows), slow_energy(rows, s, distance, space, softening=softening), rows)
    check(loss(rows, labels), by_formula(rows, labels, s, distance, space, softening), rows)


@pytest.mark.parametrize("classes", [2, 300])
def test_classes_in_many_blocks_of_float32(classes: int) -> None:
    """Blocks of a large batch would be masked in the wrong place, or lose digits that float32 has."""
    rows = random_rows(1700, 16, dtype=torch.float32).requires_grad_()
    labels = torch.randint(classes, (1700,), generator=torch.Generator().manual_seed(0))
    unit = directions(rows)
    squares = 2 - 2 * unit @ unit.T + 0.3**2
    different = labels.unsqueeze(1) != labels
    check(EnergyLoss(softening=0.3)(rows, labels), (1 / squares)[different].mean(), rows, 1e-5)


def test_a_class_may_coincide_and_other_classes_may_nearly() -> None:
    """The members of a class, which ought to be alike, would make the energy of the others infinite or inexact."""
    rows = random_rows(90, 12, dtype=torch.float32)
    rows[10:20] = rows[0] * torch.arange(1, 11).unsqueeze(1)
    rows[21] = rows[20] + 1e-3 * rows[30]
    labels = torch.arange(90)
    labels[10:20] = 0
    rows = rows.requires_grad_()
    unit = directions(rows)
    squares = (unit.unsqueeze(1) - unit).square().sum(-1)
    different = labels.unsqueeze(1) != labels
    check(EnergyLoss(softening=0)(rows, labels), (1 / squares[different]).mean(), rows, 1e-5)
    assert math.isinf(EnergyLoss(softening=0)(rows).item())


@pytest.mark.parametrize("cut", [0, 1, 37, 64, 80])
def test_shares_of_classes_add_up(cut: int) -> None:
    """Ranks that divide a batch with classes would train with another energy than one process does."""
    from hf_mhe.energy import Potential
    from hf_mhe.energy.autograd.share import share_and_gradient

    rows, labels, potential = random_rows(80, 6), torch.arange(80) % 7, Potential(closest=0.3)
    rows[50] = rows[3] + 1e-4 * rows[4]
    rows[51] = rows[52] + 1e-4 * rows[4]
    whole, gradient = share_and_gradient(rows, rows, 0, potential, labels, gradient=True)
    parts = [
        share_and_gradient(rows[a:b], rows, a, potential, labels, gradient=True) for a, b in ((0, cut), (cut, 80))
    ]
    assert sum(share for share, _ in parts) == pytest.approx(whole, rel=1e-13)
    assert (torch.cat([grad for _, grad in parts]) - gradient).abs().max().item() < 1e-12


def test_rows_that_a_mask_or_a_label_leaves_out() -> None:
    """Padding would be spread over the sphere, or would have a gradient."""
    embeddings = random_rows(4 * 6, 5).view(4, 6, 5)
    mask = torch.arange(6).expand(4, 6) < torch.tensor([[6], [3], [1], [0]])
    labels = torch.where(torch.rand(4, 6) < 0.2, -100, torch.arange(24).view(4, 6) % 3)
    embeddings[~mask] = float("nan")  # what is padding may be anything
    embeddings.requires_grad_()
    for attention_mask in (mask, mask.long()):
        check(EnergyLoss(softening=0)(embeddings, mask=attention_mask), slow_energy(embeddings[mask]), embeddings)
    taking_part = mask & (labels != -100)
    expected = by_formula(embeddings[taking_part], labels[taking_part])
    check(EnergyLoss(softening=0)(embeddings, labels, mask), expected, embeddings)
    energy = EnergyLoss()(embeddings, labels, mask)
    energy.backward()
    assert embeddings.grad is not None
    assert not embeddings.grad[~taking_part].any()
    assert embeddings.grad[taking_part].any(dim=-1).all()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_without_pairs_trains_on(compiled: bool) -> None:
    """The last batch of an epoch, of one example or of one class, would end a training, or spoil it with a NaN."""
    loss = EnergyLoss()
    if compiled:
        loss = torch.compile(loss, fullgraph=True)  # type: ignore[assignment]
    rows = random_rows(6, 3)
    zeros, one_alive = torch.zeros(6, 3), torch.eye(6, 3)[[0, 5, 5]]
    for batch, labels, mask in (
        (rows[:0], None, None),
        (rows[:1], None, None),
        (rows[:1], torch.tensor([1]), None),
        (rows, torch.full((6,), 2), None),
        (rows, torch.full((6,), -100), None),
        (rows, None, torch.zeros(6) == 1),
        (rows, None, torch.arange(6) == 2),
        (zeros, None, None),
        (one_alive, None, None),
        (one_alive, torch.arange(3), None),
    ):
        parameter = batch.clone().requires_grad_()
        energy = loss(parameter * 1, labels, mask)
        energy.backward()
        assert energy.item() == 0
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize("labelled", [False, True])
def test_duplicates_and_a_collapsed_encoder(s: float, distance: Any, space: Any, labelled: bool) -> None:
    """A sentence that comes twice, or an encoder that says the same of all, would end a training by default."""
    loss = EnergyLoss(s, distance=distance, space=space)
    labels = torch.arange(40) if labelled else None
    for scale in (0.0, 1e-12, 1e-6, 1e-3, 1e-1):
        rows = (random_rows(1, 8) + scale * random_rows(40, 8)).float()
        rows[7] = -3 * rows[8]
        rows.requires_grad_()
        energy = loss(rows, labels)
        energy.backward()
        assert rows.grad is not None
        assert math.isfinite(energy.item())
        # No pair pulls harder than at the edge of the tangent, a cosine of 0.95.
        edge = torch.tensor([0.95, -0.95], dtype=torch.float64, requires_grad=True)
        steep = by_formula_of(edge, s, distance).sum()
        (slope,) = torch.autograd.grad(steep, edge)
        pull = 2 * (slope.abs().sum() if space == "half" else slope[0]) * 40 / (40 * 39)
        lengths = rows.detach().norm(dim=1)
        assert (rows.grad.norm(dim=1) * lengths).max().item() <= 1.01 * pull.item()
        if scale > 1e-6:
            assert rows.grad.abs().max().item() > 0


def by_formula_of(cos: Tensor, s: float, distance: str) -> Tensor:
    rho = (2 - 2 * cos).sqrt() if distance == "euclidean" else torch.arccos(cos)
    return -rho.log() if s == 0 else rho**-s


@pytest.mark.parametrize("kind", ["plain", "labels", "mask", "half"])
def test_the_gradient_is_that_of_finite_differences(kind: str) -> None:
    """A step along the gradient would not lower the loss."""
    rows = random_rows(9, 4).requires_grad_()
    labels = torch.arange(9) % 3 if kind == "labels" else None
    mask = torch.arange(9) > 2 if kind == "mask" else None
    loss = EnergyLoss(1.5, space="half" if kind == "half" else "full")
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, mask), (rows,))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_and_autocast(dtype: torch.dtype, labelled: bool) -> None:
    """Mixed precision would lose the energy's digits, or give a gradient that the encoder's dtype cannot take."""
    rows = random_rows(200, 16).to(dtype).requires_grad_()
    labels = torch.arange(200) % 5 if labelled else torch.arange(200)
    unit = directions(rows)
    squares = (unit.unsqueeze(1) - unit).square().sum(-1)
    expected = (1 / squares[labels.unsqueeze(1) != labels]).mean()
    loss = EnergyLoss(softening=0)
    plain = loss(rows, labels if labelled else None)
    with torch.autocast("cpu", torch.bfloat16):
        under = loss(rows, labels if labelled else None)
    assert plain.dtype == under.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(plain, under)
    assert plain.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,), (right,) = torch.autograd.grad(plain, rows), torch.autograd.grad(expected, rows)
    assert found.dtype == dtype
    close = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 1e-5)
    assert (found - right).abs().max().item() <= close * right.abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "labels", "mask"])
def test_a_compiled_loss_is_the_same(kind: str) -> None:
    """`torch.compile(fullgraph=True)` of a training step would break at the loss, or train on another one."""
    labels = torch.arange(30) % 4 if kind == "labels" else None
    mask = torch.arange(30) > 4 if kind == "mask" else None
    encoder, loss = nn.Linear(6, 5), EnergyLoss()

    def step(inputs: Tensor) -> Tensor:
        return loss(torch.tanh(encoder(inputs)), labels, mask)

    compiled = torch.compile(step, fullgraph=True)
    for inputs in (torch.randn(30, 6), torch.randn(30, 6)):
        energies = []
        for each in (step, compiled):
            encoder.zero_grad()
            energy = each(inputs)
            energy.backward()
            assert encoder.weight.grad is not None
            energies.append((energy.detach(), encoder.weight.grad.clone()))
        for eager, other in zip(*energies, strict=True):
            assert (eager - other).abs().max().item() <= 1e-6


def test_values_alone_and_checkpointing() -> None:
    """Evaluation would build a graph, or a checkpointed step train on another gradient."""
    rows, loss = random_rows(40, 6).requires_grad_(), EnergyLoss()
    expected = loss(rows)
    (gradient,) = torch.autograd.grad(expected, rows)
    for value in (loss(rows.detach()), loss.eval()(rows.detach())):
        assert not value.requires_grad
        assert value.item() == expected.item()
    with torch.no_grad():
        assert not loss(rows).requires_grad
    again = checkpoint(
        lambda x: loss(x.sin().asin()), rows.detach().clamp(-1, 1).requires_grad_(), use_reentrant=False
    )
    assert isinstance(again, Tensor)
    again.backward()
    energy = loss(rows)
    energy.backward(retain_graph=True)
    energy.backward()
    assert rows.grad is not None
    assert (rows.grad - 2 * gradient).abs().max().item() < 1e-14


def test_bad_input_is_named() -> None:
    """Whoever mistakes the class of a row for its weight would train on something, and not know on what."""
    rows, loss = torch.randn(4, 3), EnergyLoss()
    broken = rows.clone()
    broken[2, 1] = float("inf")
    for call, said in (
        (lambda: loss([[1.0, 2.0]]), "embeddings must be .*; got list"),
        (lambda: loss(rows[0]), r"embeddings must be .* \(n, d\).*; got torch.float32 of shape \(3,\)"),
        (lambda: loss(rows.long()), "got torch.int64"),
        (lambda: loss(rows[:, :0]), r"of shape \(4, 0\)"),
        (lambda: loss(broken), r"embeddings must be finite; row 2 has inf \(1 of 4 rows do\)"),
        (lambda: loss(broken, mask=torch.arange(4) > 0), "row 2 has inf .1 of 3 rows do"),
        (lambda: loss(broken, torch.arange(4)), "row 2 has inf"),
        (lambda: loss(rows, torch.arange(3)), r"labels must be a tensor of shape \(4,\), .*; got shape \(3,\)"),
        (lambda: loss(rows, [0, 1, 2, 3]), "labels must be a tensor .*; got list"),
        (lambda: loss(rows, torch.rand(4)), "labels must be integers, .*; got torch.float32"),
        (lambda: loss(rows, mask=torch.ones(4, 1)), r"mask must be a tensor .*; got shape \(4, 1\)"),
        (lambda: loss(rows, mask=torch.ones(4)), "mask must be bool, or integers .*; got torch.float32"),
        (lambda: loss(rows, torch.arange(4, device="meta")), "labels must be on the device .*, cpu; got meta"),
        (lambda: EnergyLoss(-1), "s must be"),
        (lambda: EnergyLoss(softening="none"), "softening must be 'auto' or a finite number >= 0; got 'none'"),
        (lambda: EnergyLoss(softening=-1), "softening must be"),
        (lambda: EnergyLoss(distance="cosine"), "distance must be one of"),  # type: ignore[arg-type]
        (lambda: EnergyLoss(gather="yes"), "gather must be True, False or a process group; got 'yes'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(MHEError, match=said):
            call()


def test_it_is_a_module_like_others() -> None:
    """A training could not be copied, saved or printed with the loss in it."""
    loss = EnergyLoss(1, distance="angular", space="half", softening=0.1)
    rows = random_rows(10, 4)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(rows).item() == loss(rows).item()
    assert not loss.state_dict()
    assert "s=1, angular, half space" in repr(loss)
