"""A network whose class vectors are normalised, trained with the angular margin of SphereFace.

Source: Liu et al., "SphereFace", CVPR 2017 (arXiv:1704.08063), equation 7, and for its training wy1iu/sphereface-plus.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from harness.models.images import ConvConfig, ConvForImageClassification

# Note [Annealing]. The margin comes in as in the authors' code: the target's logit is (a cos + psi) / (1 + a), with
# a = max(5, 1000 / (1 + 0.11 t)). There it reaches 5 in step 1,809 of 12,000; here after the same share of the steps,
# since a training is shorter. So at the end a sixth of the logit has the margin, there as here.
_FIRST, _LAST, _SHARE = 1000.0, 5.0, 0.15


class AngularConfig(ConvConfig):
    """`margin`: the m of SphereFace, 1 to 4; 1 is none. `steps`: of the whole training, for the annealing."""

    model_type = "experiment_angular"

    def __init__(self, margin: int = 1, steps: int = 1, **kwargs: Any) -> None:
        if margin not in _COSINES:
            raise ValueError(f"margin must be one of {', '.join(map(str, _COSINES))}; got {margin!r}")
        self.margin, self.steps = margin, steps
        super().__init__(**kwargs)


class AngularForVerification(ConvForImageClassification):
    """Logits are the length of an embedding times its cosine with a class vector, as in the authors' code."""

    config_class = AngularConfig

    def __init__(self, config: AngularConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.features, config.num_labels, bias=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long), persistent=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        x = self.embed(pixel_values)
        length = x.norm(dim=1, keepdim=True)
        cosines = nn.functional.normalize(x, dim=1) @ nn.functional.normalize(self.classifier.weight, dim=1).t()
        cosines = cosines.clamp(-1, 1)
        logits = length * cosines
        if labels is None or self.config.margin == 1:
            return self._output(logits, labels)
        own = cosines.gather(1, labels.unsqueeze(1))
        with_margin = length * (own + (psi(own, self.config.margin) - own) / (1 + self._annealed()))
        return SequenceClassifierOutput(
            loss=nn.functional.cross_entropy(logits.scatter(1, labels.unsqueeze(1), with_margin), labels),
            logits=logits,
        )

    def _annealed(self) -> float:
        """The weight of the plain cosine, at the training steps seen so far."""
        done = int(self.seen) / self.config.steps
        if self.training:
            self.seen += 1
        return annealed(done)


def annealed(done: float) -> float:
    """The weight of the plain cosine beside that with the margin, when a share `done` of the steps is done."""
    return max(_LAST, _FIRST / (1 + (_FIRST / _LAST - 1) * done / _SHARE))


def psi(cosine: Tensor, margin: int) -> Tensor:
    """`(-1)^k cos(m θ) - 2 k` for θ in `[k π / m, (k + 1) π / m]`: cos(m θ) that goes on falling up to π."""
    k = (margin * cosine.detach().acos() / torch.pi).floor().clamp(max=margin - 1)
    return (1 - 2 * (k % 2)) * _COSINES[margin](cosine) - 2 * k


# cos(m θ) as a polynomial in cos θ: acos has no finite gradient at 1.
_COSINES = {
    1: lambda c: c,
    2: lambda c: 2 * c**2 - 1,
    3: lambda c: 4 * c**3 - 3 * c,
    4: lambda c: 8 * c**4 - 8 * c**2 + 1,
}
