"""Whether a module still is what it was when a neuron group was bound to its weight.

Note [What a name may come to mean]. A group finds its tensors by their names, so that parameters which were replaced
are followed. But a weight norm, a parametrization or pruning leaves a value that was computed from others under the
name of the parameter, and an adapter a base weight that the layer no longer computes with alone: a penalty on it would
pull at something else, or at nothing. Rejected: to look for the weight anew at each step, which costs a search through
the tables of kinds for every group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.model.peft_layers import AGAIN
from hf_mhe.neurons.model.unwrap import bare, is_transparent, qualified
from hf_mhe.neurons.model.weight import attribute_at


@dataclass(frozen=True)
class Binding:
    """A module's class, and those tensors of its weight that are parameters or buffers of it."""

    kind: type[nn.Module]
    tensor_names: tuple[str, ...]

    @staticmethod
    def of(module: nn.Module, tensor_names: Sequence[str]) -> Binding:
        """Which tensors of a weight are registered in a module now."""
        return Binding(type(module), tuple(name for name in tensor_names if _is_registered(module, name)))

    def check(self, root: nn.Module, path: str) -> None:
        """Refuse to go on where another module took the place at a path, or the module's weight became a computed one.

        A subclass is no other module (`fully_shard` makes one of each class), nor is one that `torch.compile` or
        activation checkpointing was put around.

        Raises:
            MHEError: names the module and what became of it.
        """
        module = attribute_at(root, path) if path else root
        if not isinstance(module, nn.Module):
            raise MHEError(f"the model no longer has a module {path!r}; {AGAIN}")
        if type(module) is not self.kind:
            if is_transparent(module):
                module = bare(module)
            if not isinstance(module, self.kind):
                raise MHEError(
                    f"module {path!r} is a {qualified(type(module))} and was a {qualified(self.kind)} when the "
                    f"neuron groups were made; {AGAIN}"
                )
        for name in self.tensor_names:
            if not _is_registered(module, name):
                raise MHEError(
                    f"{name!r} of module {path!r} ({type(module).__name__}) is no parameter of it any more since the "
                    f"neuron groups were made (a parametrization, weight norm or pruning?); {AGAIN}"
                )


def _is_registered(module: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    holder = attribute_at(module, path) if path else module
    return isinstance(holder, nn.Module) and (attribute in holder._parameters or attribute in holder._buffers)
