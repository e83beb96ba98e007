"""Which tied weights of a checkpoint a loader would tie: transformers leaves those apart whose stored values differ.

Note [Ties as loaded]. A config may say that the head is the embedding while the checkpoint stores a head of its own;
`from_pretrained` then compares the two, and ties them only where they are equal. Which names are compared, in which
order, and what stands in for a missing one, is the installed transformers' own `tie_weights`, run on parameters of
the right shapes that hold nothing but a number for what the checkpoint stores under their names. Rejected: its rules
written down here, which change from release to release; the values themselves, of which two vocabularies would lie in
memory at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.checkpoint.loading import Loading
from hf_mhe.neurons.source import Get

_ELEMENTS_AT_A_TIME = 1 << 22  # 16 MiB of float32


def tie_as_loaded(model: Any, plan: Loading, get: Get) -> None:
    """Untie those parameters of a model on the meta device whose values in the checkpoint differ.

    Raises:
        MHEError: a tensor's shape is not its parameter's, or `get` cannot read it.
    """
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    tied = _stored_twice(getattr(model, "all_tied_weights_keys", None) or {}, parameters, plan)
    if not tied:
        return
    names = list(dict.fromkeys([*tied, *tied.values()]))
    stored = [name for name in names if name in plan.sources]
    for name in stored:
        check_shape(plan, name, tuple(parameters[name].shape))
    numbers: dict[bytes, int] = {}
    for name in names:
        number = 0
        if (source := plan.sources.get(name)) is not None:
            number = numbers.setdefault(_digest(source.pick(source.make(get))), len(numbers) + 1)
        _put(model, name, nn.Parameter(torch.tensor(float(number)).expand(parameters[name].shape)))
    model.all_tied_weights_keys = tied
    model.tie_weights(missing_keys=set(names) - set(stored), recompute_mapping=False)
    made: dict[int, nn.Parameter] = {}
    for name in names:
        was = parameters[name]
        blank = nn.Parameter(torch.empty_like(was), requires_grad=was.requires_grad)
        parameter = made.setdefault(id(model.get_parameter(name)), blank)
        parameters[name] = parameter
    for name in names:
        _put(model, name, parameters[name])


def check_shape(plan: Loading, target: str, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that does not fit its place, as loading does.

    Raises:
        MHEError: names the tensor, the parameter, and the shapes of both.
    """
    found = plan.shapes[target]
    if found != shape:
        raise MHEError(
            f"tensor {' + '.join(plan.sources[target].names)} of the checkpoint has shape {found}, but {target} of "
            f"the model that config.json describes has shape {shape}"
        )


def _stored_twice(ties: Mapping[str, str], parameters: Mapping[str, nn.Parameter], plan: Loading) -> dict[str, str]:
    """The ties of those parameters that the checkpoint stores under several names: target -> source."""
    of_source: dict[str, list[str]] = {}
    for target, source in ties.items():
        if target in parameters and source in parameters:
            of_source.setdefault(source, []).append(target)
    found: dict[str, str] = {}
    for source, targets in of_source.items():
        if sum(name in plan.sources for name in (source, *targets)) > 1:
            found.update(dict.fromkeys(targets, source))
    return found


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._parameters[attribute] = parameter


def _digest(tensor: Tensor) -> bytes:
    """Equal for equal values: of all dtypes as float32, and -0 as 0."""
    digest = hashlib.blake2b()
    for part in tensor.detach().reshape(-1).split(_ELEMENTS_AT_A_TIME):
        digest.update((part.float() + 0.0).numpy().data)
    return digest.digest()
