"""Which weights of a module are neurons: by the entry of its class, else by the first rule; then what is left bare.

A new kind is a new entry in one of the files below, or a rule here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hf_mhe.neurons.kinds import convolution, dense, recurrent
from hf_mhe.neurons.kinds.bare_by_class import gumbel_codebooks, is_vector_quantizer
from hf_mhe.neurons.kinds.bare_parameters import bare
from hf_mhe.neurons.kinds.experts import experts, is_router, router, says_its_layout
from hf_mhe.neurons.kinds.fused import attention
from hf_mhe.neurons.kinds.registry import READERS, Piece, Reader, lookup
from hf_mhe.neurons.quantized.formats import LAYERS

ENTRIES = (dense, convolution, recurrent, attention)
"""The files with entries for classes that need no rule; importing them fills the table."""

RULES: tuple[tuple[Callable[[nn.Module], bool], Reader], ...] = (
    (is_vector_quantizer, gumbel_codebooks),
    (says_its_layout, experts),
    (is_router, router),
)
"""For modules of classes without an entry, known by what is found on the module itself: the first that fits counts."""


_BY_CLASS: dict[str, Reader] = {**READERS, **LAYERS}


def pieces(module: nn.Module) -> tuple[Piece, ...]:
    """The pieces of a module's weights that are neurons."""
    reader = lookup(_BY_CLASS, module)
    if reader is None:
        reader = next((found for fits, found in RULES if fits(module)), None)
    own = tuple(reader(module)) if reader is not None else ()
    read = {piece.weight for piece in own}
    return own + tuple(piece for piece in bare(module) if piece.weight not in read)
