"""Mixtures of experts in transformers: stacks of matrices, one expert's after the other, and the routers before them.

The groups of one stored stack follow each other, expert by expert, so that a reader need hold one stack at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hf_mhe.neurons.group import full_shape
from hf_mhe.neurons.kinds.registry import Piece, reads
from hf_mhe.neurons.layout import ROWS, Rows, Slab, Take, Then

_MODELS = "transformers.models."


def _stack(module: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a stack (experts, ., .); no experts where the module has no such parameter."""
    stack = getattr(module, name, None)
    shape = full_shape(stack) if isinstance(stack, Tensor) else ()
    return shape if len(shape) == 3 else (0, 0, 0)


def _gate_up_down(module: nn.Module, transposed: bool, concatenated: bool) -> Iterator[Piece]:
    axis = 1 if transposed else 0
    experts, *matrix = _stack(module, "gate_up_proj")
    half = matrix[axis] // 2
    # Concatenated: all gates, then all ups. Otherwise a gate and an up in turn (GPT-OSS).
    blocks, length = (1, half) if concatenated else (half, 1)
    for expert in range(experts):
        for index, name in enumerate(("gate", "up")):
            layout = Then(Slab(expert, axis), Take(index * length, length, blocks))
            yield Piece("gate_up_proj", "expert", layout, f"{expert}.{name}")
    yield from _each_expert(module, "down_proj", "down", axis)


def _each_expert(module: nn.Module, weight: str, name: str, axis: int = 0) -> Iterator[Piece]:
    for expert in range(_stack(module, weight)[0]):
        yield Piece(weight, "expert", Slab(expert, axis), f"{expert}.{name}" if name else str(expert))


def says_its_layout(module: nn.Module) -> bool:
    """Whether transformers' `use_experts_implementation` noted the layout of the experts on the module."""
    flags = (getattr(module, name, None) for name in ("is_transposed", "is_concatenated", "has_gate"))
    return all(isinstance(flag, bool) for flag in flags) and _stack(module, "down_proj")[0] > 0


def experts(module: Any) -> Iterator[Piece]:
    """`gate_up_proj` (experts, 2 · intermediate, hidden) or `up_proj`, and `down_proj`; transposed where so noted."""
    if module.has_gate:
        yield from _gate_up_down(module, module.is_transposed, module.is_concatenated)
    else:
        yield from _each_expert(module, "up_proj", "up", 1 if module.is_transposed else 0)
        yield from _each_expert(module, "down_proj", "down", 1 if module.is_transposed else 0)


@reads(
    f"{_MODELS}step3p7.modeling_step3p7.Step3p7Experts",
    f"{_MODELS}longcat_flash.modeling_longcat_flash.LongcatFlashExperts",
)
def plain_experts(module: nn.Module) -> Iterator[Piece]:
    """`gate_up_proj` (experts, 2 · intermediate, hidden), `down_proj` (experts, hidden, intermediate)."""
    return _gate_up_down(module, transposed=False, concatenated=True)


@reads(f"{_MODELS}llama4.modeling_llama4.Llama4TextExperts")
def llama4_experts(module: nn.Module) -> Iterator[Piece]:
    """`gate_up_proj` (experts, hidden, 2 · intermediate), `down_proj` (experts, intermediate, hidden)."""
    return _gate_up_down(module, transposed=True, concatenated=True)


@reads(f"{_MODELS}inkling.modeling_inkling.InklingSharedExperts")
def inkling_shared_experts(module: nn.Module) -> Iterator[Piece]:
    """`gate_proj`, `up_proj` (experts, intermediate, hidden), `down_proj` (experts, hidden, intermediate)."""
    for name in ("gate", "up", "down"):
        yield from _each_expert(module, f"{name}_proj", name)


@reads(f"{_MODELS}jetmoe.modeling_jetmoe.JetMoeParallelExperts")
def jetmoe_experts(module: nn.Module) -> Iterator[Piece]:
    """`weight` (experts, out, in)."""
    return _each_expert(module, "weight", "")


@reads(f"{_MODELS}dbrx.modeling_dbrx.DbrxExpertGLU")
def dbrx_experts(module: Any) -> Iterator[Piece]:
    """`w1` (gate), `v1` (up), `w2` (down, transposed): the experts' (intermediate, hidden) below each other."""
    size = module.ffn_hidden_size
    for weight, name, axis in (("w1", "gate", 0), ("v1", "up", 0), ("w2", "down", 1)):
        for expert in range(module.moe_num_experts):
            cut = (0, expert * size, size)
            yield Piece(weight, "expert", Rows(axis, cut), f"{expert}.{name}")


def is_router(module: nn.Module) -> bool:
    cls = type(module)
    weight = module._parameters.get("weight")
    named = cls.__module__.startswith(_MODELS) and cls.__name__.endswith("Router")
    return named and weight is not None and len(full_shape(weight)) == 2


def router(module: nn.Module) -> Iterator[Piece]:
    """A bare `weight` (experts, hidden) in a router of transformers: a neuron is an expert's score."""
    yield Piece("weight", "router", ROWS)
