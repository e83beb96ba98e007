"""Growing a trained model by copies of its hidden units, and what can be done to the copies at the start.

Source: Chen, Goodfellow, Shlens, "Net2Net", ICLR 2016 (arXiv:1511.05641), Net2WiderNet; here every unit is copied
equally often, and the layer that takes the copies divides by their number, so that the function stays the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@torch.no_grad()
def widen(small: PreTrainedModel, wide: PreTrainedModel, factor: int) -> None:
    """Write `small` into `wide`, whose hidden units are `factor` times as many, so that both compute the same.

    Unit i of the small model becomes units `i * factor` to `(i + 1) * factor - 1` of the wide one.

    Raises:
        ValueError: a layer of the wide model has not the shape that this gives.
    """
    tensors = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    for units in small.widened_layers():
        made = [units.makes] if units.norm is None else [units.makes, units.norm]
        for name in (f"{module}.{part}" for module in made for part in _PER_UNIT):
            if name in tensors:
                tensors[name] = tensors[name].repeat_interleave(factor, 0)
        taken = f"{units.takes}.weight"
        tensors[taken] = _copied_inputs(tensors[taken], factor, units.spread) / factor
    wrong = [n for n, tensor in wide.state_dict().items() if tensor.shape != tensors[n].shape]
    if wrong:
        raise ValueError(f"the wide model is not {factor} times as wide in: {', '.join(wrong)}")
    wide.load_state_dict(tensors)


_PER_UNIT = ("weight", "bias", "running_mean", "running_var")


@torch.no_grad()
def add_noise(wide: PreTrainedModel, size: float, generator: torch.Generator) -> None:
    """Add to each copied unit's weights a normal direction of `size` times the length of its own weights."""
    for units in wide.widened_layers():
        weight = wide.get_parameter(f"{units.makes}.weight")
        rows = weight.flatten(1)
        noise = torch.randn(rows.shape, generator=generator)
        rows += noise * (size * rows.norm(dim=1) / noise.norm(dim=1)).unsqueeze(1)


@torch.no_grad()
def renew(wide: PreTrainedModel, factor: int, generator: torch.Generator, *, rows: str, outgoing: float) -> None:
    """Keep one of each `factor` copies, with the whole of its outgoing weights, and initialise the others anew.

    Args:
        rows: `"normal"`, rows as Kaiming draws them, or `"orthogonal"`, rows of random orthogonal matrices of the same
            size, layer by layer.
        outgoing: what a new unit's outgoing weights are, as a share of a Kaiming draw: 0 keeps the function.

    Raises:
        ValueError: `rows` is neither.
    """
    if rows not in ("normal", "orthogonal"):
        raise ValueError(f"rows must be normal or orthogonal; got {rows!r}")
    modules = dict(wide.named_modules())
    for units in wide.widened_layers():
        made, taken = modules[units.makes], modules[units.takes]
        fresh = torch.arange(made.weight.shape[0]) % factor != 0
        made.weight[fresh] = _draw(made.weight, rows, generator)[fresh]
        if made.bias is not None:
            made.bias[fresh] = 0
        if units.norm is not None:
            _as_new(modules[units.norm], fresh)
        inputs = fresh.repeat_interleave(units.spread)
        weight = taken.weight
        weight[:, ~inputs] *= factor
        weight[:, inputs] = outgoing * _draw(weight, "normal", generator)[:, inputs]


def _as_new(norm: nn.Module, fresh: Tensor) -> None:
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        getattr(norm, name)[fresh] = value


def _draw(weight: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """A weight as Kaiming draws it (variance 2 / fan-in), or with orthogonal rows of the same lengths on average."""
    shape = weight.shape
    rows = torch.randn(shape[0], weight[0].numel(), generator=generator)
    if how == "orthogonal":
        n, d = rows.shape
        q = torch.linalg.qr(rows.t() if n <= d else rows).Q  # orthonormal rows, or columns where they are fewer
        rows = (q.t() if n <= d else q) * max(n, d) ** 0.5  # of length sqrt(d) on average, as the normal draw
    return (rows * (2 / rows.shape[1]) ** 0.5).view(shape)


def _copied_inputs(weight: Tensor, factor: int, spread: int) -> Tensor:
    """Repeat the inputs of each unit, a block of `spread` of them, `factor` times."""
    blocks = weight.unflatten(1, (-1, spread))
    return blocks.repeat_interleave(factor, 1).flatten(1, 2)
