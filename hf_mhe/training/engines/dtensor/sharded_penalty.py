"""The penalty on weights that are DTensors: FSDP2, HSDP, tensor parallel, both at once, or distributed by hand.

Note [What is communicated]
The ranks of a parameter's mesh divide the weights among themselves (`plan.py`). A weight that one rank walks whole is
sent to it as it is stored (bfloat16 rows travel as bfloat16), and every rank gets the gradient of what it holds back,
in rounds of bounded size, each of which is under way while the last one is walked. It does not matter how the weight
is sharded: by rows or columns, along one axis of the mesh or two. A weight that all ranks walk by rows is gathered by
DTensor; its gradient needs no other rank's work. The values are summed in one all-reduce, so that every rank reports
the same energies, and one that is not finite stops all ranks at once.

Note [Which gradient]
A DTensor's local tensor gets the gradient of its own elements of the whole penalty: nothing is averaged, and copies of
the same region get the same bits, for they come from one rank. It is ready after the forward pass; the backward pass
is one scaling, without communication. That is why the factors of the groups are needed beforehand: one gradient a
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
from hf_mhe.training.engines.dtensor.assignment import Assignment, Parameters
from hf_mhe.training.engines.dtensor.rounds import Rounds
from hf_mhe.training.terms import Term


@torch.compiler.disable  # collectives among plans made on the host: nothing that a graph could hold
def sharded_penalty(terms: Sequence[Term], parameters: Sequence[Parameters]) -> tuple[Tensor, Tensor]:
    """`sum of factor * objective`, 0-dim, on every rank, whose gradient reaches each parameter's local tensor.

    Every rank of the parameters' meshes has to call this with the same terms, in the same order.

    Args:
        terms: one or more.
        parameters: of each term's group, of which one at least is a DTensor.

    Returns:
        The penalty, and the objectives, `(terms,)`, detached: float64 if a parameter is, float32 otherwise.

    Raises:
        MHEError: as `hyperspherical_energy`, or a parameter is placed in a way that is not supported.
    """
    dtype = torch.float32
    for tensor in (tensor for tensors in parameters for tensor in tensors):
        dtype = torch.promote_types(dtype, tensor.dtype)
    by_mesh: dict[DeviceMesh, list[int]] = {}
    for index, (term, tensors) in enumerate(zip(terms, parameters, strict=True)):
        by_mesh.setdefault(_mesh(term, tensors), []).append(index)
    device = parameters[0][0].device
    penalty, energies = torch.zeros((), dtype=dtype, device=device), torch.zeros(len(terms), dtype=dtype)
    for mesh, indices in by_mesh.items():
        assignment = Assignment(mesh, [terms[index] for index in indices], [parameters[index] for index in indices])
        local = [t.to_local() if isinstance(t, DTensor) else t for t in assignment.parameters]
        value, energies[indices] = _Penalty.apply(assignment, dtype, torch.is_grad_enabled(), *local)
        penalty = penalty + value.to(device)
    return penalty, energies.to(device)


def _mesh(term: Term, parameters: Parameters) -> DeviceMesh:
    meshes = list(dict.fromkeys(tensor.device_mesh for tensor in parameters if isinstance(tensor, DTensor)))
    if len(meshes) > 1 or meshes[0].get_coordinate() is None:
        raise MHEError(
            f"neuron group {term.group.name!r}: its parameters have to lie on one device mesh that this rank is "
            f"part of; found {', '.join(map(str, meshes))}: distribute them alike, or exclude the group"
        )
    return meshes[0]


class _Penalty(torch.autograd.Function):
    """The forward pass leaves the gradient ready; the backward pass is one scaling."""

    @staticmethod
    def forward(
        ctx: Any, assignment: Assignment, dtype: torch.dtype, differentiable: bool, *local: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = [differentiable and need for need in ctx.needs_input_grad[3:]]
        rounds = _run(assignment, wanted, local)
        factors = torch.tensor([term.factor for term in assignment.terms], dtype=torch.float64)
        penalty = (factors * rounds.values).sum().to(local[0].device, dtype)
        energies = rounds.values.to(dtype)
        ctx.gradients, ctx.again = rounds.gradients, functools.partial(_run, assignment, wanted)
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


def _run(assignment: Assignment, wanted: Sequence[bool], local: Sequence[Tensor]) -> Rounds:
    rounds = Rounds(assignment, local, wanted)
    # Autocast would run the walk's products in half precision, where its treatment of the hard pairs is lost.
    with torch.no_grad(), torch.autocast(local[0].device.type, enabled=False):
        rounds.run()
    return rounds
