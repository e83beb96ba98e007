"""Attention's projections: `nn.MultiheadAttention`, and the heads of projections that transformers keeps apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from hf_mhe.neurons.kinds.fused.split import Projection, RowSplit
from hf_mhe.neurons.kinds.registry import Piece, reads
from hf_mhe.neurons.layout import ROWS, Rows


@reads(nn.MultiheadAttention)
def multihead_attention(module: nn.Module) -> Iterator[Piece]:
    """`in_proj_weight` (3 · embed, embed) holds q, k, v below each other; with other k, v sizes they are apart."""
    attention = cast(nn.MultiheadAttention, module)
    size, head = attention.embed_dim, attention.head_dim
    for index, projection in enumerate("qkv"):
        layout = Rows(cut=(0, index * size, size))
        yield Piece("in_proj_weight", "multihead_attention", layout, f"in_proj.{projection}", head)
        yield Piece(f"{projection}_proj_weight", "multihead_attention", ROWS, f"in_proj.{projection}", head)


# What the attention modules of transformers call their three projections, and the sizes and numbers of heads.
_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
)
_HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "num_kv_heads")


def unfused(module: Any) -> dict[str, RowSplit]:
    """Three Linear layers whose rows are (heads, head): where the module's own numbers make up the rows.

    It says the head's size, and either how many heads there are or how many query heads share a key.
    """
    names = next((names for names in _PROJECTIONS if all(hasattr(module, name) for name in names)), None)
    if names is None or not type(module).__module__.startswith("transformers.models."):
        return {}
    size = next((value for name in _HEAD_SIZES if (value := _number(module, name))), 0)
    rows = {name: _number(getattr(module, name), "out_features") for name in names}
    if size == 0 or any(count == 0 or count % size for count in rows.values()):
        return {}
    queries, keys, _ = rows.values()
    shared = queries == keys * _number(module, "num_key_value_groups")
    counts = {_number(module, name) for name in _HEAD_COUNTS}
    return {
        name: RowSplit((Projection("", count, size),))
        for name, count in rows.items()
        if shared or count // size in counts
    }


def _number(module: Any, name: str) -> int:
    value = getattr(module, name, 0)
    return value if isinstance(value, int) else 0
