"""OFT and BOFT: the rotation of the input space that all neurons of a layer share.

Sources: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv:2306.07280 (a rotation
leaves the hyperspherical energy as it is); Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly
Factorization", arXiv:2311.06243. With `use_cayley_neumann=True` (peft's default) OFT's blocks are orthogonal only up
to a truncated series, and the energy drifts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.neurons.adapters.adapted import Adapted


def rotated(adapted: Adapted, weight: Tensor) -> Tensor:
    """OFT: `x R W0^T`, so `W0 R^T`, block by block; an embedding's rows are rotated as they come out, `W0 R`."""
    embedding = any(name.startswith("oft_embedding_R") for name in adapted.own)
    neurons = weight.T if adapted.is_transposed else weight.flatten(1)
    for adapter in adapted.active if embedding else reversed(adapted.active):
        container = "oft_embedding_R" if embedding else "oft_R"
        blocks = _blocks(getattr(adapted.layer, container)[adapter], adapted.own[f"{container}.{adapter}.weight"])
        cut = neurons.unflatten(1, (-1, blocks.shape[-1]))  # rows, blocks, block
        turned = torch.einsum(
            "nbr,brc->nbc" if embedding else "nbc,brc->nbr", cut, blocks.expand(cut.shape[1], -1, -1)
        )
        neurons = turned.flatten(1)
    return neurons.T if adapted.is_transposed else neurons.view(weight.shape)


def _blocks(rotation: Any, skew: Tensor) -> Tensor:
    """The rotation's blocks (1 or blocks, block, block), from the upper triangles (1 or blocks, entries)."""
    if rotation.coft:
        # The forward pass writes the projected parameter back and takes the gradient there.
        skew = skew + (rotation._project_batch(skew.detach(), eps=rotation.eps) - skew.detach())
    blocks: Tensor = rotation._cayley_batch(
        skew, rotation.block_size, rotation.use_cayley_neumann, rotation.num_cayley_neumann_terms
    )
    return blocks


def refuses_rotation(layer: Any, active: tuple[str, ...], base_layer: nn.Module) -> str | None:
    """Convolutions of more than one position: peft rotates patches that overlap, and adds them up again."""
    if getattr(base_layer, "groups", 1) > 1:
        return "peft rotates all inputs of a grouped convolution together, so there is no one weight of its shape"
    if any(size != 1 for size in getattr(base_layer, "kernel_size", ())):
        return "peft adds up rotated patches that overlap, so there is no one weight: merge_adapter() sets one"
    return None


def butterfly(adapted: Adapted, weight: Tensor) -> Tensor:
    """BOFT: `W0 R^T` with R a product of butterfly factors, and each row scaled."""
    neurons = weight.T if adapted.is_transposed else weight.flatten(1)
    for adapter in adapted.active:
        rotation, scale = adapted.delta(adapter)
        neurons = (neurons @ rotation.T) * scale.view(-1, 1)
    return neurons.T if adapted.is_transposed else neurons.view(weight.shape)
