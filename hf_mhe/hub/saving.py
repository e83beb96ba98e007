"""Saving a model through its own `save_pretrained`, so that what is saved loads as the model that was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_mhe.errors import MHEError
from hf_mhe.neurons.model.unwrap import clean
from hf_mhe.text import one_line


def save_model(model: Any, folder: Path) -> None:
    """Write what `model.save_pretrained` writes into a folder.

    Raises:
        MHEError: the model cannot be saved, in one line, with the library's own error as its cause.
    """
    try:
        state = _state_to_save(model)
        model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    except MHEError:
        raise
    except Exception as error:  # each library and each class of custom code refuses in its own way
        raise MHEError(f"{type(model).__name__}.save_pretrained refuses this model: {one_line(error)}") from error


def _state_to_save(model: Any) -> dict[str, Any] | None:
    """The state that transformers has to be given, None where it finds the right one itself.

    It saves the names of torch.compile's modules inside a model (`layers.0._orig_mod.…`), by which no model loads; and
    it looks for weights that accelerate has moved away only where it moved them itself.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or hasattr(model, "hf_device_map"):
        return None
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    offloaded = any(parameter.is_meta for parameter in model.parameters())
    if not offloaded and names == [clean(name) for name in names]:
        return None
    state: dict[str, Any] = model.state_dict()
    if offloaded:
        from accelerate.utils.modeling import get_state_dict_offloaded_model  # type: ignore[import-untyped]

        state = get_state_dict_offloaded_model(model)
    return {clean(name): tensor for name, tensor in state.items()}
