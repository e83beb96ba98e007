"""The effective value of a module's weight, from the tensors it is stored as: plain, parametrized, normed, pruned.

Note [Half precision in parts]. A parametrization or a norm over half-precision tensors is evaluated in float32, and
its value stays float32. Rounded to the module's own dtype, the same checkpoint would have other directions loaded in
float32 than in bfloat16 (7e-5 relative in energy for wav2vec2's positional convolution), and orthogonal maps have
no half-precision kernels on a CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class Weight:
    """`tensor_names` are attribute paths, relative to the owning module, of the tensors that `combine` makes it from.

    `outline` gives a tensor of the weight's shape from tensors without values, where `combine` cannot. `refusal` says
    why the weight cannot be read, for one that is there and cannot. `check` raises where the module no longer computes
    with the weight that `combine` makes. `quantized` is what the format of a quantized weight is called, and `fixed`
    those tensors that store it, which are not trained. `identity` is equal for weights that are one and the same
    though they are made of other tensors; None where the names say it.
    """

    tensor_names: tuple[str, ...]
    combine: Callable[[Mapping[str, Tensor]], Tensor]
    outline: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    refusal: str | None = None
    check: Callable[[], None] | None = None
    quantized: str | None = None
    fixed: tuple[str, ...] = ()
    identity: Hashable = None


@dataclass(frozen=True)
class AsStored:
    """The `combine` of a weight that is one stored tensor; `operator.itemgetter` is opaque to `torch.compile`."""

    name: str

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.name]


Finder = Callable[[nn.Module, str], Weight | None]
"""Finds the weight that a module has under a name; None where it has none that the finder knows."""


def attribute_at(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path, or None where there is none."""
    found: Any = module
    *modules, last = path.split(".")
    for name in modules:
        # Every optimizer step looks up every parameter: `nn.Module.__getattr__` takes five times as long.
        inner = found._modules.get(name) if isinstance(found, nn.Module) else None
        found = getattr(found, name, None) if inner is None else inner
    return getattr(found, last, None)


def parameter_at(module: nn.Module, path: str) -> nn.Parameter | None:
    """A module's own parameter, or that of a ParameterList or ParameterDict of its own ("tables.0")."""
    name, _, key = path.partition(".")
    holder = module._modules.get(name) if key else module
    if key and not isinstance(holder, (nn.ParameterList, nn.ParameterDict)):
        return None
    return holder._parameters.get(key or name) if holder is not None else None


def torch_weight(module: nn.Module, attribute: str) -> Weight | None:
    """The weight that a module has under a name, as torch itself stores one; None where it has no such tensor."""
    if parametrize.is_parametrized(module, attribute):
        return _parametrized(module, attribute)
    if parameter_at(module, attribute) is not None:
        return Weight((attribute,), AsStored(attribute))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == attribute:
            return _weight_norm(attribute, hook.dim)
        if isinstance(hook, SpectralNorm) and hook.name == attribute:
            return _spectral_norm(attribute, hook.dim)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == attribute:
            return _pruned(attribute)
    return None


def _parametrized(module: nn.Module, attribute: str) -> Weight:
    chain = cast(nn.ModuleDict, module.parametrizations)[attribute]
    prefix = f"parametrizations.{attribute}."
    names = [name for name, _ in [*chain.named_parameters(), *chain.named_buffers()]]

    def combine(tensors: Mapping[str, Tensor]) -> Tensor:
        own = {name: widened(tensors[prefix + name]) for name in names}
        with _at_rest(chain):
            return torch.func.functional_call(chain, own, ())

    return Weight(tuple(prefix + name for name in names), combine)


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """The module in eval mode and without hooks: looking must not move the model.

    In training mode, spectral norm takes a power iteration at each evaluation. Hooks belong to the training: those of
    DeepSpeed ZeRO 3 fetch and release parameters, in an order that they record.
    """
    before = [(m, m.training, {name: m.__dict__[name] for name in _HOOKS}) for m in module.modules()]
    try:
        for m, _, _ in before:
            m.training = False
            m.__dict__.update({name: OrderedDict() for name in _HOOKS})
        yield
    finally:
        for m, mode, hooks in before:
            m.training = mode
            m.__dict__.update(hooks)


def _weight_norm(attribute: str, dim: int) -> Weight:
    magnitude, direction = f"{attribute}_g", f"{attribute}_v"
    return Weight(
        (magnitude, direction), lambda t: torch._weight_norm(widened(t[direction]), widened(t[magnitude]), dim)
    )


def _spectral_norm(attribute: str, dim: int) -> Weight:
    stored, left, right = f"{attribute}_orig", f"{attribute}_u", f"{attribute}_v"

    def combine(tensors: Mapping[str, Tensor]) -> Tensor:
        weight = widened(tensors[stored])
        sigma = torch.dot(widened(tensors[left]), weight.movedim(dim, 0).flatten(1).mv(widened(tensors[right])))
        return weight / sigma

    return Weight((stored, left, right), combine)


def _pruned(attribute: str) -> Weight:
    stored, mask = f"{attribute}_orig", f"{attribute}_mask"
    return Weight((stored, mask), lambda tensors: masked(tensors[stored], tensors[mask]))


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """A pruned weight, in its own dtype."""
    return weight * mask.to(weight.dtype)


def widened(tensor: Tensor) -> Tensor:
    """Half precision as float32; see Note [Half precision in parts]."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
