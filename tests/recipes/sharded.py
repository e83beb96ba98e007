"""Recipes on FSDP2 or ZeRO-2 in processes on CPU, where `accelerate launch` refuses both.

torchrun --standalone --nproc_per_node 2 -m tests.recipes.sharded fsdp2|zero2 JOBS.json OUTCOMES.jsonl

The scripts are as they stand; what is changed is around them. Accelerate is told after it is made what it decides for
itself on a GPU, and the processes stay connected from one script to the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tests.engines.launch import leave_processes
from tests.recipes.in_turn import run_in_turn

make, backward, gather = Accelerator.__init__, Accelerator.backward, Accelerator.get_state_dict


def on_fsdp2(self: Accelerator, **options: Any) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    from tests.engines.fsdp2_worker import as_on_a_gpu

    make(self, **options)
    settings = {"fsdp_version": 2, "auto_wrap_policy": "no_wrap", "state_dict_type": "FULL_STATE_DICT"}
    as_on_a_gpu(self, FullyShardedDataParallelPlugin(**settings))


def gather_whole(self: Accelerator, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Gather what accelerate leaves in shards where it found no GPU when it was made."""
    state = gather(self, *args, **kwargs)
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def on_zero2(self: Accelerator, **options: Any) -> None:
    from accelerate.utils import DeepSpeedPlugin

    from tests.engines.deepspeed_faces_worker import settings

    PartialState(cpu=True)  # connected as Trainer has them, before DeepSpeed is asked for
    config = settings(2)
    if "gradient_accumulation_steps" in options:  # made by a loop: accelerate would clip, and one process does not
        config["gradient_clipping"] = 0.0
    make(self, **{**options, "cpu": False, "deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=config)})


def engine_of(name: str) -> tuple[Callable[..., None], Callable[[Any], bool]]:
    """How accelerate is made on an engine, and whether a model is on it."""
    if name == "fsdp2":
        return on_fsdp2, lambda model: isinstance(model, FSDPModule)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    deepspeed.init_distributed("gloo")
    engine = deepspeed.DeepSpeedEngine
    return on_zero2, lambda model: isinstance(model, engine) and model.zero_optimization_stage() == 2


def run_sharded(engine: str, jobs: Path, outcomes: Path) -> None:
    """Run every job on an engine, and see that what it trained was sharded."""
    made, is_sharded = engine_of(engine)
    steps = 0

    def backward_sharded(self: Accelerator, *args: Any, **kwargs: Any) -> None:
        nonlocal steps
        assert self._models
        assert all(map(is_sharded, self._models)), [type(model) for model in self._models]
        steps += 1
        backward(self, *args, **kwargs)

    @contextmanager
    def on_the_engine() -> Iterator[None]:
        nonlocal steps
        steps = 0
        yield
        assert steps, "nothing was trained by accelerate"

    Accelerator.__init__, Accelerator.backward, Accelerator.get_state_dict = made, backward_sharded, gather_whole
    PartialState.destroy_process_group = lambda self, group=None: None
    run_in_turn(jobs, outcomes, on_the_engine)
    leave_processes()


if __name__ == "__main__":
    run_sharded(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
