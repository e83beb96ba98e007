"""The analyzer's numbers, against published ones, a slow loop, and each other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hf_mhe
from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError
from tests.oracle import slow_energy


def test_reference_layers_of_minilm(minilm_path: Path) -> None:
    """If this fails, a user's report on real weights does not say what the dense formula says of them."""
    names = ["encoder.layer.0.intermediate.dense", "encoder.layer.5.output.dense"]
    report = hf_mhe.analyze(minilm_path, include=names)
    first, last = report[names[0]], report[names[1]]
    assert (first.n, first.d, first.role, first.kind) == (1536, 384, "hidden", "linear")
    assert (last.n, last.d) == (384, 1536)
    assert round(first.energy, 4) == 0.5191
    assert round(last.energy, 4) == 0.4998
    assert first.expected == pytest.approx(382 / (2 * 381), abs=1e-9)
    assert last.expected == pytest.approx(1534 / (2 * 1533), abs=1e-9)
    assert round(first.max_cosine, 3) == 0.954
    assert round(last.max_cosine, 3) == 0.736
    assert first.lower_bound < first.expected < first.energy
    assert last.lower_bound < last.energy < last.expected
    assert first.score == pytest.approx((first.energy - first.lower_bound) / (first.expected - first.lower_bound))
    assert [group.name for group in report.groups] == names  # most redundant first


@pytest.mark.slow
def test_minilm_in_memory_and_on_disk_agree(minilm_path: Path) -> None:
    """If this fails, the same weights get different numbers depending on where they lie."""
    from transformers import AutoModel

    exclude = "embeddings.word_embeddings"
    on_disk = hf_mhe.analyze(minilm_path, exclude=exclude)
    in_memory = hf_mhe.analyze(AutoModel.from_pretrained(minilm_path), exclude=exclude)
    assert len(on_disk.groups) == 39
    assert {group.name for group in on_disk.groups} == {group.name for group in in_memory.groups}
    for group in on_disk.groups:
        twin = in_memory[group.name]
        assert (group.n, group.d, group.kind, group.role) == (twin.n, twin.d, twin.kind, twin.role)
        assert group.energy == pytest.approx(twin.energy, rel=1e-6)
        assert group.max_cosine == pytest.approx(twin.max_cosine, abs=1e-6)
        assert group.nearest_pair == twin.nearest_pair


def test_energy_is_the_definitions(bert: nn.Module, report: EnergyReport) -> None:
    """If this fails, the report's energy is not the mean of 1/ρ² over the ordered pairs of the layer's rows."""
    name = "bert.encoder.layer.1.intermediate.dense"
    assert report[name].energy == pytest.approx(slow_energy(bert.get_submodule(name).weight.detach()).item(), rel=1e-6)


def test_one_file_shards_and_memory_agree(bert: nn.Module, bert_folder: Path, sharded_folder: Path) -> None:
    """If this fails, how a checkpoint was cut into files changes what is said of it."""
    reports = [
        hf_mhe.analyze(given) for given in (bert, bert_folder, sharded_folder, bert_folder / "model.safetensors")
    ]
    rows = [[(group.name, group.role, group.kind, group.n, group.d) for group in report.groups] for report in reports]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    for report in reports[1:]:
        for group in report.groups:
            assert group.energy == pytest.approx(reports[0][group.name].energy, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_dtypes_are_walked_as_what_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    """If this fails, a half-precision checkpoint is analyzed in half precision."""
    weight = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"layer.weight": weight}, tmp_path / "model.safetensors")
    report = hf_mhe.analyze(tmp_path)
    assert report.groups[0].energy == pytest.approx(slow_energy(weight).item(), rel=1e-6)


def test_roles_and_tied_weights_are_the_models(report: EnergyReport) -> None:
    """If this fails, a classifier's last layer or an embedding is taken for a hidden layer."""
    assert report["classifier"].role == "output"
    assert report["bert.embeddings.word_embeddings"].role == "embedding"
    assert report["bert.encoder.layer.0.attention.self.query"].role == "hidden"


