"""Arms that are a term of the loss: MHE through `MHETrainer`, its rivals through a Trainer of the harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from hf_mhe import MHEConfig, MHETrainer, hyperspherical_energy, neuron_groups
from hf_mhe.energy import family


def lengths_held(weight: Tensor, *, lengths: float, energy: float = 0.0, **options: Any) -> Tensor:
    """`lengths` times the sum of the neurons' squared distances from length 1, plus `energy` times their energy."""
    held = lengths * (weight.norm(dim=1) - 1).square().sum()
    return held + energy * hyperspherical_energy(weight, **options) if energy else held


# A rival acts on the hidden groups, as MHE does here with `output_weight=0`, or with `role="output"` on the class
# vectors, as MHE does with `hidden_weight=0`; it adds `weight * sum over groups` to the loss.
RIVALS: dict[str, Callable[..., Tensor]] = {
    "soft_orthogonality": family.soft_orthogonality_penalty,
    "srip": family.srip_penalty,
    "minimal_angle": family.minimal_angle_penalty,
    "comhe_random": family.random_projection_energy,
    "lengths_held": lengths_held,
}


class RivalTrainer(Trainer):
    """`Trainer` with a member of `hf_mhe.energy.family` on the layers of a role, in one process, not accumulating."""

    def __init__(self, *args: Any, penalty: str, weight: float, options: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.function, self.weight, self.options = RIVALS[penalty], weight, dict(options)
        include, role = self.options.pop("include", None), self.options.pop("role", "hidden")
        self.groups = [group for group in neuron_groups(self.model, include=include) if group.role == role]
        if not self.groups:
            raise ValueError(f"the model has no group of role {role!r} for {penalty}")

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            loss = loss + self.weight * sum(self.of(group.matrix()) for group in self.groups)
        return (loss, outputs) if return_outputs else loss

    def of(self, matrix: Tensor) -> Tensor:
        """The penalty of one layer's neurons."""
        options = dict(self.options)
        if "dim" in options:  # of a projection: a layer may have fewer dimensions
            options["dim"] = min(options["dim"], matrix.shape[1])
        return self.function(matrix, **options)


class EarlyMHETrainer(MHETrainer):
    """`MHETrainer` whose penalty ends after `until` optimizer steps: from there on it is the plain Trainer's step."""

    def __init__(self, *args: Any, until: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.until = until

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step >= self.until:
            return Trainer.training_step(self, model, inputs, *args, **kwargs)
        return super().training_step(model, inputs, *args, **kwargs)


def trainer_class(penalty: Mapping[str, Any] | None) -> tuple[type[Trainer], dict[str, Any]]:
    """The Trainer class of an arm and the keywords that it takes beyond Trainer's own.

    Args:
        penalty: None; `{"name": "mhe", ...fields of MHEConfig}`, with `until` for a penalty in the first steps only;
            or `{"name": one of RIVALS, "weight": ..., ...}`.

    Raises:
        ValueError: there is no penalty of that name.
    """
    if penalty is None:
        return Trainer, {}
    options = dict(penalty)
    name, until = options.pop("name"), options.pop("until", None)
    if name == "mhe" and until == 0:
        return Trainer, {}
    if name == "mhe":
        config = MHEConfig.of(options)
        if until is None:
            return MHETrainer, {"mhe_config": config}
        return EarlyMHETrainer, {"mhe_config": config, "until": until}
    if until is not None:
        raise ValueError(f"only mhe can end early; got until={until} with {name!r}")
    if name not in RIVALS:
        raise ValueError(f"penalty must be one of mhe, {', '.join(RIVALS)}; got {name!r}")
    return RivalTrainer, {"penalty": name, "weight": options.pop("weight"), "options": options}


@torch.no_grad()
def orthogonal_hidden(model: PreTrainedModel) -> None:
    """Give each hidden layer the directions of a random orthogonal matrix; its neurons keep their lengths."""
    for group, weight in _own_weights(model):
        rows = torch.empty_like(weight)
        torch.nn.init.orthogonal_(rows)
        _turn(weight, rows, group.n)


@torch.no_grad()
def minimal_energy_hidden(model: PreTrainedModel, *, seed: int) -> None:
    """Give each hidden layer the directions that `hf_mhe.minimize_energy` finds; its neurons keep their lengths."""
    from hf_mhe import minimize_energy

    for index, (group, weight) in enumerate(_own_weights(model)):
        rows = minimize_energy(group.n, group.d, s=1.0, space="half", seed=seed + index)
        _turn(weight, rows.to(weight.dtype), group.n)


def _own_weights(model: PreTrainedModel) -> list[tuple[Any, Tensor]]:
    """Hidden groups whose neurons are the rows of one parameter."""
    hidden = [group for group in neuron_groups(model) if group.role == "hidden"]
    return [(group, model.get_parameter(f"{group.name}.weight")) for group in hidden]


def _turn(weight: Tensor, rows: Tensor, n: int) -> None:
    flat, target = weight.view(n, -1), rows.reshape(n, -1)
    flat.copy_(target / target.norm(dim=1, keepdim=True) * flat.norm(dim=1, keepdim=True))
