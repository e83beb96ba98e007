"""Which weights of which module types are neurons, and how they are laid out.

One file per family of module types; importing this package registers them all.
"""

from hf_mhe.neurons.kinds import bare_by_class, bare_parameters, convolution, dense, experts, recurrent
from hf_mhe.neurons.kinds.fused import (
    attention,
    by_source,
    diffusers_attention,
    gated,
    state_space,
    transformers_attention,
)
from hf_mhe.neurons.kinds.fused.split import Division, divide, divisions, heads
from hf_mhe.neurons.kinds.registry import TABLES, Piece, pieces, reads

__all__ = [
    "TABLES",
    "Division",
    "Piece",
    "attention",
    "bare_by_class",
    "bare_parameters",
    "by_source",
    "convolution",
    "dense",
    "diffusers_attention",
    "divide",
    "divisions",
    "experts",
    "gated",
    "heads",
    "pieces",
    "reads",
    "recurrent",
    "state_space",
    "transformers_attention",
]
