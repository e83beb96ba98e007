"""Models that are sound, however training has left them, are published; unsound ones are not, and leave no trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import hf_mhe
from hf_mhe.hub import plan_push, save_for_hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INF, NAN = torch.inf, torch.nan
LAYER = "bert.encoder.layer.0.intermediate.dense"


def bert(seed: int = 0) -> PreTrainedModel:
    """A small text classifier with two layers."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes = {"vocab_size": 19, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=2, max_position_embeddings=16))


def mixture() -> PreTrainedModel:
    """A small mixture of experts, whose files have other names than its parameters."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_hidden_layers=1, num_key_value_heads=2, num_local_experts=2))


def tree(folder: Path) -> dict[str, bytes]:
    """All that a folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def compiled_inside(model: Any) -> Any:
    model.bert.encoder.layer[0] = compiled(model.bert.encoder.layer[0])
    return model


def averaged_then_compiled(model: nn.Module) -> Any:
    return compiled(AveragedModel(compiled(model)))


def offloaded(model: nn.Module) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, torch.device("cpu"))


WRAPPINGS: list[Callable[[Any], Any]] = [
    compiled,
    compiled_inside,
    AveragedModel,
    averaged_then_compiled,
    nn.DataParallel,
    offloaded,
]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_a_wrapped_model_is_published_as_the_model_in_it(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    """If this fails, a compiled model is refused with its own report, or its folder loads with fresh weights."""
    from transformers import AutoModelForSequenceClassification

    expected = {name: value.clone() for name, value in bert().state_dict().items()}
    report = hf_mhe.analyze(bert())
    folder = save_for_hub(wrap(bert()), tmp_path / "out", after=report)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert (list(info["missing_keys"]), list(info["unexpected_keys"])) == ([], [])
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        name: value.tolist() for name, value in expected.items()
    }


@pytest.mark.slow
def test_a_report_is_the_models_own_however_it_was_made(tmp_path: Path) -> None:
    """If this fails, a good model is refused because its report has other names: of a file, a part, a wrapper, an
    adapter that is merged by now, or a weight norm that came later."""
    from peft import LoraConfig, get_peft_model

    def published(model: Any, report: hf_mhe.EnergyReport) -> None:
        with_model = save_for_hub(model, tmp_path / "out", after=report)
        assert hf_mhe.hub.load_report(with_model).groups == report.groups

    published(bert(), hf_mhe.analyze(compiled(bert())))
    published(bert(), hf_mhe.analyze(bert(), include="*.layer.0.*"))
    published(bert(), hf_mhe.analyze(bert().bert))
    published(bert().bert, hf_mhe.analyze(bert()))
    older = json.loads(json.dumps(hf_mhe.analyze(bert()).to_dict()))
    del older["hf_mhe_version"]
    published(bert(), hf_mhe.EnergyReport.from_dict(older))
    adapted = get_peft_model(bert(), LoraConfig(target_modules=["query"]))
    report = hf_mhe.analyze(adapted, include="*query*")
    published(adapted.merge_and_unload(), report)
    normed = bert()
    nn.utils.parametrizations.weight_norm(normed.get_submodule(LAYER))
    published(normed, hf_mhe.analyze(bert(), include=LAYER))
    pruned = bert()
    nn.utils.prune.l1_unstructured(pruned.get_submodule(LAYER), "weight", 0.3)
    published(pruned, hf_mhe.analyze(bert(), include=LAYER))
    mixture().save_pretrained(tmp_path / "stored")
    published(mixture(), hf_mhe.analyze(tmp_path / "stored", include="*experts*"))


