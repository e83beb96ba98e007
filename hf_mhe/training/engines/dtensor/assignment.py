"""Who walks what of the weights on one mesh: what travels together, to which rank, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.layout import ROWS
from hf_mhe.neurons.model.weight import AsStored
from hf_mhe.training.engines.dtensor.exchange import process_group_of
from hf_mhe.training.engines.dtensor.regions import Holding, holding, members, whole
from hf_mhe.training.engines.plan import Cost, make_plan, operations_by_rows
from hf_mhe.training.engines.refuse import refuse_parameter
from hf_mhe.training.terms import Term

# What a rank receives in one round, unless a single weight is larger. Ranks wait for each other in each: half of it
# took a fifth longer in two processes of three BERT-base layers.
_ROUND_BYTES = 1 << 25

Parameters = tuple[Tensor, ...]
"""What a group is made of, in the order of `group.tensors()`, as the optimizer has it."""


@dataclass(frozen=True)
class Parcel:
    """Terms whose groups are cut from the same parameters, which travel together: indices in the `Assignment`.

    A term is one group; what ranks send each other is a weight, of which there may be several groups.
    """

    terms: tuple[int, ...]
    parameters: tuple[int, ...]


class Assignment:
    """The terms whose parameters lie on one mesh, and which rank walks which.

    Attributes:
        process_group, rank, ranks: the mesh's ranks in ascending order, this one's index among them, their number.
        parameters: each tensor once; `holdings` says who holds what of it.
        parcels: what the ranks send each other.
        walkers: for each parcel the rank that walks it whole, or None: every rank walks the rows that it holds.
    """

    def __init__(self, mesh: DeviceMesh, terms: Sequence[Term], parameters: Sequence[Parameters]) -> None:
        self.mesh, self.terms = mesh, terms
        global_ranks = members(mesh)
        self.process_group = mesh.get_group() if mesh.ndim == 1 else process_group_of(global_ranks)
        self.rank, self.ranks = global_ranks.index(mesh.get_rank()), len(global_ranks)
        indices: dict[int, int] = {}
        self.parameters: list[Tensor] = []
        self.holdings: list[Holding] = []
        cut_from: dict[tuple[int, ...], list[int]] = {}
        for number, (term, tensors) in enumerate(zip(terms, parameters, strict=True)):
            for tensor in tensors:
                if id(tensor) not in indices:
                    indices[id(tensor)] = len(self.parameters)
                    self.parameters.append(tensor)
                    self.holdings.append(self._holding(term.group, tensor))
            cut_from.setdefault(tuple(indices[id(tensor)] for tensor in tensors), []).append(number)
        self.parcels = [Parcel(tuple(numbers), tensors) for tensors, numbers in cut_from.items()]
        self.walkers = make_plan(tuple(map(self._cost, self.parcels)), self.ranks)

    def rounds(self) -> list[list[list[Parcel]]]:
        """Round by round and rank by rank, the parcels that the rank walks whole, the largest first."""
        queues: list[list[list[Parcel]]] = [[] for _ in range(self.ranks)]
        room = [0] * self.ranks
        assigned = [(self._bytes(p), p, k) for p, k in zip(self.parcels, self.walkers, strict=True) if k is not None]
        for size, parcel, walker in sorted(assigned, key=lambda each: -each[0]):
            if not queues[walker] or room[walker] < size:
                queues[walker].append([])
                room[walker] = _ROUND_BYTES
            queues[walker][-1].append(parcel)
            room[walker] -= size
        most = max(map(len, queues))
        return [[queue[number] if number < len(queue) else [] for queue in queues] for number in range(most)]

    def _holding(self, group: NeuronGroup, parameter: Tensor) -> Holding:
        refuse_parameter(group.name, parameter)
        return holding(parameter) if isinstance(parameter, DTensor) else whole(parameter.shape, self.ranks)

    def _cost(self, parcel: Parcel) -> Cost:
        terms = [self.terms[index] for index in parcel.terms]
        group = terms[0].group
        is_alone = len(terms) == 1 and len(parcel.parameters) == 1
        by_rows_at_all = is_alone and terms[0].objective.by_rows is not None
        rows = most_rows(group, self.holdings[parcel.parameters[0]]) if by_rows_at_all else None
        by_rows = None if rows is None else operations_by_rows(rows, group.n, group.d)
        return Cost(sum(term.operations for term in terms), by_rows, self._bytes(parcel))

    def _bytes(self, parcel: Parcel) -> int:
        return sum(self.parameters[p].numel() * self.parameters[p].element_size() for p in parcel.parameters)


def most_rows(group: NeuronGroup, held: Holding) -> int | None:
    """The neurons of the rank that holds most of a group of one parameter; None where they hold other regions."""
    assert group.source is not None  # a group of a live model
    as_stored = isinstance(group.source.combine, AsStored) and group.layout == ROWS
    runs = [region.rows(held.shape) for region in held.regions]
    if not as_stored or any(run is None for run in runs):
        return None
    return max(run[1] for run in runs if run is not None)


def sharded_rows(group: NeuronGroup, parameters: Sequence[Tensor]) -> tuple[int | None, int]:
    """`most_rows` of a group, and the bytes of its weight; None and 0 where no parameter of it is sharded."""
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters) if sharded else 0
    return (most_rows(group, holding(sharded[0])) if sharded and len(parameters) == 1 else None), size
