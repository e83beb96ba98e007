"""`checkpoint_groups`: the neuron groups of a checkpoint, from names, shapes and config alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from hf_mhe.neurons.adapters.keys import check_merged
from hf_mhe.neurons.checkpoint.by_shape import groups_by_shape
from hf_mhe.neurons.checkpoint.loading import ConvertedTensor, Loading, loaded_as, plan_loading
from hf_mhe.neurons.checkpoint.prefixes import look_through
from hf_mhe.neurons.checkpoint.skeleton import build_skeleton
from hf_mhe.neurons.checkpoint.ties import check_shape, tie_as_loaded
from hf_mhe.neurons.coverage import coverage
from hf_mhe.neurons.group import Coverage, NeuronGroup
from hf_mhe.neurons.layout import Layout, Slab, Then
from hf_mhe.neurons.patterns import Patterns, select_groups
from hf_mhe.neurons.quantized.formats import READ_METHODS
from hf_mhe.neurons.quantized.stored import Tensors
from hf_mhe.neurons.quantized.unpack import Unpacked, unpack
from hf_mhe.neurons.reasons import Unseen
from hf_mhe.neurons.source import Get, Source, Stored


def checkpoint_groups(
    shapes: Mapping[str, tuple[int, ...]],
    config: dict[str, Any] | None,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    dtypes: Mapping[str, str] | None = None,
    by_head: bool = False,
    declared: str | None = None,
    metadata: Mapping[str, str] | None = None,
    get: Get | None = None,
) -> Coverage:
    """The neuron groups of a checkpoint: the same names, roles, n, d and order as of the model that loads it.

    The class that the config names is built on the meta device, without weights and without code from outside
    transformers, diffusers, timm and sentence-transformers; names are matched by the rules the library loads by. Every
    tensor of two or more dimensions is in a group or in `skipped`, and every weight that the model has and the
    checkpoint does not is in `skipped` too. Where no class is known, groups are made by shape, kind "unknown", and
    `note` says why. Groups that share tensors follow each other: building them in order with one `WeightCache` reads
    each tensor once.

    Quantized weights are read as the numbers that they stand for, and their groups name the tensors that they are made
    of; so are weights that are stored pruned or normed. What wrappers of training put before the names is looked
    through, and `note` says what it was.

    Args:
        shapes: The shape of each tensor, by its name.
        config: The parsed config.json; None where there is none.
        include: As in `neuron_groups`, like `exclude` and `by_head`.
        exclude: As in `neuron_groups`.
        dtypes: The tensors' dtypes as safetensors spells them, by name; quantized weights are found by them.
        by_head: As in `neuron_groups`.
        declared: The class that the index of a pipeline or of a sentence-transformers folder names for the checkpoint.
        metadata: That of the files' headers, in which some formats say how their tensors go together.
        get: Reads a tensor by its name. Where two tied names are both stored, they are one matrix only if they are
            equal, as loading ties them; without `get` they are taken to be equal. It also reads the small tensors in
            which some formats keep the shapes of the others.

    Raises:
        MHEError: a tensor's shape is not its module's, the config builds no model, a pattern matches nothing, the
            tensors are those of an adapter, or the scales of quantized values are missing or do not fit them.
    """
    skeleton = build_skeleton(config, declared)
    model = skeleton if isinstance(skeleton, nn.Module) else None
    known = None if model is None else _Known(model)
    names = look_through(shapes, None if known is None else lambda name: known.role(name) == "parameter")
    shapes = {name: tuple(shape) for name, shape in names.seen(shapes).items()}
    quantization = (config or {}).get("quantization_config")
    tensors = Tensors(
        shapes,
        names.seen(dtypes or {}),
        quantization if isinstance(quantization, dict) else {},
        metadata or {},
        None if get is None else names.reading(get),
    )
    if known is not None:
        tensors = replace(tensors, classes_of=known.classes_of, loaded_as=known.loaded, role=known.role)
    plain = unpack(tensors)

    def reading(get: Get) -> Get:
        return plain.reading(names.reading(get))

    if isinstance(skeleton, nn.Module):
        found = _by_module(plain, skeleton, tensors, by_head)
    else:
        check_merged(shapes, shapes)
        found = Coverage(*groups_by_shape(plain.shapes), skeleton)
    found = names.restore(plain.restore(found))
    groups = select_groups(found.groups, include, exclude)
    if names or plain.packed:
        groups = [replace(group, source=replace(_source(group), reading=reading)) for group in groups]
    return replace(found, groups=groups)


class _Known:
    """What the model that a config describes says of the names of a checkpoint's tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.loaded = loaded_as(model)
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._others = set(model.state_dict()) - self._parameters
        self._classes = {path: type(module).__mro__ for path, module in model.named_modules()}
        self.role = functools.cache(self._role)

    def classes_of(self, path: str) -> tuple[str, ...]:
        """The class and base classes of a module that a checkpoint names; none of what is no module of the model's."""
        own = self.loaded(f"{path}.weight").removesuffix(".weight")
        return tuple(cls.__name__ for cls in self._classes.get(own, ()))

    def _role(self, name: str) -> str:
        """Whether a stored tensor is a "parameter" or a "buffer" of the model, "" where it is neither."""
        target = self.loaded(name)
        return "parameter" if target in self._parameters else "buffer" if target in self._others else ""


