"""A quantized checkpoint seen as the plain one that it stands for, and the groups of that put back on its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from hf_mhe.errors import MHEError
from hf_mhe.neurons.group import Coverage, NeuronGroup
from hf_mhe.neurons.quantized.cast_float8 import FORM as CAST
from hf_mhe.neurons.quantized.formats import FORMATS
from hf_mhe.neurons.quantized.stored import Packed, Tensors, Unread
from hf_mhe.neurons.reasons import Unseen
from hf_mhe.neurons.source import Get
from hf_mhe.text import one_line


@dataclass(frozen=True, eq=False)
class Unpacked:
    """`shapes`: those of the tensors as they would be stored without quantization, by the names they would have.

    `packed` are the weights among them that are made of other tensors, `unread` the tensors that are in no weight,
    each with the reason; `why` is the reason for the first weight that cannot be read, None where all can.
    """

    shapes: dict[str, tuple[int, ...]]
    packed: dict[str, Packed]
    unread: dict[str, str]
    why: str | None

    def restore(self, found: Coverage) -> Coverage:
        """The coverage of the plain checkpoint as that of the quantized one: groups read and name its own tensors."""
        skipped = {name: reason for own, reason in found.skipped.items() for name in self._stored_names([own])}
        return replace(
            found,
            groups=[self._restored(group) for group in found.groups],
            skipped={**skipped, **self.unread},
            note="; ".join(
                filter(None, (found.note, self._cast(), self.why and f"some weights are not read: {self.why}"))
            )
            or None,
            codes=frozenset(packed.tensor_names[0] for packed in self.packed.values() if packed.quantized),
        )

    def _cast(self) -> str | None:
        """What to say of float8 weights that are read as they stand."""
        cast = [name for name, packed in self.packed.items() if packed.form == CAST]
        if not cast:
            return None
        return (
            f"{len(cast)} weights (such as {cast[0]}) are float8 without scales, and measured by the values they hold"
        )

    def reading(self, get: Get) -> Get:
        """`get` by the names of the plain checkpoint."""
        return partial(self._dequantized, get) if self.packed else get

    def _dequantized(self, get: Get, name: str) -> Tensor:
        packed = self.packed.get(name)
        if packed is None:
            return get(name)
        sources = " + ".join(packed.tensor_names)
        try:
            made = packed.dequantize(get)
        except (RuntimeError, ValueError, AssertionError, LookupError) as error:  # whatever a library makes of damage
            said = one_line(error)
            raise MHEError(f"no {packed.form} weight can be made of {sources}: {said}") from error
        if tuple(made.shape) != packed.shape:
            raise MHEError(f"{packed.form} makes a weight {tuple(made.shape)} of {sources}, expected {packed.shape}")
        return made

    def _stored_names(self, names: Iterable[str]) -> list[str]:
        found = ((self.packed[name].tensor_names if name in self.packed else (name,)) for name in names)
        return list(dict.fromkeys(name for of_name in found for name in of_name))

    def _restored(self, group: NeuronGroup) -> NeuronGroup:
        used = [self.packed[name] for name in group.parameters if name in self.packed]
        if not used:
            return group
        return replace(
            group,
            parameters=tuple(self._stored_names(group.parameters)),
            quantized=next((packed.form for packed in used if packed.quantized), None),
        )


def unpack(tensors: Tensors) -> Unpacked:
    """Find the quantized weights of a checkpoint, by its tensors' names, and what the plain one would hold.

    Raises:
        MHEError: scales that are missing or of a wrong shape, a config that its own library does not accept.
    """
    first, left_over = ([each for each in FORMATS if each.left_over is last] for last in (False, True))
    found = [each for form in first for each in form.stored_weights(tensors)]
    taken = {name for each in found for name in each.tensor_names}
    for form in first:
        form.check_complete(tensors, taken)
    for form in left_over:
        rest = {name: shape for name, shape in tensors.shapes.items() if name not in taken}
        more = list(form.stored_weights(replace(tensors, shapes=rest)))
        found += more
        taken |= {name for each in more for name in each.tensor_names}

    unread: dict[str, str] = {}
    by_values: dict[str, Packed] = {}
    for each in found:
        if isinstance(each, Packed):
            by_values[each.tensor_names[0]] = each
        else:
            for name in each.tensor_names:
                if len(shape := tensors.shapes[name]) >= 2:
                    unread[name] = Unseen.of_shape(each.reason, shape) if each.weights else each.reason
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors.shapes.items():
        if name in by_values:
            shapes[by_values[name].name] = by_values[name].shape
        elif name not in taken:
            shapes[name] = shape
    reasons = [each.reason for each in found if isinstance(each, Unread) and each.quantized]
    packed = {each.name: each for each in found if isinstance(each, Packed)}
    return Unpacked(shapes, packed, unread, reasons[0] if reasons else None)
