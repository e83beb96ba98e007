"""LoRA, rsLoRA and DoRA, in dense layers, embeddings, convolutions, attention and bare expert parameters.

Sources: Hu et al., "LoRA", arXiv:2106.09685; Kalajdzievski, "rsLoRA", arXiv:2312.03732; Liu et al., "DoRA",
arXiv:2402.09353. Written out here, since peft's `get_delta_weight` may replace half-precision parameters.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hf_mhe.neurons.adapters.adapted import Adapted, is_transposed
from hf_mhe.neurons.model.identity import place
from hf_mhe.neurons.model.unwrap import bare

# What peft calls a variant of LoRA is decided where its forward pass is: these have that of LoRA itself, or of DoRA.
_DORA = ("DoraLinearVariant", "DoraEmbeddingVariant", "DoraConv1dVariant", "DoraConv2dVariant", "DoraConv3dVariant")
_PLAIN = ("MiCALinearVariant", "MiCAEmbeddingVariant", "VeloraLinearVariant")


def change(adapted: Adapted, weight: Tensor) -> Tensor:
    """`W + scaling * B A` for one adapter after the other; for DoRA, each row (column of an embedding) rescaled."""
    for adapter in adapted.active:
        delta = adapted.layer.scaling[adapter] * _product(adapted.layer, adapter, adapted.own, weight)
        if isinstance(bare(adapted.layer), NonDynamicallyQuantizableLinear):
            delta = delta * _times_in_attention()
        weight = weight + delta
        magnitude = adapted.own.get(f"lora_magnitude_vector.{adapter}.weight")
        if magnitude is not None:
            scaled = 1 if f"lora_embedding_A.{adapter}" in adapted.own or adapted.is_transposed else 0
            others = [axis for axis in range(weight.ndim) if axis != scaled]
            norm = torch.linalg.vector_norm(adapted.original + delta, dim=others, keepdim=True)
            weight = weight * (magnitude.flatten().view(norm.shape) / norm)
    return weight


def identity(layer: Any, active: tuple[str, ...], own: Mapping[str, Tensor]) -> Hashable:
    """Equal for layers that add the same product: peft ties the head's B and A to the embedding's A and B, transposed.

    With another scaling the same two matrices make another weight.
    """
    found: list[Hashable] = []
    for adapter in active:
        if f"lora_embedding_A.{adapter}" in own:
            factors = [place(own[f"lora_embedding_{letter}.{adapter}"], transposed=True) for letter in "AB"]
        else:
            factors = [place(own.get(f"lora_{letter}.{adapter}.weight")) for letter in "BA"]
        magnitude = own.get(f"lora_magnitude_vector.{adapter}.weight")
        scaled = () if magnitude is None else (place(magnitude),)
        found.append((layer.scaling.get(adapter), type(layer.lora_variant.get(adapter)), *factors, *scaled))
    return tuple(found)


def refuses(layer: Any, active: tuple[str, ...], base_layer: nn.Module) -> str | None:
    """Variants whose weight depends on the input or is drawn at random, and what no one convolution computes."""
    if type(getattr(layer.__dict__.get("forward"), "__self__", None)).__name__.startswith("XLora"):
        return "X-LoRA weighs the adapters anew for each token, so there is no one weight"
    for adapter in active:
        variant = type(layer.lora_variant.get(adapter)).__name__
        if variant not in ("NoneType", *_DORA, *_PLAIN):
            return f"the weight of {variant.removesuffix('Variant')} is not known: call merge_adapter(), if it can"
        for setting in ("dilation", "padding_mode") if adapter in layer.lora_A else ():
            if getattr(base_layer, setting, None) != getattr(layer.lora_A[adapter], setting, None):
                return f"peft's LoRA has another {setting} than its convolution, so there is no one weight"
    if getattr(base_layer, "groups", 1) > 1:
        return "peft's LoRA of a grouped convolution mixes the groups, so there is no one weight of the layer's shape"
    return None


def _product(layer: Any, adapter: str, own: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """`B A` in the layout of the weight."""
    if f"lora_embedding_A.{adapter}" in own:
        return (own[f"lora_embedding_B.{adapter}"] @ own[f"lora_embedding_A.{adapter}"]).T
    a, b = own[f"lora_A.{adapter}.weight"], own[f"lora_B.{adapter}.weight"]
    experts = getattr(layer, "num_experts", 1)
    if experts > 1:
        # A holds the experts one after the other, B has them in turn: peft's ParamWrapper.get_delta_weight.
        each_a, each_b = a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts))
        stored = "eio" if getattr(layer.get_base_layer(), "is_transposed", False) else "eoi"
        return torch.einsum(f"ore,eri->{stored}", each_b, each_a)
    product = (b.flatten(1) @ a.flatten(1)).view(b.shape[0], *a.shape[1:])
    return product.T if is_transposed(layer) else product


@functools.cache
def _times_in_attention() -> float:
    """How often peft adds the LoRA of the output projection of an `nn.MultiheadAttention` to its weight.

    Release 0.21 does so twice, in its forward pass and in merging: once itself, and once by telling the projection to
    merge. The installed release is asked, on an attention of one number, because another may do it once.
    """
    peft: Any = sys.modules["peft"]
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"])
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        model: Any = peft.inject_adapter_in_model(config, nn.Sequential(nn.MultiheadAttention(1, 1)))
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].merge()
    projection: Any = bare(model[0].get_base_layer().out_proj)
    return float(projection.weight) - 1.0
