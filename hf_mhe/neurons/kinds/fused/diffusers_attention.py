"""Attention in diffusers: its heads, and the projections that `fuse_projections()` lays below each other.

Its processors compute with the layers of a module that they are given, so that the module's own code does not say it.
"""

from __future__ import annotations

from typing import Any

from hf_mhe.neurons.kinds.fused.split import Projection, RowSplit


def diffusers_attention(module: Any) -> dict[str, RowSplit]:
    """`to_q`, `to_k`, `to_v` and, for a second stream, `add_q_proj` and so on: of `heads` heads; `to_qkv`, `to_kv`."""
    if not type(module).__module__.startswith("diffusers.models."):
        return {}
    heads, queries = (getattr(module, name, None) for name in ("heads", "inner_dim"))
    if type(heads) is not int or type(queries) is not int or heads < 1 or queries % heads:
        return {}
    head = queries // heads
    keys = getattr(module, "inner_kv_dim", queries)
    q, k, v = (Projection(name, rows, head) for name, rows in (("q", queries), ("k", keys), ("v", keys)))
    whole = {name: RowSplit((Projection("", queries, head),)) for name in ("to_q", "add_q_proj")}
    whole |= {name: RowSplit((Projection("", keys, head),)) for name in ("to_k", "to_v", "add_k_proj", "add_v_proj")}
    return whole | {
        "to_qkv": RowSplit((q, k, v)),
        "to_added_qkv": RowSplit((q, k, v)),
        "to_kv": RowSplit((k, v)),
    }
