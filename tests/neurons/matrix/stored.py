"""The checkpoint that a model would save, in names and shapes alone, and the groups made from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_mhe.neurons import Coverage, NeuronGroup, checkpoint_groups


def is_published(cls: Any, config_class: type) -> bool:
    """Whether transformers finds a class by its name, as a checkpoint's config tells it, and its config is its own.

    What a class saves with the config of another (Gemma3ForConditionalGeneration with ShieldGemma2Config) transformers
    itself does not load.
    """
    return getattr(transformers, cls.__name__, None) is cls and cls.config_class is config_class


def checkpoint_faults(model: Any, found: Coverage) -> Iterator[str]:
    """Wherever the groups of the checkpoint of a model are not those of the model, a sentence for each."""
    shapes = saved_shapes(model)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    stored = checkpoint_groups(shapes, config)
    if stored.note is not None:
        yield f"from the checkpoint: {stored.note}"
    by_name, expected = ({group.name: _described(group) for group in each.groups} for each in (stored, found))
    for group in found.groups:
        if all(name in (model._keys_to_ignore_on_save or ()) for name in group.parameters):
            del expected[group.name]  # sinusoids, say, which loading computes anew
    for name in expected.keys() - by_name.keys():
        yield f"group {name} is not made from the checkpoint"
    for name in by_name.keys() - expected.keys():
        yield f"group {name} is made from the checkpoint alone"
    for name in expected.keys() & by_name.keys():
        if expected[name] != by_name[name]:
            yield f"group {name} is {expected[name]}, from the checkpoint {by_name[name]}"
    if [*expected] != [*by_name] and expected == by_name:
        yield "the groups from the checkpoint are in another order"
    named = {name for group in stored.groups for name in group.parameters} | stored.skipped.keys()
    for name in {name for name, shape in shapes.items() if len(shape) >= 2} - named:
        yield f"tensor {name} {shapes[name]} of the checkpoint is neither in a group nor skipped"


def saved_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """What `save_pretrained` would write, by its own steps on tensors without values."""
    state = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def _described(group: NeuronGroup) -> tuple[object, ...]:
    return group.kind, group.role, group.n, group.d, group.aliases, group.module
