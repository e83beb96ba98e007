"""What is done to the weights of a trained model: pruning, few bits, noise. The model is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Damage = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def damaged(model: PreTrainedModel, damage: Damage) -> Iterator[None]:
    """Within the block, every weight of a linear or convolutional layer is what `damage` makes of its rows (n, d)."""
    kinds = (nn.Linear, nn.Conv2d)
    weights = [module.weight for module in model.modules() if isinstance(module, kinds)]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(damage(weight.flatten(1)).view_as(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)


def pruned(share: float) -> Damage:
    """The smallest `share` of a layer's weights, by magnitude, become 0."""

    def damage(rows: Tensor) -> Tensor:
        count = round(share * rows.numel())
        if not count:
            return rows
        smallest = rows.flatten().abs().topk(count, largest=False).indices
        return rows.flatten().index_fill(0, smallest, 0.0).view_as(rows)

    return damage


def quantized(bits: int) -> Damage:
    """Round to nearest, each row on a symmetric grid of its own with `2^(bits - 1) - 1` steps on each side of 0."""
    steps = 2 ** (bits - 1) - 1

    def damage(rows: Tensor) -> Tensor:
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) / steps
        return (rows / scale).round() * scale

    return damage


def noisy(size: float, generator: torch.Generator) -> Damage:
    """Normal noise, whose deviation is `size` times the root mean square of the row."""

    def damage(rows: Tensor) -> Tensor:
        noise = torch.randn(rows.shape, generator=generator)
        return rows + size * rows.square().mean(dim=1, keepdim=True).sqrt() * noise

    return damage
