"""What MHE says to what DeepSpeed can do and MHE does not support, in processes on CPU.

torchrun --standalone --nproc_per_node 2 -m tests.engines.deepspeed_refusals_worker OUTPUT.pt
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe import MHEConfig, MHEError, MHERegularizer
from tests.engines.launch import leave_processes

CONFIG = MHEConfig()


class Model(nn.Module):
    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.middle = middle
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.body(x))
        if self.middle is not None:
            x = self.middle(x)[0]
        return self.head(x).square().mean()


def initialize(model: nn.Module, stage: int = 1, zero: dict[str, Any] | None = None, **config: Any) -> Any:
    import deepspeed

    keywords = {key: config.pop(key) for key in ("mpu", "mesh_param") if key in config}
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage, **(zero or {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        **config,
    }
    optimizer = None if "optimizer" in config else torch.optim.AdamW(model.parameters(), lr=1e-3)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings, **keywords)[0]


def bind(engine: nn.Module) -> None:
    MHERegularizer(engine, CONFIG)


def use(regularizer: MHERegularizer, engine: Any, **told: Any) -> None:
    engine.backward(regularizer(engine(torch.ones(4, 6)), **told))


def pipeline() -> None:
    from deepspeed.pipe import PipelineModule

    layers = [nn.Linear(6, 8), nn.Linear(8, 4)]
    bind(initialize(PipelineModule(layers, num_stages=2, loss_fn=nn.MSELoss()), 0))


def hybrid() -> None:
    bind(initialize(Model(), 3, hybrid_engine={"enabled": True}))


def tensor_parallel() -> None:
    alone = [torch.distributed.new_group([rank]) for rank in range(2)]

    class Unit:
        """Both ranks are one model's, as Megatron says it."""

        get_model_parallel_world_size = get_tensor_model_parallel_world_size = staticmethod(lambda: 2)
        get_model_parallel_rank = get_tensor_model_parallel_rank = staticmethod(torch.distributed.get_rank)
        get_model_parallel_group = get_tensor_model_parallel_group = staticmethod(lambda: None)
        get_data_parallel_world_size = staticmethod(lambda: 1)
        get_data_parallel_rank = staticmethod(lambda: 0)
        get_data_parallel_group = staticmethod(lambda: alone[torch.distributed.get_rank()])

    bind(initialize(Model(), 0, mpu=Unit()))


def sequence_parallel() -> None:
    bind(initialize(Model(), 1, mesh_param=(1, 2)))


def experts() -> None:
    from deepspeed.moe.layer import MoE

    bind(initialize(Model(MoE(8, nn.Linear(8, 8), num_experts=2, ep_size=1)), 0))


def zenflow() -> None:
    zero = {"offload_optimizer": {"device": "cpu"}, "zenflow": {"topk_ratio": 0.1, "update_interval": 2}}
    bind(initialize(Model(), 2, zero, optimizer={"type": "AdamW", "params": {"lr": 1e-3}}))


def deepcompile() -> None:
    bind(initialize(Model(), 1, compile={"deepcompile": True}))


def sums() -> None:
    bind(initialize(Model(), 1, bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"}))


def older() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    engine, method = initialize(Model()), DeepSpeedEngine.managed_gradient_accumulation
    del DeepSpeedEngine.managed_gradient_accumulation
    try:
        bind(engine)
    finally:
        DeepSpeedEngine.managed_gradient_accumulation = method


def unmanaged() -> None:
    engine = initialize(Model(), managed_gradient_accumulation=False)
    use(MHERegularizer(engine, CONFIG), engine)


def coalesced() -> None:
    engine = initialize(Model())
    regularizer = MHERegularizer(engine, CONFIG)
    with engine.coalesce_grad_reduction():
        use(regularizer, engine)


def last_without_sync() -> None:
    engine = initialize(Model())
    regularizer = MHERegularizer(engine, CONFIG)
    with engine.no_sync():
        use(regularizer, engine, sync=True)


def part(stage: int) -> Callable[[], None]:
    def bound_to_a_layer() -> None:
        model = Model()
        regularizer = MHERegularizer(model.body, CONFIG)
        use(regularizer, initialize(model, stage, gradient_accumulation_steps=2))

    return bound_to_a_layer


CASES: dict[str, tuple[Callable[[], None], str]] = {
    "hybrid": (hybrid, "hybrid engine"),
    "experts": (experts, "expert parallel"),
    "zenflow": (zenflow, "ZenFlow"),
    "deepcompile": (deepcompile, "DeepCompile"),
    "sums": (sums, "bf16.immediate_grad_update to true"),
    "older": (older, "pip install -U 'deepspeed>="),
    "unmanaged": (unmanaged, "regularizer(loss, sync=...)"),
    "coalesced": (coalesced, "coalesce_grad_reduction"),
    "last without sync": (last_without_sync, "no_sync"),
    **{f"part {stage}": (part(stage), "MHERegularizer(engine, config)") for stage in range(4)},
    # Last, for DeepSpeed keeps what it is told of the ranks.
    "sequence parallel": (sequence_parallel, "sequence parallel"),
    "pipeline": (pipeline, "pipeline parallel"),
    "tensor parallel": (tensor_parallel, "tensor parallel"),
}
"""By name, what is tried, and what is said to it."""


def said(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except MHEError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    deepspeed.init_distributed("gloo")
    found = {name: said(CASES[name][0]) for name in sys.argv[2:] or CASES}
    if int(os.environ["RANK"]) == 0:
        torch.save(found, sys.argv[1])
    leave_processes()
