"""What is said of quantized weights where weights are to be trained."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mhe.neurons.group import NeuronGroup


def why_untrained(group: NeuronGroup) -> str:
    """Why no gradient reaches a group that is not trained."""
    if group.quantized is not None:
        return f"quantized by {group.quantized}: not trained"
    return "frozen: requires_grad is False"


def nothing_but_quantized(groups: Sequence[NeuronGroup]) -> str | None:
    """What to say where none of some groups trains and some are quantized, with the remedy; None where none is."""
    quantized = [group for group in groups if group.quantized is not None]
    if not quantized:
        return None
    first = quantized[0]
    others = "" if len(groups) == 1 else f", and none of the {len(groups) - 1} other groups trains either"
    return (
        f"neuron group {first.name!r} is quantized by {first.quantized}, and quantized weights are not trained"
        f"{others}: put an adapter on it (peft.get_peft_model), whose effective weight is trained, or load the model "
        "without quantization"
    )
