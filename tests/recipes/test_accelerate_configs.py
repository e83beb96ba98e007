"""The configs of accelerate: each is what accelerate's own loader and launcher make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate_configs"
EXPECTED: dict[str, dict[str, Any]] = {
    "single_process": {"distributed_type": "NO", "num_processes": 1},
    "multi_gpu": {"distributed_type": "MULTI_GPU", "num_processes": 8},
    "multi_node": {"distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2},
    "fsdp2": {"distributed_type": "FSDP", "fsdp_config.fsdp_version": 2},
    "tensor_parallel": {"distributed_type": "FSDP", "parallelism_config.parallelism_config_tp_size": 4},
    **{f"zero{stage}": {"distributed_type": "DEEPSPEED", "deepspeed_config.zero_stage": stage} for stage in (1, 2, 3)},
}


def test_every_config_is_there() -> None:
    """A launch line of a recipe would name a file that is not there, or a file would not be tested."""
    assert {file.stem for file in CONFIGS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_a_config_as_it_is_meant(name: str) -> None:
    """Accelerate would refuse the file, or launch something else than its name says."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    for key, value in EXPECTED[name].items():
        part, _, inner = key.partition(".")
        found = getattr(config, part)
        found = found[inner] if inner else getattr(found, "value", found)
        assert found == value, key
    sizes = [value for key, value in config.parallelism_config.items() if key.endswith("_size")]
    if sizes:
        product = 1
        for size in sizes:
            product *= size
        assert product == config.num_processes, "the mesh is not of all processes"


@pytest.mark.parametrize("name", [name for name in EXPECTED if not name.startswith("zero")])
def test_accelerates_launcher_takes_every_value(name: str) -> None:
    """A value would be of a kind that the launcher drops without a word, such as a key that it does not know."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"])
    args, config, _ = _validate_launch_command(args)
    assert args.num_processes == config.num_processes
    assert args.use_fsdp == (name in ("fsdp2", "tensor_parallel"))
    for part in (config.fsdp_config, config.parallelism_config):
        for key, value in part.items():
            assert getattr(args, key) == value, key
