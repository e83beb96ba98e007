"""A recipe on FSDP2 or ZeRO-2 in processes on CPU, where `accelerate launch` refuses both.

torchrun --standalone --nproc_per_node 2 -m tests.recipes.sharded fsdp2|zero2 SCRIPT ARGUMENTS
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer


def on_fsdp2() -> None:
    """Let accelerate decide for FSDP2 as it does on a GPU, and see that the model comes out sharded."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    from tests.engines.fsdp2_worker import as_on_a_gpu

    create, step = Trainer.create_accelerator_and_postprocess, Trainer.training_step

    def create_on_a_gpu(self: Trainer) -> None:
        create(self)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", state_dict_type="FULL_STATE_DICT"
        )
        as_on_a_gpu(self.accelerator, plugin)
        self.is_fsdp_enabled = True

    def step_sharded(self: Trainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(model, FSDPModule)
        return step(self, model, *args, **kwargs)

    gather = Accelerator.get_state_dict

    def gather_whole(self: Accelerator, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Gather what accelerate leaves in shards where it found no GPU when it was made."""
        state = gather(self, *args, **kwargs)
        return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}

    Accelerator.get_state_dict = gather_whole
    Trainer.create_accelerator_and_postprocess = create_on_a_gpu
    Trainer.training_step = step_sharded


def on_zero2() -> list[str]:
    """The arguments for DeepSpeed, whose processes are connected."""
    import deepspeed

    from tests.engines.deepspeed_faces_worker import settings

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    deepspeed.init_distributed("gloo")
    file = Path(tempfile.gettempdir()) / f"zero2-{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['RANK']}.json"
    file.write_text(json.dumps(settings(2)))
    return ["--deepspeed", str(file), "--ddp_backend", "gloo"]


if __name__ == "__main__":
    engine, script, *arguments = sys.argv[1:]
    if engine == "fsdp2":
        on_fsdp2()
    else:
        arguments += on_zero2()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
