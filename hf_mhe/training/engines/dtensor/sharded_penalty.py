"""The penalty on weights that are DTensors: FSDP2, HSDP, tensor parallel, both at once, or distributed by hand.

Note [What is communicated]
The ranks of a parameter's mesh divide the weights among themselves (`plan.py`). A weight that one rank walks whole is
sent to it as it is stored (bfloat16 rows travel as bfloat16), and every rank gets the gradient of its own part back,
in rounds of bounded size, each of which is under way while the last one is walked. It does not matter how the weight
is cut: by rows or columns, along one axis of the mesh or two. A weight that all ranks walk by rows is gathered by
DTensor; its gradient needs no other rank's work. The values are summed in one all-reduce, so that every rank reports
the same energies, and one that is not finite stops all ranks at once.

Note [Which gradient]
A DTensor's local tensor gets the gradient of its own elements of the whole penalty: nothing is averaged, and copies of
the same part get the same bits, for they come from one rank. It is ready after the forward pass; the backward pass is
one scaling, without communication. That is why the factors of the groups are needed beforehand: one gradient a
parameter is made, sent and kept, however many groups are cut from it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hf_mhe.errors import MHEError
from hf_mhe.training.engines.dtensor.rounds import Walk
from hf_mhe.training.engines.dtensor.workload import Division, Sharded


@torch.compiler.disable  # collectives among plans made on the host: nothing that a graph could hold
def sharded_penalty(groups: Sequence[Sharded]) -> tuple[Tensor, Tensor]:
    """`sum of factor * mean energy`, 0-dim, on every rank, whose gradient reaches each parameter's local part.

    Every rank of the parameters' meshes has to call this with the same groups, in the same order.

    Returns:
        The penalty, and the mean energies, `(groups,)`, detached: float64 if a parameter is, float32 otherwise.

    Raises:
        MHEError: as `hyperspherical_energy`, or a parameter is placed in a way that is not supported.
    """
    dtype = torch.float32
    for parameter in (parameter for each in groups for parameter in each.parameters):
        dtype = torch.promote_types(dtype, parameter.dtype)
    by_mesh: dict[DeviceMesh, list[int]] = {}
    for place, each in enumerate(groups):
        by_mesh.setdefault(_mesh(each), []).append(place)
    device = groups[0].parameters[0].device
    penalty, energies = torch.zeros((), dtype=dtype, device=device), torch.zeros(len(groups), dtype=dtype)
    for mesh, places in by_mesh.items():
        division = Division(mesh, [groups[place] for place in places])
        local = [t.to_local() if isinstance(t, DTensor) else t for t in division.parameters]
        value, energies[places] = _Penalty.apply(division, dtype, torch.is_grad_enabled(), *local)
        penalty = penalty + value.to(device)
    return penalty, energies.to(device)


def _mesh(sharded: Sharded) -> DeviceMesh:
    meshes = list(dict.fromkeys(t.device_mesh for t in sharded.parameters if isinstance(t, DTensor)))
    if len(meshes) > 1 or meshes[0].get_coordinate() is None:
        raise MHEError(
            f"neuron group {sharded.group.name!r}: its parameters have to lie on one device mesh that this rank is "
            f"part of; found {', '.join(map(str, meshes))}: distribute them alike, or exclude the group"
        )
    return meshes[0]


class _Penalty(torch.autograd.Function):
    """The forward pass leaves the gradient ready; the backward pass is one scaling."""

    @staticmethod
    def forward(
        ctx: Any, division: Division, dtype: torch.dtype, differentiable: bool, *local: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = [differentiable and need for need in ctx.needs_input_grad[3:]]
        walk = _walk(division, wanted, local)
        factors = torch.tensor([each.factor for each in division.groups], dtype=torch.float64)
        penalty = (factors * walk.values).sum().to(local[0].device, dtype)
        energies = walk.values.to(dtype)
        ctx.gradients, ctx.again = walk.gradients, functools.partial(_walk, division, wanted)
        ctx.save_for_backward(*local)
        ctx.mark_non_differentiable(energies)
        return penalty, energies

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor, _energies: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and handed over: a copy would cost a pass over the weights, in every step. A second backward
        # pass through a retained graph, which is rare, walks again, on every rank.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = ctx.again(ctx.saved_tensors).gradients
        return None, None, None, *(None if g is None else g.mul_(upstream.to(g.device, g.dtype)) for g in gradients)


def _walk(division: Division, wanted: Sequence[bool], local: Sequence[Tensor]) -> Walk:
    walk = Walk(division, local, wanted)
    # Autocast would run the walk's products in half precision, where its treatment of the hard pairs is lost.
    with torch.no_grad(), torch.autocast(local[0].device.type, enabled=False):
        walk.run()
    return walk