def test_a_report_of_another_model_is_still_refused(resnet: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, looking through wrappers has gone so far that any report passes."""
    for model in (bert(), compiled(bert()), AveragedModel(bert()), mixture()):
        with pytest.raises(hf_mhe.MHEError, match="is of another model"):
            save_for_hub(model, tmp_path / "out", after=hf_mhe.analyze(resnet))
    with pytest.raises(hf_mhe.MHEError, match="is of another model"):
        save_for_hub(bert(), tmp_path / "out", after=hf_mhe.analyze(mixture()))
    assert not (tmp_path / "out").exists()


def buffered(name: str, value: torch.Tensor, *, persistent: bool = True) -> PreTrainedModel:
    """A model with one buffer more."""
    model = bert()
    model.register_buffer(name, value, persistent=persistent)
    return model


def float8() -> PreTrainedModel:
    model = bert()
    weight = model.get_submodule(LAYER).weight.detach()
    model.get_submodule(LAYER).weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


def encoder_decoder() -> PreTrainedModel:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=19, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2))


CAUSAL = torch.full((4, 4), -INF).triu(1)
GOOD = {
    "causal mask": lambda: buffered("mask", CAUSAL),
    "mask in half precision": lambda: buffered("mask", CAUSAL.half()),
    "mask of one row": lambda: buffered("mask", torch.tensor([0, -INF, 0])),
    "mask over biases": lambda: buffered("alibi", torch.arange(16.0).reshape(1, 4, 4) + CAUSAL),
    "range of an observer": lambda: buffered("min_val", torch.tensor(INF)),
    "buffer that is not saved": lambda: buffered("scratch", torch.full((4,), NAN), persistent=False),
    "complex buffer": lambda: buffered("rotations", torch.polar(torch.ones(3), torch.ones(3))),
    "bfloat16": lambda: bert().bfloat16(),
    "float8": float8,
    "frozen, in training mode": lambda: bert().requires_grad_(False).train(),
    "encoder and decoder, tied": encoder_decoder,
    "mixture of experts": mixture,
}


@pytest.mark.story
@pytest.mark.parametrize("case", GOOD)
def test_a_sound_model_is_published(case: str, tmp_path: Path) -> None:
    """If this fails, a good model is refused for a tensor that is no weight, or for the dtype of one."""
    folder = save_for_hub(GOOD[case](), tmp_path / "out")
    assert "model.safetensors" in {file.path for file in plan_push(folder, "alice/x")}


def damaged(name: str, value: float) -> PreTrainedModel:
    """A model with one number replaced."""
    model = bert()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    return model


def with_statistics(value: float) -> PreTrainedModel:
    from tests.hub.conftest import tiny_resnet

    model = tiny_resnet(0)
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).running_var[1] = value
    return model


NORM = "bert.encoder.layer.0.output.LayerNorm"
BAD = {
    "NaN in a weight": lambda: damaged(f"{LAYER}.weight", NAN),
    "inf in a weight": lambda: damaged(f"{LAYER}.weight", INF),
    "-inf in a weight": lambda: damaged(f"{LAYER}.weight", -INF),
    "-inf in a bias of zeros": lambda: damaged(f"{LAYER}.bias", -INF),
    "-inf in a norm of ones": lambda: damaged(f"{NORM}.weight", -INF),
    "inf in running statistics": lambda: with_statistics(INF),
    "NaN in running statistics": lambda: with_statistics(NAN),
    "NaN in a buffer": lambda: buffered("mask", torch.tensor([0.0, NAN])),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("case", BAD)
def test_a_damaged_model_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    """If this fails, allowing -inf in masks lets a broken weight through, in memory or in a file; or a refusal leaves
    half a folder, or touches the one that was there."""
    save_for_hub(bert(1), tmp_path / "there")
    (tmp_path / "there" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    for target in ("there", "new", "new/below"):
        with pytest.raises(hf_mhe.MHEError, match="is not finite"):
            save_for_hub(BAD[case](), tmp_path / target)
        assert tree(tmp_path) == before
        assert {path.name for path in tmp_path.iterdir()} == {"there"}
    BAD[case]().save_pretrained(tmp_path / "bad")
    before = tree(tmp_path)
    with pytest.raises(hf_mhe.MHEError, match="is not finite"):
        plan_push(tmp_path / "bad", "alice/x")
    assert tree(tmp_path) == before


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("name", "value", "sound"),
    [
        ("attn.mask", CAUSAL, True),
        ("attn.alibi", torch.arange(16.0).reshape(4, 4) + CAUSAL, True),
        ("attn.mask", CAUSAL.nan_to_num(neginf=NAN), False),
        ("attn.scale", torch.tensor([0.5, -INF, 0.25]), False),
        ("attn.scale", torch.full((4,), -INF), False),
        ("attn.mask", -CAUSAL, False),
        ("attn.norm.bias", torch.tensor([0.0, -INF, 0.0]), False),
        ("attn.norm.weight", torch.tensor([1.0, -INF, 1.0]), False),
    ],
)
def test_in_a_file_of_unknown_code_a_mask_is_known_by_its_values(
    name: str, value: torch.Tensor, sound: bool, tmp_path: Path
) -> None:
    """If this fails, a model of custom code is refused for its mask, or published with a weight that is broken."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody-knows", "architectures": ["Mine"]}))
    save_file({"layer.weight": torch.randn(8, 4), name: value.contiguous()}, tmp_path / "model.safetensors")
    if sound:
        assert plan_push(tmp_path, "alice/x")
    else:
        with pytest.raises(hf_mhe.MHEError, match=f"{name} is not finite"):
            plan_push(tmp_path, "alice/x")


def test_a_model_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    """If this fails, a save that breaks off in the library leaves half a folder where a good one was."""
    shared = bert()
    layers = shared.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    save_for_hub(bert(1), tmp_path / "there")
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "README.md").write_text("---\n: [\n---\n")
    before = tree(tmp_path)
    for target in ("there", "new"):
        with pytest.raises(hf_mhe.MHEError, match=r"save_pretrained refuses this model: .*shared tensors") as caught:
            save_for_hub(shared, tmp_path / target)
        assert "\n" not in str(caught.value)
    with pytest.raises(hf_mhe.MHEError, match="unreadable"):
        save_for_hub(bert(), tmp_path / "unreadable")
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "unreadable"]


def test_saving_again_replaces_the_weights_and_nothing_else(tmp_path: Path) -> None:
    """If this fails, shards of an earlier save lie beside the new weights, or an owner's file is gone."""
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "README.md").write_text("# My words\n")
    save_for_hub(model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "README.md").read_text().count("# My words\n") == 1
