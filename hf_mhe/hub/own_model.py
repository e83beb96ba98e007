"""The user's own model under what training wrapped it in, and whether a report is of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_mhe.errors import MHEError
from hf_mhe.neurons.checkpoint.loading import loaded_as
from hf_mhe.neurons.model.unwrap import clean, unwrap

if TYPE_CHECKING:
    from torch import nn

    from hf_mhe.analysis import EnergyReport

# Parts of a parameter's name that say how it is kept and not which one it is: adapters around it, a parametrization
# (weight norm, pruning) in its place.
_KEPT_AS = {"base_model", "base_layer", "original_module", "modules_to_save", "default", "parametrizations"}
_PARAMETRIZED = {f"original{i}" for i in ("", "0", "1")}
_PRUNED = ("_orig", "_mask", "_g", "_v")


def own_model(model: Any) -> Any:
    """The model that is saved: below DDP, torch.compile, a weight average of torch's, and the like; else itself."""
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    while isinstance(model, nn.Module):
        inner = unwrap(model)
        if isinstance(inner, AveragedModel):
            inner = inner.module
        if inner is model:
            break
        model = inner
    return model


def check_same_model(model: nn.Module, report: EnergyReport) -> None:
    """Catch a report of another model: with none of its parameters in this one it cannot be this one's.

    Names are compared without what wrappers, adapters and parametrizations add to them, and from their ends, since the
    model may be the part of the measured one below its head, or the other way round.

    Raises:
        MHEError: no parameter is in both.
    """
    present = {_plain(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    present |= {_plain(name) for name in model.state_dict()}
    named = {name: _plain(name) for group in report.groups for name in group.parameters}
    ends = {end for name in present for end in _ends(name)}
    if any(plain in ends or any(end in present for end in _ends(plain)) for plain in named.values()):
        return
    # A report of a checkpoint has the names of the file, which loading may rename (the experts of a mixture).
    renamed = loaded_as(model) if hasattr(type(model), "base_model_prefix") else str
    if not any(_plain(renamed(name)) in present for name in named):
        raise MHEError(
            f"the report after ({report.source}) is of another model: {type(model).__name__} has none of its "
            f"parameters, such as {min(named, default='(it has none)')!r}"
        )


def _plain(name: str) -> tuple[str, ...]:
    parts = [part for part in clean(name).split(".") if part not in _KEPT_AS]
    if parts and parts[-1] in _PARAMETRIZED:
        parts.pop()
    if parts:
        for ending in _PRUNED:
            parts[-1] = parts[-1].removesuffix(ending) or parts[-1]
    return tuple(parts)


def _ends(name: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The name and its ends of three parts and more: two (`dense.weight`) are in every other model too."""
    return [name, *(name[start:] for start in range(1, len(name) - 2))]
