"""`coverage` and `neuron_groups`: every parameter of two or more dimensions, as neurons or with the reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_mhe.errors import MHEError
from hf_mhe.neurons.adapters.visits import Visit, standing, visits
from hf_mhe.neurons.competing import Apart, apart_in_all, why_apart
from hf_mhe.neurons.group import Coverage, NeuronGroup, Role, full_shape
from hf_mhe.neurons.kinds.bare_parameters import why_no_neurons
from hf_mhe.neurons.kinds.fused.row_splits import row_splits
from hf_mhe.neurons.kinds.registry import TABLES
from hf_mhe.neurons.matrices import Adapters, MatrixUse, NoGroupError, matrices, matrix_shape, tensors_of
from hf_mhe.neurons.model.offloaded import offloaded_ties
from hf_mhe.neurons.model.peft_layers import is_adapter_layer
from hf_mhe.neurons.model.still_bound import Binding
from hf_mhe.neurons.model.storage import storage_refusal
from hf_mhe.neurons.model.unwrap import bare, clean, unwrap
from hf_mhe.neurons.model.weight import attribute_at
from hf_mhe.neurons.patterns import Patterns, matching, select_groups
from hf_mhe.neurons.quantized.formats import unread_live
from hf_mhe.neurons.reasons import LAZY, Unseen, size_refusal
from hf_mhe.neurons.roles import output_modules
from hf_mhe.neurons.source import Source, StoredTensor
from hf_mhe.neurons.untrained import check_asked, nothing_but_quantized, why_untrained


def neuron_groups(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    trainable_only: bool = False,
    output: Patterns = None,
    by_head: bool = False,
    adapters: Adapters = "effective",
) -> list[NeuronGroup]:
    """The neuron groups of a model, in the order of its modules, bound to its live parameters.

    Fused projections are taken apart: `h.0.attn.c_attn.q`, `.k`, `.v`, `mlp.gate_up_proj.gate`, `.up`; experts are
    `mlp.experts.5.gate`, `.up`, `.down`. A model with adapters of peft has the groups of the model without them.

        >>> import torch, hf_mhe
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> [(group.name, group.n, group.d) for group in hf_mhe.neuron_groups(model)]
        [('0', 16, 8), ('2', 4, 16)]

    Args:
        model: An `nn.Module`; wrappers such as DistributedDataParallel and `torch.compile` are looked through.
        include: Globs on dotted names, or regular expressions after `re:` (see `select_groups`); None for all groups.
        exclude: Likewise, of what is left out.
        trainable_only: Keep the groups of which a parameter requires grad. Quantized weights are not trained, and
            their layers are kept for their adapters alone.
        output: Patterns that name the output layers of a model that does not say which they are.
        by_head: Make the queries, keys and values of each attention head a group of their own,
            `h.0.attn.c_attn.q.head.3`, where the attention module says which its heads are.
        adapters: With "effective" a layer's weight is the one it computes with, `W + scaling * B A` for LoRA,
            differentiable into the adapter; adapters that are disabled or not active take no part. With "own" the
            layers have their base weights, and each matrix of an active LoRA is a group of its own with one neuron for
            each of its ranks: `q_proj.lora_A.default` in input space, `q_proj.lora_B.default` in output space.

    Raises:
        MHEError: `model` is no `nn.Module`, a pattern matches nothing, `adapters` is neither of the two, or with
            `trainable_only` no group is left and some are quantized, or a pattern of `include` names only such.
    """
    found = coverage(model, output=output, by_head=by_head, adapters=adapters)
    groups = select_groups(found.groups, include, exclude)
    if not trainable_only:
        return groups
    check_asked(groups, include)
    trained = [group for group in groups if group.requires_grad]
    if not trained and (why := nothing_but_quantized(groups)) is not None:
        raise MHEError(why)
    return trained


def coverage(
    model: nn.Module,
    *,
    output: Patterns = None,
    by_head: bool = False,
    adapters: Adapters = "effective",
    trainable_only: bool = False,
) -> Coverage:
    """Every parameter of two or more dimensions of a model: in a neuron group, or skipped with the reason.

    Wrappers (DistributedDataParallel, torch.compile, a DeepSpeed engine) are looked through, and are not in the names.
    Those of peft are not in the names of groups, but in those of parameters.

        >>> import torch, hf_mhe
        >>> found = hf_mhe.coverage(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)))
        >>> [group.name for group in found.groups], found.skipped
        (['0'], {'1.weight': 'one neuron only: energy needs at least two'})

    Args:
        model: An `nn.Module`.
        output: As in `neuron_groups`, like `by_head` and `adapters`.
        by_head: As in `neuron_groups`.
        adapters: As in `neuron_groups`.
        trainable_only: Skip what is not trained, with the reason: frozen, or quantized, and how.

    Raises:
        MHEError: `model` is no `nn.Module`, a pattern of `output` matches nothing, or `adapters` is not known.
    """
    if adapters not in get_args(Adapters):
        raise MHEError(f"adapters is {adapters!r}; it must be one of {', '.join(map(repr, get_args(Adapters)))}")
    if not isinstance(model, nn.Module):
        raise MHEError(f"model is a {type(model).__name__}; neuron groups are taken from a torch.nn.Module")
    root = unwrap(model)
    outputs = {id(module) for module in output_modules(bare(root))}
    splits = row_splits(root)
    # One walk for all that follows: peft's MultiheadAttention replaces its parameters at each.
    modules = list(root.named_modules(remove_duplicate=False))
    ties = offloaded_ties(root)
    names: dict[int, list[str]] = {}
    for path, module in modules:
        for attribute, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
            same = names.setdefault(id(ties.get(id(parameter), parameter)), [])
            names[id(parameter)] = same
            same.append(clean(attribute))
    visited = list(visits(modules))

    groups: list[NeuronGroup] = []
    refused: dict[str, str] = {}
    for uses in matrices(visited, splits, by_head, adapters, ties):
        try:
            group = _group(root, uses, names, outputs)
        except NoGroupError as refusal:
            refused.update(dict.fromkeys(refusal.parameters, refusal.reason))
        else:
            groups.append(group)
    if output is not None:
        chosen = matching(groups, output, "output")
        groups = [replace(group, role="output") if i in chosen else group for i, group in enumerate(groups)]
    if trainable_only:
        for group in groups:
            if not group.requires_grad:
                refused.update(dict.fromkeys(group.parameters, why_untrained(group)))
        groups = [group for group in groups if group.requires_grad]
    return Coverage(groups, _skipped(root, visited, groups, refused, names))


def _group(root: nn.Module, uses: list[MatrixUse], names: dict[int, list[str]], outputs: set[int]) -> NeuronGroup:
    use = next((use for use in uses if use.piece.kind in TABLES), uses[0])
    tensors, shapes = tensors_of(use)
    own_names = _own_names(use)
    others = [other for other in uses if other is not use]
    parameters = tuple(dict.fromkeys(name for each in (use, *others) for name in _parameters(each, names)))
    if use.weight.refusal is not None:
        raise NoGroupError(parameters, Unseen.of_shape(use.weight.refusal, shapes[0]))
    for name, tensor in zip(use.weight.tensor_names, tensors, strict=True):
        if name not in use.weight.fixed and (unread := storage_refusal(tensor)) is not None:
            raise NoGroupError(parameters, unread)
    n, d = matrix_shape(use, tensors, shapes, parameters)
    reason = size_refusal(n, d)
    if reason is not None:
        raise NoGroupError(parameters, reason)
    role: Role = "hidden"
    if use.piece.kind in TABLES:
        role = "embedding"
    elif any(id(other.layer) in outputs for other in uses):
        role = "output"
    return NeuronGroup(
        name=_dotted(use),
        kind=use.piece.kind,
        role=role,
        n=n,
        d=d,
        parameters=parameters,
        aliases=tuple(map(_dotted, others)),
        module=use.name,
        layout=use.piece.layout,
        source=Source(
            root,
            use.path,
            use.weight.tensor_names,
            shapes,
            use.weight.combine,
            tuple(StoredTensor(name) for name in own_names),
            use.weight.check,
            use.weight.fixed,
            Binding.of(use.module, use.weight.tensor_names),
        ),
        quantized=use.weight.quantized,
        apart=apart_in_all(map(_apart, uses)),
    )


def _apart(use: MatrixUse) -> Apart | None:
    return why_apart(use.piece.kind, f"{use.name}.{use.piece.weight}", type(use.layer).__name__)


def _own_names(use: MatrixUse) -> list[str]:
    return [clean(f"{use.path}.{name}".lstrip(".")) for name in use.weight.tensor_names]


def _parameters(use: MatrixUse, names: dict[int, list[str]]) -> Iterator[str]:
    """The names of the parameters of a use, each with its other names behind it."""
    for name, tensor in zip(_own_names(use), tensors_of(use)[0], strict=True):
        if isinstance(tensor, nn.Parameter):
            yield name
            yield from (other for other in names.get(id(tensor), ()) if other != name)


def _dotted(use: MatrixUse) -> str:
    """The group's name; a model that is itself one layer lends it the name of its class."""
    return ".".join(part for part in (use.name, use.piece.suffix) if part) or type(use.layer).__name__


