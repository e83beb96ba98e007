"""Weights stored otherwise than a model has them: read, or counted as not seen, in which case no check passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hf_mhe
from hf_mhe.errors import MHEError
from tests.analysis.damaged import FLOAT8, inner, linears, program, same, written

Change = Callable[[nn.Linear], object]


def _twice_pruned(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.ln_structured(layer, "weight", 0.2, n=2, dim=1)


IN_PARTS: dict[str, Change] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    "pruned twice": _twice_pruned,
    "weight norm": parametrizations.weight_norm,
    "weight norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "old weight norm": torch.nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("config", [True, False], ids=["config", "bare"])
@pytest.mark.parametrize("kind", IN_PARTS)
def test_a_weight_in_parts_is_the_one_that_the_model_computes_with(
    kind: str, config: bool, bert: Any, bert_folder: Path, tmp_path: Path
) -> None:
    """If this failed, masks and lengths would be measured as layers, or most of a pruned model not at all."""
    model = copy.deepcopy(bert)
    for layer in linears(model):
        IN_PARTS[kind](layer)
    report = hf_mhe.analyze(written(tmp_path / "model", model.state_dict(), bert_folder if config else None))
    live = hf_mhe.analyze(model)
    # Without a config the spectral norm's own factor, and nothing else, may be another: it turns no direction.
    assert same(report, live, 1e-6)
    assert (len(report.groups), report.unseen) == (17, 0.0)
    assert not report.skipped
    if kind.startswith("pruned"):
        pruned = next(group for group in report.groups if group.name == "classifier")
        assert set(pruned.parameters) == {"classifier.weight_orig", "classifier.weight_mask"}


def test_pruning_changes_what_is_measured(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, the two tests above and below would pass on weights whose mask was forgotten."""
    model = copy.deepcopy(bert)
    for layer in linears(model):
        prune.l1_unstructured(layer, "weight", 0.4)
    saved = written(tmp_path / "model", model.state_dict(), bert_folder)
    weight = model.classifier.weight_orig.detach() * model.classifier.weight_mask
    assert hf_mhe.analyze(saved)["classifier"].energy == pytest.approx(float(hf_mhe.hyperspherical_energy(weight)))
    assert not same(hf_mhe.analyze(saved), hf_mhe.analyze(bert), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
def test_a_mask_of_any_dtype_prunes(dtype: torch.dtype, bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, a mask that was stored in one byte would be taken for quantized codes."""
    model = copy.deepcopy(bert)
    for layer in linears(model):
        prune.l1_unstructured(layer, "weight", 0.4)
    state = {k: v.to(dtype) if k.endswith("_mask") else v for k, v in model.state_dict().items()}
    assert same(hf_mhe.analyze(written(tmp_path / "model", state, bert_folder)), hf_mhe.analyze(model))


def test_parameters_of_any_name_are_pruned(tmp_path: Path) -> None:
    """If this failed, the projections of an attention layer or an LSTM would be measured without their mask."""
    torch.manual_seed(0)
    attention, lstm = nn.MultiheadAttention(8, 2), nn.LSTM(6, 5)
    prune.random_unstructured(attention, "in_proj_weight", 0.5)
    prune.random_unstructured(lstm, "weight_hh_l0", 0.5)
    state = {f"{n}.{k}": v for n, m in (("attention", attention), ("lstm", lstm)) for k, v in m.state_dict().items()}
    report = hf_mhe.analyze(written(tmp_path / "model", state, None))
    for name, weight in (
        ("attention.in_proj_weight", attention.in_proj_weight),
        ("lstm.weight_hh_l0", lstm.weight_hh_l0),
    ):
        expected = float(hf_mhe.hyperspherical_energy(weight.detach()[weight.detach().any(dim=1)]))
        assert report[name].energy == pytest.approx(expected, rel=1e-6)
    assert not [group.name for group in report.groups if "mask" in group.name or "orig" in group.name]


def test_a_mask_that_does_not_fit_is_refused(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, a damaged mask would be broadcast over the weight."""
    model = copy.deepcopy(bert)
    prune.l1_unstructured(model.classifier, "weight", 0.4)
    state = {k: v[:1] if k.endswith("_mask") else v for k, v in model.state_dict().items()}
    with pytest.raises(MHEError, match=r"classifier\.weight_mask' has shape \(1, 24\), expected \(5, 24\)"):
        hf_mhe.analyze(written(tmp_path / "model", state, bert_folder))


def test_float8_that_was_only_cast_is_read(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, a model that `.to(float8)` made small would be measured by its embeddings alone."""
    state = inner(bert.state_dict(), lambda tensor: tensor.to(FLOAT8))
    report = hf_mhe.analyze(written(tmp_path / "model", state, bert_folder))
    rounded = copy.deepcopy(bert)
    rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    assert same(report, hf_mhe.analyze(rounded))
    assert report.unseen == 0.0
    assert "14 weights" in report.notes[0]
    assert "float8 without scales" in report.notes[0]
    live = copy.deepcopy(bert)
    for layer in linears(live):
        layer.weight.data = layer.weight.data.to(FLOAT8)
    assert same(hf_mhe.analyze(live), report)


def _with_scales(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    found = dict(state)
    for key, tensor in state.items():
        if tensor.dtype == FLOAT8:
            found[key.replace("weight", name)] = torch.ones(())
    return found


def _cast(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: inner(state, lambda tensor: (tensor * 100).to(dtype))


UNREAD = {
    "int8": (_cast(torch.int8), "I8"),
    "float8 with scales": (lambda s: _with_scales(_cast(FLOAT8)(s), "weight_scale"), "weight_scale beside them"),
    "float8 with input scales": (lambda s: _with_scales(_cast(FLOAT8)(s), "input_scale"), "input_scale beside them"),
    "complex": (_cast(torch.complex64), "complex values"),
    "unknown names": (lambda s: {k.replace("encoder", "enc"): v for k, v in s.items()}, "takes it"),
    "weights left out": (lambda s: {k: v for k, v in s.items() if "encoder" not in k}, "newly initialised"),
}


@pytest.mark.parametrize("config", [True, False], ids=["config", "bare"])
@pytest.mark.parametrize("kind", UNREAD)
def test_what_was_not_seen_is_told_and_fails_the_check(
    kind: str,
    config: bool,
    bert: Any,
    bert_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If this failed, a check in a release would pass on a model of which it saw the embeddings alone."""
    if not config and kind in ("unknown names", "weights left out"):
        pytest.skip("without a config no name is known")
    change, reason = UNREAD[kind]
    state = change(bert.state_dict())
    folder = written(tmp_path / "model", state, bert_folder if config else None)
    report = hf_mhe.analyze(folder)
    (told,) = report.notes
    assert reason in told
    assert "of the weights could not be measured" in told
    total = sum(tensor.numel() for tensor in bert.state_dict().values() if tensor.ndim > 1)
    measured = sum(group.n * group.d for group in report.groups)
    assert report.unseen is not None
    assert report.unseen == pytest.approx(1 - measured / total, abs=0.01)
    assert hf_mhe.EnergyReport.from_dict(report.to_dict()).unseen == report.unseen

    assert program(monkeypatch, "analyze", folder) == 0
    capsys.readouterr()
    assert program(monkeypatch, "analyze", folder, "--fail-above", "30") == 1
    errors = capsys.readouterr().err.splitlines()
    share = f"{report.unseen:.0%} of the weights could not be measured"
    assert len([line for line in errors if "--fail-above 30 does not pass" in line and share in line]) == 1


def test_what_was_not_asked_for_does_not_fail_the_check(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, a check of one layer would fail because of another that the user left out."""
    state = {k: (v * 9).to(torch.int8) if "layer.1." in k and v.ndim > 1 else v for k, v in bert.state_dict().items()}
    folder = written(tmp_path / "model", state, bert_folder)
    assert hf_mhe.analyze(folder, include="*layer.0*").unseen == 0.0
    assert hf_mhe.analyze(folder, include="*layer.0*").notes == ()
    assert hf_mhe.analyze(folder, exclude="*layer.0*").unseen == pytest.approx(6 * 24 * 24 / 1e4, abs=0.9)
    unseen = hf_mhe.analyze(folder, include="*layer.*").unseen
    assert unseen == pytest.approx(0.5, abs=1e-9)


def test_a_small_rest_is_no_considerable_part(bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, every checkpoint whose head of pretraining is left over would fail its check."""
    state = {**load_file(bert_folder / "model.safetensors"), "cls.seq_relationship.weight": torch.randn(2, 24)}
    report = hf_mhe.analyze(written(tmp_path / "model", state, bert_folder))
    assert report.notes == ()
    assert report.unseen is not None
    assert 0 < report.unseen < 0.05


def test_whole_models_have_all_been_seen(bert: Any, bert_folder: Path, minilm_path: Path) -> None:
    """If this failed, checks of models in order would fail."""
    for model in (bert, bert_folder, minilm_path):
        assert hf_mhe.analyze(model, include="*pooler*").unseen == 0.0
    assert hf_mhe.analyze(bert).unseen == 0.0


def test_parameters_of_no_known_use_are_not_seen() -> None:
    """If this failed, a model of the user's own, most of which is not understood, would pass as all measured."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = nn.Linear(8, 6)
            self.mystery = nn.Parameter(torch.randn(30, 20))
            self.phases = nn.Parameter(torch.randn(20, 20, dtype=torch.complex64))

    report = hf_mhe.analyze(Odd())
    assert report.unseen == pytest.approx(1000 / 1048)
    assert "could not be measured" in report.notes[0]
    packed = nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(8, 6)})
    packed["b"].weight = nn.Parameter(torch.randn(6, 8, dtype=torch.complex64))
    assert "complex values (complex64)" in hf_mhe.analyze(packed).skipped["b.weight"]


def test_nothing_but_unread_weights_is_an_error(tmp_path: Path) -> None:
    """If this failed, a checkpoint of nothing but complex numbers would be an empty report."""
    save_file({"a.weight": torch.randn(6, 4, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(MHEError, match="complex values"):
        hf_mhe.analyze(tmp_path)