def test_dead_rows_are_counted_and_named(report: EnergyReport) -> None:
    """If this fails, a row of zeros, which has no direction, takes part in the energy or goes unmentioned."""
    words = report["bert.embeddings.word_embeddings"]
    assert (words.n, words.dead, words.dead_rows) == (89, 1, (0,))


def test_duplicates_leave_the_numbers_finite() -> None:
    """If this fails, one pair of equal neurons turns a whole layer's energy into infinity."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 20)
    with torch.no_grad():
        layer.weight[7] = 4 * layer.weight[2]
        layer.weight[9] = layer.weight[4] + 1e-3 * torch.randn(8)
    group = hf_mhe.analyze(nn.Sequential(layer)).groups[0]
    assert (group.coincident, group.near_duplicates, group.nearest_pair) == (1, 2, (2, 7))
    assert math.isfinite(group.energy)
    assert group.max_cosine == pytest.approx(1.0, abs=1e-6)


def test_score_is_not_made_up_where_the_expectation_diverges() -> None:
    """If this fails, a 3 × 3 convolution's filters in two dimensions get a score out of an infinite expectation."""
    torch.manual_seed(0)
    report = hf_mhe.analyze(nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 6)))
    assert [group.name for group in report.groups] == ["1", "0"]
    assert report["0"].expected == math.inf
    assert report["0"].score is None
    assert report["0"].z is None
    assert report.summary.mean_score == report["1"].score


def test_histogram_counts_every_pair_once(report: EnergyReport) -> None:
    """If this fails, pairs are lost or doubled between the walk and the report."""
    for group in report.groups:
        assert sum(group.histogram) == group.n * (group.n - 1) // 2


def test_other_potentials_reach_the_walk(bert: nn.Module) -> None:
    """If this fails, the options are shown in the report but not computed with."""
    name = "bert.pooler.dense"
    report = hf_mhe.analyze(bert, s=1.0, distance="angular", space="half", include=name)
    weight = bert.get_submodule(name).weight
    expected = hf_mhe.hyperspherical_energy(weight, 1.0, distance="angular", space="half", walk="dense")
    assert report[name].energy == pytest.approx(expected.item(), rel=1e-5)
    assert (report.s, report.distance, report.space) == (1.0, "angular", "half")


def test_progress_tells_each_group_as_it_begins(bert: nn.Module) -> None:
    """If this fails, a progress bar stands still, or never reaches its end."""
    calls: list[tuple[int, int, str]] = []
    report = hf_mhe.analyze(bert, progress=lambda done, total, name: calls.append((done, total, name)))
    total = len(report.groups)
    assert [done for done, _, _ in calls] == list(range(total + 1))
    assert {told for _, told, _ in calls} == {total}
    assert {name for _, _, name in calls} == {group.name for group in report.groups}


def test_nothing_is_left_unaccounted(bert: nn.Module) -> None:
    """If this fails, a parameter that patterns leave out vanishes from the report in silence."""
    report = hf_mhe.analyze(bert, include="bert.encoder.*")
    told = {name for group in report.groups for name in group.parameters} | set(report.skipped)
    assert told >= {name for name, parameter in bert.named_parameters() if parameter.dim() >= 2}
    assert "include" in report.skipped["classifier.weight"]


def test_groups_of_one_neuron_are_skipped_with_the_reason() -> None:
    """If this fails, a regression head with one output stops the analysis of its whole model."""
    torch.manual_seed(0)
    half_dead = nn.Linear(4, 3)
    nn.init.zeros_(half_dead.weight[:2])
    report = hf_mhe.analyze(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1), half_dead))
    assert [group.name for group in report.groups] == ["0"]
    assert "one neuron" in report.skipped["1.weight"]
    assert "1 of 3" in report.skipped["2.weight"]


