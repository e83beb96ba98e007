"""Two reports on the same weights, one read from a model and one from its checkpoint."""

from __future__ import annotations

import pytest

from hf_mhe.analysis import EnergyReport


def assert_alike(module: EnergyReport, checkpoint: EnergyReport) -> None:
    """The same groups, each with the same shape, kind, role, dead rows and numbers, and nothing to remark."""
    assert checkpoint.notes == ()
    assert {group.name for group in checkpoint.groups} == {group.name for group in module.groups}
    assert len(checkpoint.groups) == len(module.groups)
    for group in module.groups:
        stored = checkpoint[group.name]
        assert (stored.kind, stored.role, stored.n, stored.d) == (group.kind, group.role, group.n, group.d)
        assert (stored.dead_rows, stored.stack) == (group.dead_rows, group.stack)
        assert stored.energy == pytest.approx(group.energy, rel=1e-6), group.name
        assert stored.max_cosine == pytest.approx(group.max_cosine, abs=1e-6), group.name
