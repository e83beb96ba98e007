"""Parameters that a module has itself: tables and tokens by their names, matrices by the products they are in.

Note [Bare parameters]. In order:
1. where the module's own code multiplies with a parameter, or looks its rows up, that says which axis counts the
   neurons, also of an entry of a ParameterList and of each matrix of a stack: see Note [Neurons by use];
2. a table is known by its name (`pos_embed`, `cls_token`, `query_tokens`, `level_embed`; a class named
   `...PositionEmbedding`): the vectors lie along the last axis, whatever the lead, as transformers, timm and diffusers
   store them. A table over a grid, (h, w, d) or (d, h, w), is read where its two equal sides show which it is.
What is left is no group: one vector alone, biases, elementwise factors, rates of state spaces, and the unknown.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from hf_mhe.neurons.group import full_shape
from hf_mhe.neurons.kinds.from_source.products import Use, uses
from hf_mhe.neurons.kinds.registry import Piece
from hf_mhe.neurons.layout import ByAxes
from hf_mhe.neurons.reasons import Unseen

_TABLES = {
    "position": re.compile(r"(^|_)(ape|pos|positions?|positional|emb_rel|rel_emb)(_|$)|pos_?emb"),
    "token": re.compile(r"(^|_)(tokens?|quer(y|ies)|latents?|prompts?|probes?|registers?|slots?)(_|\d|$)"),
    "embedding": re.compile(r"(^|_)(emb|embeds?|embeddings?)(_|$)"),
}
_MATRIX = re.compile(r"(^|_)(weights?|proj|projection|projector|kernel|matrix)(_|$)")
_BIAS = re.compile(r"(^|_)bias(es)?(_[uv])?$")
_FACTOR = re.compile(r"(^|_)(scale|gamma|gain|alpha|beta|gate_logit)(_\d+)?$")
_STATE_SPACE = frozenset({"A", "A_log", "D"})


def bare(module: nn.Module) -> Iterator[Piece]:
    """Every parameter of two or more dimensions that a module has itself, or in a ParameterList of its own."""
    registered = list(_registered(module))
    used = uses(type(module)) if registered else {}  # the source of a class is read only where there is need
    for path, name, parameter in registered:
        shape = full_shape(parameter)
        use = used.get(name)
        if use is not None and _fits(use, shape, in_list=path != name):
            yield from _by_use(module, path, name, shape, use)
        else:
            axes = _table_axes(module, name, shape)
            if axes is not None:
                yield Piece(path, table_kind(module, name), axes, path)


def _registered(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(path, name, parameter): of a list's entry, the name is the list's."""
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        return  # they are read by the module that holds them, which has the name and the code
    holders = [("", module), *((f"{name}.", child) for name, child in module._modules.items())]
    for prefix, holder in holders:
        if holder is module or isinstance(holder, (nn.ParameterList, nn.ParameterDict)):
            for key, parameter in holder._parameters.items():
                if parameter is not None and not is_lazy(parameter) and len(full_shape(parameter)) >= 2:
                    yield f"{prefix}{key}", prefix.rstrip(".") or key, parameter


def _fits(use: Use, shape: tuple[int, ...], in_list: bool) -> bool:
    """Whether the parameter has the axes of the product: an entry of a matrix is a vector, one of a list is whole."""
    entries = use.entry and not in_list
    return len(shape) >= max(-axis for axis in use.neurons + use.coordinates) + entries and (use.entry or not in_list)


def _by_use(module: nn.Module, path: str, name: str, shape: tuple[int, ...], use: Use) -> Iterator[Piece]:
    stack = ByAxes(use.neurons, use.coordinates).stack(len(shape))
    kind = table_kind(module, name)
    if kind not in ("position", "embedding"):
        kind = _product_kind(module, name, use)
    for entry in itertools.product(*(range(shape[axis]) for axis in stack)):
        index = ".".join(str(i) for i, axis in zip(entry, stack, strict=True) if shape[axis] > 1)
        # Experts are named as those of transformers: `experts.5.gate_up_proj`.
        suffix = (index, path) if kind == "expert" else (path, index)
        yield Piece(path, kind, ByAxes(use.neurons, use.coordinates, entry), ".".join(filter(None, suffix)))


def _product_kind(module: nn.Module, name: str, use: Use) -> str:
    cls = type(module).__name__.lower()
    if use.table:
        return "embedding"
    if "router" in cls:
        return "router"
    return "expert" if "expert" in cls or "expert" in name.lower() else "linear"


def table_kind(module: nn.Module, name: str) -> str:
    """ "position", "token" or "embedding" where names say that a parameter is a table of such; else ""."""
    lowered = name.lower()
    if re.search(r"Position(al)?(Embed|Encod)", type(module).__name__) and not _BIAS.search(lowered):
        return "position"
    if _MATRIX.search(lowered) or (_BIAS.search(lowered) and not lowered.endswith("position_bias")):
        return ""
    return next((kind for kind, pattern in _TABLES.items() if pattern.search(lowered)), "")


def _table_axes(module: nn.Module, name: str, shape: tuple[int, ...]) -> ByAxes | None:
    """The layout of a table, or None where the parameter is none or its shape does not say."""
    kind = table_kind(module, name)
    long = [axis for axis, length in enumerate(shape, -len(shape)) if length != 1]
    if not kind or 0 in shape or len(long) < 2:
        return None
    coordinates = long[-1]
    if len(long) == 3 and kind == "position":
        first, second, third = (shape[axis] for axis in long)
        if (first == second) == (second == third):
            return None
        coordinates = long[-1] if first == second else long[0]
    elif len(long) > 3:
        return None
    neurons = tuple(axis for axis in range(-len(shape), 0) if axis != coordinates)
    return ByAxes(neurons, (coordinates,))


def why_no_neurons(module: nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """Why a parameter of a module (of a list of its own: `list.0`) is no neuron group."""
    rank, cls = f"{len(shape)}-dimensional", type(module).__name__
    own = name.partition(".")[0]
    if 0 in shape:
        return f"empty: shape {shape}"
    if _BIAS.search(own):
        return f"bias {name!r} of {cls} ({rank}): added to outputs, no direction"
    if sum(length > 1 for length in shape) < 2:
        return f"one vector only, shape {shape}: energy needs at least two"
    if own in _STATE_SPACE and hasattr(module, "A_log"):
        return f"state-space parameter {name!r} of {cls} ({rank}): rates of single states, no direction"
    if _FACTOR.search(own) or "norm" in cls.lower():
        return f"elementwise factor {name!r} of {cls} ({rank}): scales single values, no direction"
    if len(shape) == 3 and "expert" in cls.lower():
        reason = f"three-dimensional experts: parameter {name!r} of {cls}"
    elif table_kind(module, own):
        reason = f"{table_kind(module, own)} table {name!r} of {cls}: shape {shape} does not show its vectors"
    else:
        lacks = f"no product or look-up in the code of {cls} shows its neurons"
        reason = f"bare parameter {name!r} of {cls} ({rank}): {lacks}"
    return Unseen.of_shape(reason, shape)
