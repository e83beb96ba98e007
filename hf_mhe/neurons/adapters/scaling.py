"""Methods that multiply, replace or leave the entries of a weight, in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_mhe.neurons.adapters.adapted import Adapted
from hf_mhe.neurons.model.unwrap import bare


def unchanged(adapted: Adapted, weight: Tensor) -> Tensor:
    """The weight as it is, of methods that train a bias alone."""
    return weight


def ia3(adapted: Adapted, weight: Tensor) -> Tensor:
    """Inputs scaled where the layer is feed-forward, outputs elsewhere: Liu et al., "(IA)3", arXiv:2205.05638."""
    for adapter in adapted.active:
        scale = adapted.own[f"ia3_l.{adapter}"].flatten()
        axis = 1 if adapted.layer.is_feedforward else 0
        if adapted.is_transposed:
            axis = 1 - axis
        groups = getattr(bare(adapted.layer), "groups", 1) if axis == 1 else 1
        # Each group of a convolution has inputs, and so scales, of its own: (groups, out / groups, in / groups, ...).
        shape = [groups, *(-1 if at == axis else 1 for at in range(weight.ndim))]
        weight = (weight.unflatten(0, (groups, -1)) * scale.view(shape)).flatten(0, 1)
    return weight


def hadamard(adapted: Adapted, weight: Tensor) -> Tensor:
    """`W + W0 * (B A)`, entry by entry: HiRA."""
    for adapter in adapted.active:
        weight = weight + adapted.original * adapted.delta(adapter)
    return weight


def loha(adapted: Adapted, weight: Tensor) -> Tensor:
    """`W + scaling * (A1 B1) * (A2 B2)`, entry by entry: Hyeon-Woo et al., "FedPara", arXiv:2108.06098.

    Written out, since the backward pass of peft's own product is wrong for convolutions with `hada_t1`.
    """
    for adapter in adapted.active:
        factors = [_low_rank(adapted.own, number, adapter) for number in (1, 2)]
        weight = weight + (adapted.layer.scaling[adapter] * factors[0] * factors[1]).view(weight.shape)
    return weight


def _low_rank(own: Mapping[str, Tensor], number: int, adapter: str) -> Tensor:
    a, b = own[f"hada_w{number}_a.{adapter}"], own[f"hada_w{number}_b.{adapter}"]
    core = own.get(f"hada_t{number}.{adapter}")
    return a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def replaced_rows(adapted: Adapted, weight: Tensor) -> Tensor:
    """The rows of chosen tokens replaced by trained ones: peft's trainable tokens."""
    for adapter in adapted.active:
        index = torch.as_tensor(adapted.layer.token_indices[adapter], device=weight.device)
        weight = weight.index_copy(0, index, adapted.own[f"trainable_tokens_delta.{adapter}"].to(weight.dtype))
    return weight
