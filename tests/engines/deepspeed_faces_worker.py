"""DeepSpeed through accelerate and through Trainer, in processes on CPU.

torchrun --standalone --nproc_per_node 2 -m tests.engines.deepspeed_faces_worker OUTPUT.pt
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from tests.engines.launch import leave_processes
from tests.training import worker

KINDS = [
    *(f"accelerate before {stage} 2" for stage in range(4)),
    *(f"accelerate after {stage} {accumulation}" for stage, accumulation in ((0, 4), (2, 4), (3, 1))),
    "accelerate short 2 2",
    *(f"trainer tiny {stage} 2" for stage in range(4)),
    *(f"trainer gpt2 {stage} 2" for stage in range(4)),
    "trainer unused 2 1",
    "trainer loaded 3 2",  # transformers partitions the weights as it loads them
]
SHORT = 40  # examples, of which the last accumulation has not enough


def run(kind: str, penalty: bool, stage: int | None) -> dict[str, Tensor]:
    """One training of `worker`'s, in float32; without DeepSpeed where the stage is None."""
    face, name, _, accumulation = kind.split()
    if face == "trainer":
        options: dict[str, Any] = {}
        if stage is not None:
            import deepspeed

            deepspeed.init_distributed(
                "gloo"
            )  # on a GPU Trainer does it, and transformers loads models that it divides
            options = {"deepspeed": settings(stage), "ddp_backend": "gloo", "whole": whole}
        return worker.by_trainer(name, penalty, int(accumulation), dtype=torch.float32, **options)
    options = {"count": SHORT} if name == "short" else {}
    if stage is not None:
        options.update(make_accelerator=functools.partial(make_accelerator, stage), whole=whole)
    bind = "before" if name == "before" else "after"
    return worker.by_accelerate(penalty, int(accumulation), bind, dtype=torch.float32, **options)


def settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's config; accelerate and Trainer fill in what is `auto`."""
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 120, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }


def make_accelerator(stage: int, **options: Any) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    # DeepSpeed would clip by default, which one process does not.
    told = {"gradient_accumulation_steps": options["gradient_accumulation_steps"], "gradient_clipping": 0.0}
    plugin = DeepSpeedPlugin(hf_ds_config={**settings(stage), **told})
    return Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")], **options)


def whole(model: nn.Module) -> dict[str, Tensor]:
    import deepspeed

    with deepspeed.zero.GatheredParameters([value for value in model.parameters() if hasattr(value, "ds_id")]):
        return worker.whole(model)


if __name__ == "__main__":
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    kinds = sys.argv[2:] or KINDS
    results = {
        f"{kind} {penalty}": run(kind, penalty, int(kind.split()[2])) for kind in kinds for penalty in (False, True)
    }
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()
