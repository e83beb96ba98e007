"""A small mixture of experts over the patches of an image, and its growing from a dense model by copied experts.

Source: Komatsuzaki et al., "Sparse Upcycling", ICLR 2023 (arXiv:2212.05055), where every expert begins as the dense
model's MLP; Nakamura et al., "Drop-Upcycling", ICLR 2025 (arXiv:2502.19261), where a share of its units is drawn anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralModel, MixtralPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

_NO_WORDS = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
_MATRICES = ("gate_up_proj", "down_proj")  # (experts, 2 units, hidden) with the gates first, (experts, hidden, units)


class MixtureConfig(MixtralConfig):
    """A token goes to `num_experts_per_tok` experts, or to the only one that there is: a dense model."""

    model_type = "experiment_mixture"

    def __init__(self, side: int = 28, patch_size: int = 7, **kwargs: Any) -> None:
        self.side, self.patch_size = side, patch_size
        super().__init__(**{**_NO_WORDS, "router_aux_loss_coef": 0.01, **kwargs})
        self.num_experts_per_tok = min(self.num_experts_per_tok, self.num_local_experts)


class MixtureForImageClassification(MixtralPreTrainedModel):
    """transformers' Mixtral as it is, on patches in place of words, with its loss that balances the experts."""

    config_class = MixtureConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__(config)
        self.patches = nn.Linear(config.patch_size**2, config.hidden_size)
        self.model = MixtralModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        config = self.config
        patches = nn.functional.unfold(pixel_values, config.patch_size, stride=config.patch_size).transpose(1, 2)
        body = self.model(inputs_embeds=self.patches(patches), use_cache=False, output_router_logits=True)
        logits, loss = self.classifier(body.last_hidden_state.mean(1)), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
            if config.num_local_experts > 1:
                balance = load_balancing_loss_func(
                    body.router_logits, config.num_local_experts, config.num_experts_per_tok
                )
                loss = loss + config.router_aux_loss_coef * balance
        return SequenceClassifierOutput(loss=loss, logits=logits)


@torch.no_grad()
def widen(small: MixtureForImageClassification, wide: MixtureForImageClassification, factor: int) -> None:
    """Write `small` into `wide`, which has `factor` times as many experts, each a copy, so that both compute the same.

    The routers of the wide model stay as they are: whichever expert a token goes to, it meets the same one.

    Raises:
        ValueError: the wide model has another number of experts than this gives.
    """
    tensors, own = small.state_dict(), wide.state_dict()
    for name in tensors:
        if name.endswith(_MATRICES):
            tensors[name] = tensors[name].repeat_interleave(factor, 0)
        elif name.endswith("gate.weight") and factor > 1:
            tensors[name] = own[name]
    wrong = [name for name, tensor in own.items() if tensor.shape != tensors[name].shape]
    if wrong:
        raise ValueError(f"the wide model has not {factor} times as many experts in: {', '.join(wrong)}")
    wide.load_state_dict(tensors)


@torch.no_grad()
def add_noise(wide: MixtureForImageClassification, size: float, generator: torch.Generator) -> None:
    """Add to each row of each expert's matrices a normal direction of `size` times its length."""
    for matrix in _matrices(wide):
        noise = torch.randn(matrix.shape, generator=generator)
        matrix += noise * (size * matrix.norm(dim=2) / noise.norm(dim=2)).unsqueeze(2)


@torch.no_grad()
def renew(wide: MixtureForImageClassification, factor: int, generator: torch.Generator, *, share: float) -> None:
    """Draw a share of the units of each expert anew, others in each, normal with the matrix's mean and deviation.

    Args:
        factor: not needed, every expert loses the same share.
        share: of an expert's units, 0 to 1. At 1 the function is lost.
    """
    for layer in wide.model.layers:
        experts = layer.mlp.experts
        gates, up = experts.gate_up_proj.chunk(2, dim=1)
        for index in range(experts.num_experts):
            units = experts.down_proj.shape[2]
            drawn = torch.randperm(units, generator=generator)[: round(share * units)]
            for rows in (gates[index], up[index], experts.down_proj[index].t()):
                fresh = torch.randn(len(drawn), rows.shape[1], generator=generator)
                rows[drawn] = rows.mean() + rows.std() * fresh


@torch.no_grad()
def cosine(model: MixtureForImageClassification) -> float | None:
    """Mean cosine of two experts of a layer, each matrix of which is flattened; None of a model that is dense."""
    count = model.config.num_local_experts
    if count == 1:
        return None
    unit = [nn.functional.normalize(matrix.flatten(1), dim=1) for matrix in _matrices(model)]
    each = [((rows @ rows.t()).sum() - count) / (count * (count - 1)) for rows in unit]
    return float(torch.stack(each).mean())


def _matrices(model: MixtureForImageClassification) -> list[Tensor]:
    return [getattr(layer.mlp.experts, name) for layer in model.model.layers for name in _MATRICES]