def _by_module(plain: Unpacked, model: nn.Module, tensors: Tensors, by_head: bool) -> Coverage:
    shapes, method = plain.shapes, tensors.method
    plan = plan_loading(model, shapes)
    check_merged(plan.unused, shapes)
    if tensors.get is not None and (not method or method in READ_METHODS):
        tie_as_loaded(model, plan, plain.reading(tensors.get))
    match = _Match(model, plan, method, plain.why)
    known = coverage(model, by_head=by_head)
    groups: list[NeuronGroup] = []
    skipped: dict[str, str] = {}
    for group in known.groups:
        found = match.stored_group(group)
        if isinstance(found, NeuronGroup):
            groups.append(found)
        else:
            skipped.update(found)
    for name, reason in known.skipped.items():
        if match.stored_as(name):
            skipped.update(dict.fromkeys(plan.sources[match.stored_as(name)[0]].names, reason))
        else:
            both = f"{match.missing}; {reason}"
            skipped[name] = Unseen(both, reason.elements) if isinstance(reason, Unseen) else both
    read = {name for group in groups for stored in _source(group).stored for name in stored.names}
    read |= {name for group in groups for name in group.parameters}
    for target, stored in plan.sources.items():
        reason = f"buffer of {type(model).__name__}" if match.is_buffer(target) else f"second name of {target}"
        skipped.update(
            {name: reason for name in stored.names if len(shapes[name]) >= 2 and name not in {*read, *skipped}}
        )
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    for name in plan.unused:
        if len(shapes[name]) >= 2:
            reason = f"no parameter of {type(model).__name__} takes it"
            by_rule = any(pattern.search(name) for pattern in ignored)  # as the model's library leaves it out
            skipped[name] = reason if by_rule else Unseen.of_shape(reason, shapes[name])
    return Coverage(groups, skipped)


def _source(group: NeuronGroup) -> Source:
    assert group.source is not None, group
    return group.source


def _narrowed(
    layout: Layout, stored: ConvertedTensor, shape: tuple[int, ...]
) -> tuple[Layout, ConvertedTensor, tuple[int, ...]]:
    """What one expert's group needs of a stack that is stored expert by expert: that expert alone, a stack of one."""
    slab = layout.first if isinstance(layout, Then) else layout
    if isinstance(slab, Slab):
        alone = stored.one_expert(slab.index, shape[0])
        if alone is not None:
            first = replace(slab, index=0)
            return replace(layout, first=first) if isinstance(layout, Then) else first, alone, (1, *shape[1:])
    return layout, stored, shape


class _Match:
    """The tensors of one model against those of one checkpoint."""

    def __init__(self, model: nn.Module, plan: Loading, method: str, why: str | None) -> None:
        self._plan = plan
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._names: dict[int, list[str]] = {}
        for name, parameter in self._parameters.items():
            self._names.setdefault(id(parameter), []).append(name)
        self.missing = f"not in the checkpoint: newly initialised by {type(model).__name__}"
        self._quantized: set[str] = set()
        self._method = ""
        if method and method not in READ_METHODS:
            self._method = f"stored quantized ({method})"
            self.missing = f"{self._method}: not in the checkpoint under its own name"
            # Scales, zero points, packed halves: tensors that no parameter takes mark their module as quantized.
            self._quantized = {name.rpartition(".")[0] for name in plan.unused}
        if why is not None:
            self.missing = why

    def is_buffer(self, target: str) -> bool:
        return target not in self._parameters

    def stored_as(self, name: str) -> list[str]:
        """Those names of a model tensor, its own and those it is tied to, that the checkpoint gives a value for."""
        parameter = self._parameters.get(name)
        names = self._names[id(parameter)] if parameter is not None else [name]
        ordered = [name, *(other for other in names if other != name)]
        return [other for other in ordered if other in self._plan.sources]

    def stored_group(self, group: NeuronGroup) -> NeuronGroup | dict[str, str]:
        """The same group over the checkpoint's tensors; or what is skipped instead, with the reason."""
        source = _source(group)
        chosen: list[Stored] = []
        shapes: list[tuple[int, ...]] = []
        parameters: list[str] = []
        for name, shape in zip(source.tensor_names, source.shapes, strict=True):
            own = source.path_of(name)
            targets = self.stored_as(own)
            if not targets:
                return {own: Unseen.of_shape(self.missing, shape)}
            stored, found = self._plan.sources[targets[0]], self._plan.shapes[targets[0]]
            if any(name.rpartition(".")[0] in self._quantized for name in stored.names):
                reason = f"{self._method}: directions need its scales"
                return dict.fromkeys(stored.names, Unseen.of_shape(reason, shape))
            if found != shape and self._method:
                reason = f"{self._method}: shape {found}, unpacked {shape}"
                return dict.fromkeys(stored.names, Unseen.of_shape(reason, shape))
            for target in targets:
                check_shape(self._plan, target, shape)
            if isinstance(stored, ConvertedTensor):
                layout, stored, shape = _narrowed(group.layout, stored, shape)
                group = replace(group, layout=layout)
            chosen.append(stored)
            shapes.append(shape)
            if not self.is_buffer(own):
                parameters += stored.names
                parameters += [name for target in targets[1:] for name in self._plan.sources[target].names]
        source = replace(source, root=None, shapes=tuple(shapes), stored=tuple(chosen))
        return replace(group, parameters=tuple(dict.fromkeys(parameters)), source=source)
