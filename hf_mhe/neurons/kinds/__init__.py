"""Which weights of which module types are neurons, and how they are laid out.

One file per family of module types; importing this package registers them all.
"""

from hf_mhe.neurons.kinds import (
    attention,
    bare,
    bare_by_class,
    by_cut,
    convolution,
    dense,
    diffusers_attention,
    experts,
    gated,
    projections,
    recurrent,
    state_space,
)
from hf_mhe.neurons.kinds.division import Division, divide, divisions, heads
from hf_mhe.neurons.kinds.registry import TABLES, Piece, pieces, reads

__all__ = [
    "TABLES",
    "Division",
    "Piece",
    "attention",
    "bare",
    "bare_by_class",
    "by_cut",
    "convolution",
    "dense",
    "diffusers_attention",
    "divide",
    "divisions",
    "experts",
    "gated",
    "heads",
    "pieces",
    "projections",
    "reads",
    "recurrent",
    "state_space",
]
