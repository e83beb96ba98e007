"""The weight that an adapted layer computes with: the base layer's, as the active adapters change it.

Note [What counts]. The forward pass decides: an adapter layer runs its base layer alone while its adapters are
disabled or any of them is merged, and otherwise lets every active adapter change the result. Adapters around adapters
(mixed models, several target parameters) are applied from the inside out. Dropout is no part of a weight.

Note [Gradients]. The gradient is that of the energy of the effective weight, in full. peft's DoRA treats its norm as a
constant in the backward pass, to save memory; for rows that a positive factor scales, as DoRA's are in linear layers
and convolutions, this makes no difference to an energy, which knows directions only. In embeddings, where DoRA scales
the columns, it does, and the penalty's gradient flows through the norm.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from hf_mhe.neurons.adapters.adapted import Adapted
from hf_mhe.neurons.adapters.methods import METHODS, OF_THE_INPUT, Method
from hf_mhe.neurons.model.identity import place
from hf_mhe.neurons.model.peft_layers import State, check_state, is_adapter_layer, method_of, own_parameters, state_of
from hf_mhe.neurons.model.unwrap import inner_path
from hf_mhe.neurons.model.weight import Finder, Weight, attribute_at


@dataclass(frozen=True, eq=False)
class _Step:
    """One adapter layer's change: `prefix` is its path inside the outermost one, `own` its parameters' names in it."""

    prefix: str
    layer: nn.Module
    state: State
    method: Method | None
    own: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Combined:
    """The effective weight, from the tensors of the base weight and of the adapters, by their names in the layer."""

    base: Weight
    prefix: str
    steps: tuple[_Step, ...]

    def original(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.base.combine({name: tensors[self.prefix + name] for name in self.base.tensor_names})

    def check(self) -> None:
        if self.base.check is not None:
            self.base.check()
        for step in self.steps:
            check_state(step.layer, step.state)

    def outline(self, tensors: Mapping[str, Tensor]) -> Tensor:
        make = self.base.outline or self.base.combine
        return make({name: tensors[self.prefix + name] for name in self.base.tensor_names})

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        original = weight = self.original(tensors)
        for step in self.steps:
            if step.method is not None:
                own = {name: tensors[step.prefix + name] for name in step.own}
                weight = step.method.change(Adapted(step.layer, step.state.active, own, original), weight)
        return weight


def adapted_weight(module: nn.Module, attribute: str, find: Finder) -> Weight | None:
    """The effective weight of an adapter layer, under the name that its base layer gives the weight.

    `find` finds the base layer's own weight; None where `module` is no adapter layer, or the base has no such weight.
    """
    if not is_adapter_layer(module):
        return None
    layers, prefix, base_layer = _chain(module)
    base = find(base_layer, attribute)
    if base is None:
        return None
    steps, names, refusals = [], [prefix + name for name in base.tensor_names], [base.refusal]
    for path, layer in reversed(layers):
        if getattr(layer, "parameter_name", attribute) != attribute:
            continue  # of a layer for each target parameter, the one around this parameter
        state = state_of(layer)
        counts = state.active if not (state.disabled or state.merged) else ()
        method = METHODS.get(method_of(layer))
        biases = method.biases if method is not None else ()
        its_names = (name for adapter in counts for name in own_parameters(layer, adapter))
        own = tuple(dict.fromkeys(name for name in its_names if name.partition(".")[0] not in biases))
        names += [path + name for name in own]
        if state.disabled and state.merged:
            refusals.append(f"its {method_of(layer)} adapters are disabled, yet merged: call unmerge_adapter() first")
        elif counts:
            refusals.append(_refusal(layer, counts, method, base_layer))
        steps.append(_Step(path, layer, state, method if counts else None, own))
    combine = _Combined(base, prefix, tuple(steps))
    refusal = next((reason for reason in refusals if reason is not None), None)
    fixed = tuple(prefix + name for name in base.fixed)
    return replace(
        base,
        tensor_names=tuple(names),
        combine=combine,
        outline=combine.outline,
        refusal=refusal,
        check=combine.check,
        fixed=fixed,
        identity=_identity(base_layer, base, steps),
    )


def _identity(base_layer: nn.Module, base: Weight, steps: list[_Step]) -> Hashable:
    """What the weight is made of, wherever it lies; None for the base weight itself."""
    changes = [
        (method_of(step.layer), step.method.identity(step.layer, step.state.active, _tensors(step)))
        for step in steps
        if step.method is not None
    ]
    return (*(place(attribute_at(base_layer, name)) for name in base.tensor_names), *changes) if changes else None


def _tensors(step: _Step) -> dict[str, Tensor]:
    return {name: attribute_at(step.layer, name) for name in step.own}


def _refusal(layer: nn.Module, active: tuple[str, ...], method: Method | None, base_layer: nn.Module) -> str | None:
    name = method_of(layer)
    if name in OF_THE_INPUT:
        return f"{name} adapter: what it adds depends on the input, so there is no one weight"
    if method is None:
        return f"how {name} ({type(layer).__name__}) changes the weight is not known: call merge_adapter(), if it can"
    reason = method.refuses(layer, active, base_layer)
    return None if reason is None else f"{name} adapter: {reason}"


def _chain(module: nn.Module) -> tuple[list[tuple[str, nn.Module]], str, nn.Module]:
    """The adapter layers around a base layer, outermost first, with their paths; the base layer's path; the layer."""
    layers: list[tuple[str, nn.Module]] = []
    prefix = ""
    while (path := inner_path(module)) is not None:
        if is_adapter_layer(module):
            layers.append((prefix, module))
        prefix += f"{path}."
        module = attribute_at(module, path)
    return layers, prefix, module
