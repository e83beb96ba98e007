"""What the regularizer says when it cannot go on, with the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from torch import Tensor, nn

from hf_mhe.checks import check_integer
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, coverage, neuron_groups
from hf_mhe.neurons.untrained import nothing_but_quantized
from hf_mhe.training.config import ROLES, MHEConfig

CLEARED = (
    "the penalty would not reach this optimizer step: the gradients with it were cleared (zero_grad), and a "
    "backward pass of a loss without it followed. Call the regularizer for the loss of the last pass too; in a "
    "Trainer, call self.accelerator.backward in training_step for each of the losses"
)
IN_PART = (
    "the gradients hold the penalty of this optimizer step in part: of {all} parameters that it reaches, those of "
    "{cleared} were cleared since (zero_grad of one of several optimizers?). Clear all of them or none between the "
    "backward passes of a step, or make one regularizer for each optimizer's layers (include=...)"
)
PUT_TOGETHER = (
    "the gradients of this optimizer step were put together from {passes} backward passes, each of which had the "
    "penalty, so how often it counts is unknown: call the regularizer for the loss of one of them"
)
TAKEN_OUT = (
    "torch.autograd.grad took the gradient of the penalty more than once within one optimizer step: where those are "
    "added up, lambda is multiplied by their number. Call the regularizer for one of the losses"
)
TWICE_IN_DEEPSPEED = (
    "a second backward pass with the penalty came before one step of DeepSpeed's engine, and whether its gradients "
    "still hold the first is unknown: call engine.step() after each, or the regularizer for one of the losses"
)
UNUSED = (
    "an optimizer steps, and the loss that regularizer(loss) returned had no backward pass before it: the penalty is "
    "not in this step. Call backward on what the regularizer returns"
)


def nothing_left(
    model: nn.Module,
    found: Sequence[NeuronGroup],
    weighted: Sequence[NeuronGroup],
    config: MHEConfig,
    apart: Sequence[NeuronGroup] = (),
) -> str:
    """Why nothing in the model is regularized: of the groups found, those weighted have a weight above 0.

    Those apart are among them, and left out because their neurons do not compete.
    """
    name = type(model).__name__
    left_out = [group for group in apart if config.weight(group.role) > 0]
    if not weighted and left_out:
        return f"nothing to regularize in {name}: {not_competing(model, left_out)}"
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


_WHY_APART = {
    "different inputs": "each reads an input of its own, as depthwise kernels do",
    "positions": "they are positions",
    "types": "they are types of input",
}


def not_competing(model: nn.Module, groups: Sequence[NeuronGroup]) -> str:
    """Which groups are left out because their neurons do not compete, and the word that takes them in."""
    reasons = [
        f"{_some([group.name for group in groups if group.apart == reason])}: {why}"
        for reason, why in _WHY_APART.items()
        if any(group.apart == reason for group in groups)
    ]
    count = f"{len(groups)} neuron group{'s' if len(groups) > 1 else ''}"
    return (
        f"the penalty leaves out {count} of {type(model).__name__} whose neurons do not compete "
        f"({'; '.join(reasons)}); MHEConfig(only_competing=False) takes them in"
    )


# Note [A head that nobody names]
# `neurons/roles.py` does not guess which layer of a plain module is its head, and MHE then spreads it in half space as
# a hidden layer, by `hidden_weight`. A warning says so where something else was clearly meant: where a weight
# was set that no group has a use for; and, with whatever weights, where a hidden group is called as heads are, outside
# of transformers' models, which say what their head is. An encoder without a head is as silent as before. Rejected: to
# take the name for the role, which would be right most of the time.
_HEADS = {"classifier", "classifiers", "head", "heads", "lm_head", "fc", "score", "logits"}


def roles_without_groups(model: nn.Module, found: Sequence[NeuronGroup], config: MHEConfig) -> Iterator[str]:
    """What the config weights, of groups found in the model, and no group is: one sentence for each such role."""
    defaults = {item.name: item.default for item in fields(config)}
    present = {group.role for group in found}
    for role in ROLES:
        name, weight = f"{role}_weight", config.weight(role)
        is_set = weight not in (0.0, defaults[name])
        heads = _heads(model, found) if role == "output" and role not in present else []
        if role in present or not (is_set or heads):
            continue
        lacking = (
            f"MHEConfig: {name}={weight:g} has no effect on {type(model).__name__}: no group has the role {role!r}"
        )
        left_out = _left_out(model, role, config)
        if left_out:
            if is_set:
                yield f"{lacking}, because include and exclude leave out {_some(left_out)}"
            continue
        groups = "; ".join(f"{each}: {_some(names)}" for each in ROLES if (names := _named(found, each)))
        remedy = ""
        if role == "output":
            which = f"output={heads[-1]!r}" if heads else "output=<its name>"
            remedy = f". A head among them is spread as a hidden layer: name it, MHEConfig({which})"
        yield f"{lacking} ({groups}){remedy}"


def _heads(model: nn.Module, found: Sequence[NeuronGroup]) -> list[str]:
    """The names of hidden groups that are called as heads are, where transformers did not say what they are."""
    namers = [
        name + "."
        for name, module in model.named_modules()
        if any(cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__)
    ]
    if "." in namers:
        return []
    hidden = [name for name in _named(found, "hidden") if not name.startswith(tuple(namers))]
    return [name for name in hidden if not _HEADS.isdisjoint(name.split("."))]


def _left_out(model: nn.Module, role: str, config: MHEConfig) -> list[str]:
    if config.include is None and config.exclude is None:
        return []
    return _named(neuron_groups(model, output=config.output, adapters=config.adapters), role)


def _named(groups: Sequence[NeuronGroup], role: str) -> list[str]:
    return [group.name for group in groups if group.role == role]


def _some(names: Sequence[str]) -> str:
    shown = [names[0], "...", names[-1]] if len(names) > 3 else names
    return ", ".join(name if name == "..." else repr(name) for name in shown)


def in_eval_mode(model: nn.Module) -> str:
    """Why a loss gets no penalty, though its gradient can be taken."""
    return (
        f"{type(model).__name__} is in eval mode, which is taken for an evaluation: the loss gets no penalty. To "
        "train, call model.train(), and then eval() of those layers that should stay in it; to evaluate, use "
        "torch.no_grad()"
    )


def not_finite(groups: Sequence[str], energies: Sequence[float], noun: str, cure: str) -> str:
    """Of which group, of those named, the energy or what is called so is not finite, and what can be done."""
    name, energy = next(
        (name, value) for name, value in zip(groups, energies, strict=True) if not math.isfinite(value)
    )
    return f"the {noun} of neuron group {name!r} is {energy}: {cure}, or leave the group out (exclude={name!r})"


def no_end(decay: str) -> str:
    """Why a decay needs to know how long the training is."""
    return (
        f"schedule={decay!r} decays to 0 at the end of the training, which MHERegularizer does not know: give it the "
        "number of optimizer steps, MHERegularizer(model, config, total_steps=...)"
    )


def check_loss(loss: object, scale: float | None) -> None:
    """Refuse what is not a 0-dim floating tensor, and a scale that is not finite and positive."""
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
        got = (
            f"a {loss.dtype} tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        )
        raise MHEError(f"loss must be a 0-dim floating tensor (loss.mean() makes one); got {got}")
    if scale is not None and not 0 < scale < math.inf:
        raise MHEError(f"scale must be a finite number > 0; got {scale!r}")


def check_state(state: object) -> None:
    """Refuse what is not the state of a regularizer."""
    if not isinstance(state, Mapping) or set(state) - {"step_operations"} != {"step"}:
        raise MHEError(
            "a regularizer's state is {'step': number of optimizer steps} and, with a budget, 'step_operations'; "
            f"got {state!r}"
        )
    check_integer("step", state["step"], at_least=0)