def _skipped(
    root: nn.Module,
    visited: Iterable[Visit],
    groups: list[NeuronGroup],
    refused: dict[str, str],
    names: dict[int, list[str]],
) -> dict[str, str]:
    taken = {name for group in groups for name in group.parameters}
    sources = [group.source for group in groups if group.source is not None]
    read = {source.path_of(name) for source in sources for name in source.tensor_names}
    skipped: dict[str, str] = {}
    for visit in visited:
        if is_adapter_layer(visit.module):
            for name, reason in standing(visit.module).items():
                refused.setdefault(clean(f"{visit.path}.{name}".lstrip(".")), reason)
        for attribute, reason in unread_live(visit.module).items():
            path = f"{visit.path}.{attribute}".lstrip(".")
            if path not in read:
                # What a kernel puts in the place of a parameter need not have a shape.
                shape = getattr(attribute_at(visit.module, attribute), "shape", None)
                skipped[clean(path)] = Unseen(reason) if shape is None else Unseen.of_shape(reason, shape)
        for attribute, parameter in visit.module.named_parameters(recurse=False):
            if not is_lazy(parameter) and len(full_shape(parameter)) < 2:
                continue
            left = [name for name in names[id(parameter)] if name not in taken]
            unread = visit.aside or (_unread(root, visit.path, attribute, parameter) if left else "")
            for name in left:
                skipped.setdefault(name, refused.get(name) or unread)
    return skipped


def _unread(root: nn.Module, path: str, attribute: str, parameter: Tensor) -> str:
    if is_lazy(parameter):
        return LAZY
    module = root.get_submodule(path)
    parametrized = ".parametrizations." in f".{path}."
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)) or parametrized:
        owner = root.get_submodule(path.rpartition(".")[0].removesuffix(".parametrizations"))
        attribute = f"{path.rpartition('.')[2]}.{attribute}"
    else:
        owner = module
    return why_no_neurons(owner, attribute, full_shape(parameter))