def test_a_model_without_pairs_is_an_error() -> None:
    """If this fails, an empty report looks like a model without redundancy."""
    with pytest.raises(MHEError, match=r"one neuron only"):
        hf_mhe.analyze(nn.Sequential(nn.Linear(4, 1)))
    with pytest.raises(MHEError, match=r"no parameter of two or more dimensions"):
        hf_mhe.analyze(nn.LayerNorm(4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_names_its_tensor(value: float, tmp_path: Path) -> None:
    """If this fails, a user with a diverged checkpoint does not learn which layer diverged."""
    tensors = {"good.weight": torch.randn(6, 4), "bad.weight": torch.randn(6, 4)}
    tensors["bad.weight"][2, 3] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MHEError, match=r"'bad\.weight'.*first at \[2, 3\]"):
        hf_mhe.analyze(tmp_path)
    model = nn.ModuleDict({"good": nn.Linear(4, 6), "bad": nn.Linear(4, 6)})
    with torch.no_grad():
        model["bad"].weight[2, 3] = value
    with pytest.raises(MHEError, match=r"bad\.weight.*first at \[2, 3\]"):
        hf_mhe.analyze(model)


def test_gradients_are_neither_made_nor_needed(bert: nn.Module) -> None:
    """If this fails, an analysis in the middle of training keeps a graph alive or clears gradients."""
    bert.get_submodule("classifier").weight.grad = torch.ones(5, 24)
    hf_mhe.analyze(bert, include="classifier")
    gradient = bert.get_submodule("classifier").weight.grad
    assert gradient is not None
    assert bool((gradient == 1).all())
    bert.get_submodule("classifier").weight.grad = None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"distance": "manhattan"}, r"distance.*'euclidean', 'angular'.*'manhattan'"),
        ({"space": "quarter"}, r"space.*'full', 'half'"),
        ({"s": -1.0}, r"s must be"),
        ({"duplicate_cosine": 1.5}, r"duplicate_cosine.*1\.5"),
        ({"include": "no.such.layer"}, r"no\.such\.layer"),
        ({"revision": "main"}, r"revision 'main'"),
    ],
)
def test_bad_options_name_what_is_right(bert: nn.Module, arguments: dict, told: str) -> None:
    """If this fails, a mistyped option is taken for something else or dies without an explanation."""
    with pytest.raises(MHEError, match=told):
        hf_mhe.analyze(bert, **arguments)


def test_what_is_no_model_is_refused() -> None:
    """If this fails, passing a state dict gives an AttributeError from deep inside."""
    with pytest.raises(MHEError, match=r"dict"):
        hf_mhe.analyze({"weight": torch.zeros(2, 2)})


def test_part_of_a_fused_parameter_is_named_by_its_group() -> None:
    """If this failed, a parameter would be called left out in the report that measured a part of it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=8))
    report = hf_mhe.analyze(model, include="*.c_attn.q")
    assert [group.name for group in report.groups] == ["transformer.h.0.attn.c_attn.q"]
    assert "transformer.h.0.attn.c_attn.weight" not in report.skipped
    assert {"transformer.h.0.attn.c_attn.k", "transformer.h.0.attn.c_attn.v"} <= set(report.skipped)


def test_a_model_without_values_is_an_error() -> None:
    """If this fails, a model on the meta device gives an error from inside torch, or numbers out of nothing."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    with pytest.raises(MHEError, match=r"'0': parameter 0\.weight is on the meta device and has no values; load the"):
        hf_mhe.analyze(model)


def test_a_pattern_that_matches_nothing_lists_near_misses(bert: nn.Module, bert_folder: Path) -> None:
    """If this fails, a misspelt layer gives an empty report, or an error that leaves the user to guess its name."""
    for given in (bert, bert_folder):
        with pytest.raises(
            MHEError, match=r"include pattern '\*\.atention\.\*' matches no .* did you mean bert\.encoder"
        ):
            hf_mhe.analyze(given, include="*.atention.*")
