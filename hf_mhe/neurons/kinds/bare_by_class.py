"""Bare parameters of single classes of transformers, where neither name nor product says enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_mhe.neurons.group import full_shape
from hf_mhe.neurons.kinds.registry import Piece, reads
from hf_mhe.neurons.layout import ByAxes, Rows, Take, Then

_MODELS = "transformers.models."


@reads(f"{_MODELS}moshi.modeling_moshi.MoshiFlexibleLinear")
def one_matrix_per_codebook(module: Any) -> Iterator[Piece]:
    """`weight` (codebooks, out, in): each codebook's own dense map."""
    for codebook in range(full_shape(module.weight)[0]):
        yield Piece("weight", "linear", ByAxes((-2,), (-1,), (codebook,)), str(codebook))


@reads(f"{_MODELS}esmfold2.modeling_esmfold2.EsmFold2Parcae")
def discretized_input_matrix(module: nn.Module) -> Iterator[Piece]:
    """`input_matrix_continuous` (out, in): the rows of a dense map, up to a positive factor each."""
    yield Piece("input_matrix_continuous", "linear", suffix="input_matrix_continuous")


@reads(f"{_MODELS}funnel.modeling_funnel.FunnelRelMultiheadAttention")
def funnel_position_kernel(module: nn.Module) -> Iterator[Piece]:
    """`r_kernel` (model, heads, head): the projection of positions to keys."""
    yield Piece("r_kernel", "linear", ByAxes((-2, -1), (-3,)), "r_kernel")


@reads(f"{_MODELS}levit.modeling_levit.LevitAttention", f"{_MODELS}levit.modeling_levit.LevitAttentionSubsample")
def levit_position_biases(module: nn.Module) -> Iterator[Piece]:
    """`attention_biases` (heads, offsets): for each offset between patches a vector, one bias for each head."""
    yield Piece("attention_biases", "position", Rows(neuron_axis=1), "attention_biases")


@reads(
    f"{_MODELS}inkling2.modeling_inkling2.Inkling2DynamicShortConvolution",
    f"{_MODELS}inkling2_loop.modeling_inkling2_loop.Inkling2LoopDynamicShortConvolution",
)
def short_convolution(module: nn.Module) -> Iterator[Piece]:
    """`static_weight` (kernel, channels): the part of each channel's kernel that does not depend on the input."""
    yield Piece("static_weight", "depthwise", Rows(neuron_axis=1), "static_weight")


def is_vector_quantizer(module: nn.Module) -> bool:
    codevectors = module._parameters.get("codevectors")
    named = type(module).__name__.endswith("GumbelVectorQuantizer")
    return named and codevectors is not None and len(full_shape(codevectors)) == 3


def gumbel_codebooks(module: Any) -> Iterator[Piece]:
    """`codevectors` (1, groups · entries, d) of wav2vec 2.0 and its kin: a codebook for each group."""
    for group in range(module.num_groups):
        layout = Then(ByAxes((-3, -2), (-1,)), Take(group * module.num_vars, module.num_vars))
        yield Piece("codevectors", "codebook", layout, f"codevectors.{group}")
