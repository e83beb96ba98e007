"""Small models of real architectures, built by transformers from small configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.neurons.families.table import FAMILIES


@pytest.fixture(params=sorted(FAMILIES))
def architecture(request: pytest.FixtureRequest) -> str:
    """Each family's name in turn."""
    return request.param


@pytest.fixture(scope="session")
def build() -> Callable[..., nn.Module]:
    """build(name, device="cpu", **changes): the small model of a family, randomly initialised from a seed."""

    def small(name: str, device: str = "cpu", **changes: Any) -> nn.Module:
        return FAMILIES[name].build(device, **changes)

    return small
