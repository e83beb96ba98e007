"""Fused projections of state spaces and short convolutions in transformers, read as the mixers' forward splits them.

As in Mamba's papers: x is the input of the state space, z the gate, B and C its input and output, dt the time step.
"""

from __future__ import annotations

from typing import Any

from hf_mhe.neurons.kinds.fused.split import Projection, RowSplit, splits


@splits("falcon_mamba.FalconMambaMixer", "jamba.JambaMambaMixer", "mamba.MambaMixer")
def mamba(module: Any) -> dict[str, RowSplit]:
    """`in_proj`: x, then z; `x_proj`: dt, B, C."""
    size, state = module.intermediate_size, module.ssm_state_size
    return {
        "in_proj": RowSplit((Projection("x", size), Projection("z", size))),
        "x_proj": RowSplit((Projection("dt", module.time_step_rank), Projection("B", state), Projection("C", state))),
    }


@splits("zamba.ZambaMambaMixer")
def zamba(module: Any) -> dict[str, RowSplit]:
    """`in_proj`, viewed as (channels, 2): x and z in turn."""
    return {"in_proj": RowSplit((Projection("x", 1), Projection("z", 1)), module.intermediate_size)}


@splits(
    "bamba.BambaMixer",
    "falcon_h1.FalconH1Mixer",
    "granitemoehybrid.GraniteMoeHybridMambaLayer",
    "mamba2.Mamba2Mixer",
    "nemotron_h.NemotronHMamba2Mixer",
    "zamba2.Zamba2MambaMixer",
)
def mamba2(module: Any) -> dict[str, RowSplit]:
    """`in_proj`: z, x, B, C, dt."""
    size, state = module.intermediate_size, module.n_groups * module.ssm_state_size
    parts = (
        Projection("z", size),
        Projection("x", size),
        Projection("B", state),
        Projection("C", state),
        Projection("dt", module.num_heads),
    )
    return {"in_proj": RowSplit(parts)}


@splits(
    "lfm2.Lfm2ShortConv",
    "lfm2_moe.Lfm2MoeShortConv",
    "lfm3.Lfm3ShortConv",
    "lfm3_vl.Lfm3VlVisionShortConv",
)
def short_convolution(module: Any) -> dict[str, RowSplit]:
    """`in_proj`: B, C, x, where B gates what goes into the convolution and C what comes out of it."""
    size = module.in_proj.out_features // 3
    return {"in_proj": RowSplit(tuple(Projection(name, size) for name in ("B", "C", "x")))}
