"""A saved BERT whose tensors are written again, otherwise."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_mhe.analysis import EnergyReport


def written(folder: Path, state: Mapping[str, Tensor], config: Path | None) -> Path:
    """A folder with these tensors, and the config.json of another, if any."""
    folder.mkdir(parents=True)
    # Tied tensors share their memory, which safetensors does not store.
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    if config is not None:
        shutil.copy(config / "config.json", folder)
    return folder


def inner(state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A state dict with all matrices but the embeddings changed."""
    return {k: change(v) if v.ndim > 1 and "embeddings" not in k else v for k, v in state.items()}


def linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a model."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def energies(report: EnergyReport) -> dict[str, float]:
    """The energy of each group by its name."""
    return {group.name: group.energy for group in report.groups}


def same(report: EnergyReport, other: EnergyReport, relative: float = 0.0) -> bool:
    """Whether two reports have the same groups, with energies that differ by no more than rounding."""
    ours, theirs = energies(report), energies(other)
    return ours.keys() == theirs.keys() and all(
        theirs[name] == pytest.approx(energy, rel=relative, abs=0.0) for name, energy in ours.items()
    )


def program(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of `hf-mhe` with these arguments, run in this process."""
    from hf_mhe.cli.entry import main

    monkeypatch.setattr(sys, "argv", ["hf-mhe", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


FLOAT8 = torch.float8_e4m3fn
