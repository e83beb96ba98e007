"""Whether a classifier's confidence, the largest value of its softmax, says how often it is right."""

from __future__ import annotations

from torch import Tensor

BINS = 15


def confidence(logits: Tensor) -> Tensor:
    """The largest value of the softmax of each row (n,)."""
    return logits.softmax(-1).amax(-1)


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in percent: mean gap of confidence and accuracy in 15 bins of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599), equation 5.
    """
    sure, right = confidence(logits).double(), (logits.argmax(-1) == labels).double()
    place = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = sure.new_zeros(BINS).index_add_(0, place, sure - right)
    return 100 * float(gaps.abs().sum()) / len(labels)
