"""Losses made for classes of which some are rare."""

from __future__ import annotations

from torch import Tensor, nn

LOSSES = ("cross_entropy", "logit_adjustment", "class_balanced")


def tail_loss(
    logits: Tensor, labels: Tensor, counts: Tensor, kind: str, *, tau: float = 1.0, beta: float = 1.0
) -> Tensor:
    """The mean loss of a batch, where `counts` has how many training rows each class has.

    Args:
        kind: `"cross_entropy"`; `"logit_adjustment"`, by `tau` (Menon et al., ICLR 2021, arXiv:2007.07314, equation
            10); or `"class_balanced"`, by the inverse of `effective_number` (Cui et al., CVPR 2019, arXiv:1901.05555).

    Raises:
        ValueError: there is no such loss.
    """
    if kind == "cross_entropy":
        return nn.functional.cross_entropy(logits, labels)
    if kind == "logit_adjustment":
        prior = counts / counts.sum()
        return nn.functional.cross_entropy(logits + tau * prior.log(), labels)
    if kind == "class_balanced":
        return nn.functional.cross_entropy(logits, labels, weight=1 / effective_number(counts, beta))
    raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {kind!r}")


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """`(1 - beta^n) / (1 - beta)` of each count n, and n itself where beta is 1."""
    return counts if beta == 1.0 else (1 - beta**counts) / (1 - beta)
