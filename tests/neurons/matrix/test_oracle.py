"""The matrix's own checks find what they are there for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_mhe.neurons import Coverage, coverage
from hf_mhe.neurons.layout import Rows, Take, Then
from tests.neurons.matrix.oracle import faults


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.back = nn.ConvTranspose1d(4, 6, 3)
        self.temperature = nn.Parameter(torch.ones(1, 1))

    def get_input_embeddings(self) -> nn.Module:
        return self.table


@pytest.fixture
def found() -> tuple[nn.Module, Coverage]:
    with torch.device("meta"):
        model = Net()
    return model, coverage(model)


def said(model: nn.Module, found: Coverage, **changes: object) -> list[str]:
    """What is found wrong once the group of a name is changed, or left out where the change is None."""
    groups = []
    for group in found.groups:
        change = changes.get(group.name.replace(".", "_"), {})
        if change is not None:
            groups.append(replace(group, **change))  # type: ignore[arg-type]
    return [*faults(model, replace(found, groups=groups))]


def test_nothing_is_wrong_with_what_is_right(found: tuple[nn.Module, Coverage]) -> None:
    assert said(*found) == []


def test_lost_and_doubled_rows_are_seen(found: tuple[nn.Module, Coverage]) -> None:
    rows = "attention.in_proj_weight (12, 4)"
    (lost,) = said(*found, attention_in_proj_k=None)
    assert lost.startswith(f"{rows}: 32 of its 48 elements")
    (doubled,) = said(*found, attention_in_proj_k={"layout": Rows(cut=(0, 3, 4))})
    assert doubled.startswith(f"{rows}: 48 of its 48 elements")
    (across,) = said(*found, back={"layout": Then(Rows(neuron_axis=1), Take(0, 5)), "n": 5})
    assert "60 of its 72 elements" in across
    assert said(*found, back={"n": 7}) == ["group back is (6, 12), not (7, 12)"]


def test_what_is_not_accounted_for_is_seen(found: tuple[nn.Module, Coverage]) -> None:
    model, right = found
    assert said(model, replace(right, skipped={})) == ["parameter temperature is neither in a group nor skipped"]
    both = {**right.skipped, "table.weight": "one neuron only"}
    assert said(model, replace(right, skipped=both)) == ["parameter table.weight is both in a group and skipped"]
    idle = dict.fromkeys(right.skipped, "unknown")
    assert said(model, replace(right, skipped=idle)) == [
        "parameter temperature is skipped without a reason: 'unknown'"
    ]


def test_wrong_roles_are_seen(found: tuple[nn.Module, Coverage]) -> None:
    (fault,) = said(*found, table={"role": "hidden"})
    assert fault == "table.weight, of get_input_embeddings(), has the role hidden, not embedding"
    (fault,) = said(*found, table={"apart": "positions"})
    assert fault == "table.weight, of get_input_embeddings(), is kept apart: positions"
