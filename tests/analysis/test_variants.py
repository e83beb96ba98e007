"""The paper's twelve potentials in one analysis: each as it is alone, and none unless it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hf_mhe


def test_each_variant_is_the_analysis_under_it() -> None:
    """If this fails, `--variants` gives other numbers than twelve analyses one after the other."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 60), torch.nn.Linear(60, 7))
    model[0].weight.data[3] = model[0].weight.data[9] + 1e-4
    report = hf_mhe.analyze(model, variants=True)
    for group in report.groups:
        assert len({variant.label for variant in group.variants}) == 12
        for variant in group.variants:
            alone = hf_mhe.analyze(model, s=variant.s, distance=variant.distance, space=variant.space)[group.name]
            for key in ("energy", "score", "shared_direction", "concentration", "close_pairs"):
                assert getattr(variant, key) == pytest.approx(getattr(alone, key), rel=1e-5, abs=1e-9), (variant, key)
            parts = variant.shared_direction + variant.concentration + variant.close_pairs
            assert parts == pytest.approx(variant.energy - variant.expected, abs=1e-6)


def test_they_come_back_from_a_file_and_stand_on_the_page(tmp_path: Path) -> None:
    """If this fails, what took a walk to measure is lost in the report."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 6))  # whose expectation diverges for some of them
    report = hf_mhe.analyze(model, variants=True)
    assert hf_mhe.EnergyReport.load(report.save(tmp_path / "r.json")) == report
    assert 'id="variants"' in report.to_html()
    assert 'id="variants"' not in hf_mhe.analyze(model).to_html()
    assert hf_mhe.analyze(model).groups[0].variants == ()
