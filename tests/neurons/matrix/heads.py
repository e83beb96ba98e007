"""Which parameters are a class's output layers, found by experiment: those that change with the number of labels."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig

from hf_mhe.neurons import coverage
from tests.neurons.matrix.build import NotBuiltError, build

# Numbers that no layer of a default config has.
_LABELS, _MORE_LABELS = 37, 41
_TASKS = ("CLASSIFICATION", "CTC", "DETECTION", "QUESTION_ANSWERING", "SEGMENTATION", "XVECTOR")


def has_labels(task: str) -> bool:
    """Whether a task of transformers is to choose among labels."""
    return any(word in task for word in _TASKS) and "ZERO_SHOT" not in task


def head_faults(cls: type[nn.Module], config_class: type[PreTrainedConfig]) -> Iterator[str]:
    """What is wrong with the roles of a class with labels, a sentence for each."""
    try:
        model, other = (build(cls, config_class, num_labels=count) for count in (_LABELS, _MORE_LABELS))
    except NotBuiltError:  # it wants other labels to be told apart, too
        return
    shapes = {name: p.shape for name, p in other.named_parameters()}
    changed = {name for name, p in model.named_parameters() if p.shape != shapes.get(name)}
    for group in coverage(model).groups:
        by_labels = not changed.isdisjoint(group.parameters) and group.n in (_LABELS, _LABELS + 1)
        if by_labels and group.kind != "embedding" and group.role != "output":
            yield f"{group.name} has a neuron for each label and the role {group.role}"
        if group.role == "output" and not by_labels and group.n in (_LABELS, _LABELS + 1):
            yield f"{group.name} has the role output, and does not change with the number of labels"
