"""What the regularizer says when it cannot go on, with the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, coverage
from hf_mhe.neurons.untrained import nothing_but_quantized
from hf_mhe.training.config import ROLES, MHEConfig


def nothing_left(
    model: nn.Module, found: Sequence[NeuronGroup], weighted: Sequence[NeuronGroup], config: MHEConfig
) -> str:
    """Why nothing in the model is regularized: of the groups found, those weighted have a weight above 0."""
    name = type(model).__name__
    if not found and (config.include is not None or config.exclude is not None):
        return (
            f"nothing to regularize in {name}: include={config.include!r} and exclude={config.exclude!r} leave no "
            "neuron group: every group that is included is excluded too"
        )
    if not found:
        skipped = [f"{parameter}: {reason}" for parameter, reason in coverage(model).skipped.items()]
        reasons = f" (skipped: {'; '.join(skipped[:3])}{'; ...' if len(skipped) > 3 else ''})" if skipped else ""
        return f"{name} has no neuron groups to regularize{reasons}: it needs a linear or convolution layer"
    counts = ", ".join(f"{role} {sum(group.role == role for group in found)}" for role in ROLES)
    weights = ", ".join(f"{role}_weight={config.weight(role):g}" for role in ROLES)
    if weighted and (why := nothing_but_quantized(weighted)) is not None:
        return f"nothing to regularize in {name}: {why}"
    if weighted:
        return (
            f"nothing to regularize in {name}: all {len(weighted)} groups with a weight above 0 are frozen "
            f"(groups by role: {counts}; {weights}): unfreeze one (requires_grad_(True)) or weight another role"
        )
    return (
        f"nothing to regularize in {name}: no group has a weight above 0 (groups by role: {counts}; {weights}): "
        "set the weight of a role that the model has"
    )


def in_eval_mode(model: nn.Module) -> str:
    """Why a loss gets no penalty, though its gradient can be taken."""
    return (
        f"{type(model).__name__} is in eval mode, which is taken for an evaluation: the loss gets no penalty. To "
        "train, call model.train(), and then eval() of those layers that should stay in it; to evaluate, use "
        "torch.no_grad()"
    )


def not_finite(groups: Sequence[str], energies: Sequence[float], softening: float) -> str:
    """Which group's energy is not finite, of groups by name, and what can be done."""
    name, energy = next(
        (name, value) for name, value in zip(groups, energies, strict=True) if not math.isfinite(value)
    )
    return (
        f"the energy of neuron group {name!r} is {energy}: two of its neurons coincide; set softening "
        f"(MHEConfig(softening=1e-3); it is {softening:g}) or leave the group out (exclude={name!r})"
    )


def check_loss(loss: object) -> None:
    """Refuse what is not a 0-dim floating tensor."""
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
        got = (
            f"a {loss.dtype} tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        )
        raise MHEError(f"loss must be a 0-dim floating tensor (loss.mean() makes one); got {got}")
