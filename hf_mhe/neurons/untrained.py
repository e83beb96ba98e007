"""What is said of quantized weights where weights are to be trained."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mhe.errors import MHEError
from hf_mhe.neurons.group import NeuronGroup
from hf_mhe.neurons.patterns import Patterns, as_patterns, matched

_REMEDY = (
    "put an adapter on it (peft.get_peft_model), whose effective weight is trained, or load the model without "
    "quantization"
)


def why_untrained(group: NeuronGroup) -> str:
    """Why no gradient reaches a group that is not trained."""
    if group.quantized is not None:
        return f"quantized by {group.quantized}: not trained"
    return "frozen: requires_grad is False"


def nothing_but_quantized(groups: Sequence[NeuronGroup]) -> str | None:
    """What to say where none of some groups trains and some are quantized, with the remedy; None where none is."""
    quantized = [group for group in groups if never_trains(group)]
    if not quantized:
        return None
    first = quantized[0]
    others = "" if len(groups) == 1 else f", and none of the {len(groups) - 1} other groups trains either"
    return (
        f"neuron group {first.name!r} is quantized by {first.quantized}, and quantized weights are not trained"
        f"{others}: {_REMEDY}"
    )


def never_trains(group: NeuronGroup) -> bool:
    """Whether a group's whole weight is quantized, with no adapter on it that may train, now or later."""
    source = group.source
    return group.quantized is not None and source is not None and set(source.tensor_names) <= set(source.fixed)


def check_asked(groups: Sequence[NeuronGroup], include: Patterns) -> None:
    """Refuse patterns that ask to train quantized layers, and none but these; `groups` are those selected.

    Raises:
        MHEError: names the pattern, a layer and its format.
    """
    for pattern in as_patterns(include, "include"):
        asked = [groups[index] for index in sorted(matched(groups, pattern, "include"))]
        if asked and all(never_trains(group) for group in asked):
            raise MHEError(
                f"include pattern {pattern!r} asks to train {asked[0].name!r}, which is quantized by "
                f"{asked[0].quantized}, and quantized weights are not trained: {_REMEDY}"
            )
