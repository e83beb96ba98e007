"""The groups of a checkpoint, or of all components of a pipeline, and the matrix of each."""

from __future__ import annotations

from torch import Tensor

from hf_mhe.analysis.checkpoint.location import unmerged_refusal
from hf_mhe.analysis.checkpoint.masks import is_mask
from hf_mhe.analysis.checkpoint.reader import CheckpointReader, check_finite
from hf_mhe.errors import MHEError
from hf_mhe.neurons import Coverage, NeuronGroup, WeightCache, checkpoint_groups
from hf_mhe.neurons.adapters.keys import UnmergedAdapterError
from hf_mhe.neurons.reasons import Unseen
from hf_mhe.neurons.source import Get


class StoredGroups:
    """`coverage` of what a reader reads, and `matrix`, which builds its groups one after the other.

    The groups of a pipeline go by the name of their component, and are read by the component's own reader.
    """

    def __init__(self, reader: CheckpointReader, by_head: bool) -> None:
        """Find the groups.

        Raises:
            MHEError: what `checkpoint_groups` raises, or the checkpoint is an adapter that is not merged.
        """
        self._get_of: dict[str, Get] = {}
        self._component_of: dict[str, str] = {}
        self._component: str | None = None
        self._cache = WeightCache()
        if not reader.components:
            self.coverage = self._covered("", reader, by_head)
            return
        groups: list[NeuronGroup] = []
        skipped: dict[str, str] = {name: Unseen(reason) for name, reason in reader.location.left_out.items()}
        notes = [f"{name} is left out: {reason}" for name, reason in skipped.items()]
        for name, component in reader.components.items():
            found = self._covered(name, component, by_head)
            groups += found.groups
            skipped.update(found.skipped)
            notes += [found.note] if found.note else []
        self.coverage = Coverage(groups, skipped, "; ".join(notes) or None)

    def matrix(self, group: NeuronGroup) -> Tensor:
        """The neurons of one of the groups as rows (n, d); what the one before was made of is kept for it.

        Raises:
            MHEError: a tensor that the group is made of cannot be read, or has a NaN or an infinity.
        """
        component = self._component_of[group.name]
        if component != self._component:
            self._component, self._cache = component, WeightCache(self._get_of[component])
        matrix = group.build(self._cache)
        # What was read was checked; what codes and scales, or lengths and directions, make of each other was not.
        if group.quantized is not None or len(group.parameters) > 1:
            made = "dequantized" if group.quantized is not None else "put together"
            check_finite(matrix, f"{' + '.join(group.parameters)}, {made},")
        return matrix

    def _covered(self, component: str, reader: CheckpointReader, by_head: bool) -> Coverage:
        found = _coverage(reader, by_head)
        self._get_of[component] = _finite(reader, found)
        if component:
            found = found.prefixed(component)
        self._component_of.update({group.name: component for group in found.groups})
        return found


def _coverage(reader: CheckpointReader, by_head: bool) -> Coverage:
    try:
        return checkpoint_groups(
            reader.shapes(),
            reader.config,
            dtypes=reader.dtypes(),
            by_head=by_head,
            declared=reader.location.declared,
            metadata=reader.metadata,
            get=reader.get,
        )
    except UnmergedAdapterError as error:
        raise MHEError(unmerged_refusal(reader.location, error)) from error


def _finite(reader: CheckpointReader, found: Coverage) -> Get:
    """What reads a checkpoint's tensors and refuses a NaN or an infinity, other than in codes, which are no numbers.

    Where no class says which tensors are weights, -inf in what looks like a mask is let through.
    """
    unlabelled = all(group.kind == "unknown" for group in found.groups)

    def get(name: str) -> Tensor:
        tensor = reader.get_unchecked(name)
        if name not in found.codes and not (unlabelled and is_mask(name, tensor)):
            reader.check_finite(name, tensor)
        return tensor

    return get
