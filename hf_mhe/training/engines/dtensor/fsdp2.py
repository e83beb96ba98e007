"""FSDP2 (`fully_shard`): the sharded parameters, whatever is registered in their place at the moment.

Note [Which tensor is the parameter]
Between the forward and the backward pass FSDP2 has whole, temporary parameters registered in the modules that it has
not resharded (the root, by default). A gradient that reached those after FSDP2 had reduced the module's own would be
dropped without a word. So the sharded parameter is looked up in FSDP2's own records. Rejected: `FSDPModule.reshard()`,
which would do it by public names, at the price of gathering those modules again in each backward pass.

Note [Order in the backward pass]
The gradient of the penalty is computed in the forward pass, and autograd runs the nodes that were made last first: it
is in `.grad` before FSDP2 launches a reduction, whose stream waits for the current one. FSDP2 adds what it reduces to
what is there, and does not average it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Managed:
    """The parameters of a model that FSDP2 shards; made anew for each use, for a model may be sharded in between."""

    def __init__(self, model: nn.Module) -> None:
        self._sharded: dict[int, DTensor] = {}
        self._registered: list[Tensor] = []  # kept, so that no id is given to another tensor
        fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, which takes a second
        for module in model.modules() if fsdp is not None else ():
            if isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
                for record in _records(module):
                    registered = getattr(record._module_info.module, record._module_info.param_name)
                    self._registered.append(registered)
                    self._sharded[id(registered)] = record.sharded_param

    def parameter(self, registered: Tensor) -> Tensor:
        """The parameter that the optimizer updates, of a tensor that is registered in the model."""
        return self._sharded.get(id(registered), registered)


def as_updated(model: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A model's tensors as the optimizer has them, whatever is registered in their place at the moment."""
    managed = Managed(model)
    return [managed.parameter(tensor) for tensor in tensors]


def _records(module: Any) -> list[Any]:
    """FSDP2's records of the parameters that a module manages: where each is registered, and its shard."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        groups = state._fsdp_param_groups
    else:  # torch before 2.12 has one group a module, or None
        groups = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
    return [record for group in groups for record in group.fsdp_params]
