"""How the ranks of a mesh divide the walk over sharded weights: what travels together, where to, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hf_mhe.energy import Potential
from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.layout import ROWS
from hf_mhe.neurons.model.weight import AsStored
from hf_mhe.training.engines.dtensor.exchange import group_of
from hf_mhe.training.engines.dtensor.regions import Holding, holding, members, whole
from hf_mhe.training.engines.plan import Work, make_plan, operations, operations_by_rows
from hf_mhe.training.engines.refuse import refuse_parameter
from hf_mhe.training.mean_energy import Sample

# What a rank receives in one round, unless a single weight is larger. Ranks wait for each other in each: half of it
# took a fifth longer in two processes of three BERT-base layers.
_ROUND_BYTES = 1 << 25


@dataclass(frozen=True)
class Sharded:
    """A neuron group of which a parameter is a DTensor, and what it means for the penalty.

    Attributes:
        parameters: what the group is made of, in the order of `group.tensors()`, as the optimizer has it.
        factor: its mean energy counts so many times in the penalty.
        sample: of its neurons, where its mean energy is to be estimated.
    """

    group: NeuronGroup
    parameters: tuple[Tensor, ...]
    potential: Potential
    factor: float
    sample: Sample | None = None

    @property
    def operations(self) -> int:
        return operations(self.group.n, self.group.d, self.sample)


@dataclass(frozen=True)
class Weight:
    """Groups cut from the same parameters, which travel together; both are places in the lists of `Division`."""

    groups: tuple[int, ...]
    parameters: tuple[int, ...]


class Division:
    """The groups whose parameters lie on one mesh, and who walks what.

    Attributes:
        process_group, rank, ranks: the mesh's ranks in ascending order, and this one's place among them.
        parameters: each tensor once; `holdings` says who holds what of it.
        weights: what the groups are cut from; `owners` the rank that walks it whole, or None: every rank its own rows.
    """

    def __init__(self, mesh: DeviceMesh, groups: Sequence[Sharded]) -> None:
        self.mesh, self.groups = mesh, groups
        ranks = members(mesh)
        self.process_group = mesh.get_group() if mesh.ndim == 1 else group_of(ranks)
        self.rank, self.ranks = ranks.index(mesh.get_rank()), len(ranks)
        places: dict[int, int] = {}
        self.parameters: list[Tensor] = []
        self.holdings: list[Holding] = []
        cuts: dict[tuple[int, ...], list[int]] = {}
        for place, each in enumerate(groups):
            for parameter in each.parameters:
                if id(parameter) not in places:
                    places[id(parameter)] = len(self.parameters)
                    self.parameters.append(parameter)
                    self.holdings.append(self._holding(each.group, parameter))
            cuts.setdefault(tuple(places[id(parameter)] for parameter in each.parameters), []).append(place)
        self.weights = [Weight(tuple(cut), parameters) for parameters, cut in cuts.items()]
        self.owners = make_plan(tuple(map(self._work, self.weights)), self.ranks)

    def rounds(self) -> list[list[list[Weight]]]:
        """Round by round and rank by rank, the weights that the rank walks whole, the largest first."""
        queues: list[list[list[Weight]]] = [[] for _ in range(self.ranks)]
        room = [0] * self.ranks
        owned = [(self._bytes(w), w, k) for w, k in zip(self.weights, self.owners, strict=True) if k is not None]
        for size, weight, owner in sorted(owned, key=lambda each: -each[0]):
            if not queues[owner] or room[owner] < size:
                queues[owner].append([])
                room[owner] = _ROUND_BYTES
            queues[owner][-1].append(weight)
            room[owner] -= size
        most = max(map(len, queues))
        return [[queue[number] if number < len(queue) else [] for queue in queues] for number in range(most)]

    def _holding(self, group: NeuronGroup, parameter: Tensor) -> Holding:
        refuse_parameter(group.name, parameter)
        return holding(parameter) if isinstance(parameter, DTensor) else whole(parameter.shape, self.ranks)

    def _work(self, weight: Weight) -> Work:
        groups = [self.groups[place] for place in weight.groups]
        alone = len(groups) == 1 and len(weight.parameters) == 1 and groups[0].sample is None
        rows = most_rows(groups[0].group, self.holdings[weight.parameters[0]]) if alone else None
        by_rows = None if rows is None else operations_by_rows(rows, groups[0].group.n, groups[0].group.d)
        return Work(sum(each.operations for each in groups), by_rows, self._bytes(weight))

    def _bytes(self, weight: Weight) -> int:
        return sum(self.parameters[p].numel() * self.parameters[p].element_size() for p in weight.parameters)


def most_rows(group: NeuronGroup, held: Holding) -> int | None:
    """The neurons of the rank that holds most of a group of one parameter; None where they hold other parts of it."""
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
