"""The model that a config.json describes, built on the meta device: modules and shapes, no weights, no foreign code.

One file per library that writes such configs; each is imported only when one of its configs is met.
"""

from hf_mhe.neurons.checkpoint.skeleton.build import build_skeleton
from hf_mhe.neurons.checkpoint.skeleton.sentence_module import holds_transformer, transformer_attribute

__all__ = ["build_skeleton", "holds_transformer", "transformer_attribute"]
