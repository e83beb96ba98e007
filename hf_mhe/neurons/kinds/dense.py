"""Dense maps and lookup tables: a neuron is an output feature, or a table's entry."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hf_mhe.neurons.kinds.registry import Piece, reads
from hf_mhe.neurons.layout import Rows


@reads(nn.Linear)
def linear(module: nn.Module) -> Iterator[Piece]:
    """Weight (out, in)."""
    yield Piece("weight", "linear")


@reads(nn.Bilinear)
def bilinear(module: nn.Module) -> Iterator[Piece]:
    """Weight (out, in1, in2): a neuron is the matrix of one output's bilinear form."""
    yield Piece("weight", "bilinear")


@reads(nn.Embedding, nn.EmbeddingBag)
def embedding(module: nn.Module) -> Iterator[Piece]:
    """Weight (entries, dimension)."""
    yield Piece("weight", "embedding")


@reads("transformers.pytorch_utils.Conv1D")
def transformers_conv1d(module: nn.Module) -> Iterator[Piece]:
    """Weight (in, out): a dense map stored transposed, despite its name (GPT, GPT-2)."""
    yield Piece("weight", "transformers_conv1d", Rows(neuron_axis=1))
