"""Training with adapters of peft: the penalty is that of the merged weights, and only what trains is regularized."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

peft = pytest.importorskip("peft")

import hf_mhe  # noqa: E402
from hf_mhe import MHEConfig, MHERegularizer, MHETrainer, with_mhe  # noqa: E402
from hf_mhe.errors import MHEError  # noqa: E402
from tests.training.cases import CASES, Case, make_gpt2, make_tiny, slow_penalty  # noqa: E402

HIDDEN, OUTPUT = 0.7, 0.3
CONFIG = MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT)
LORA = {"r": 2, "lora_alpha": 6}  # W = W0 + 3 B A


def stir(model: nn.Module) -> nn.Module:
    """Move what trains away from where an adapter changes nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def adapted(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """`tiny`: LoRA on `body`, a trained copy of the classifier, `middle` frozen. `gpt2`: LoRA on fused projections."""
    if name == "tiny":
        arguments = {"target_modules": ["body"], "modules_to_save": ["classifier"], **LORA}
    else:
        arguments = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, **LORA}
    model = {"tiny": make_tiny, "gpt2": make_gpt2}[name]().to(dtype)
    return stir(peft.get_peft_model(model, peft.LoraConfig(**{**arguments, **changes}))).to(dtype)


def merged_terms(model: Any) -> list[tuple[Tensor, float, str]]:
    """What the penalty should be a sum over, from the formula of LoRA: nothing of the package takes part."""
    bare = model.base_model.model

    def weight(layer: Any) -> Tensor:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        return (
            layer.base_layer.weight.T + 3 * b @ a
            if hasattr(layer.base_layer, "nf")
            else (layer.base_layer.weight + 3 * b @ a)
        )

    if hasattr(bare, "body"):
        head = bare.classifier.modules_to_save["default"].weight
        return [(weight(bare.body), HIDDEN, "half"), (head, OUTPUT, "full")]
    matrices: list[Tensor] = []
    for block in bare.transformer.h:
        matrices += [*weight(block.attn.c_attn).chunk(3), weight(block.mlp.c_fc)]
    return [(matrix, HIDDEN, "half") for matrix in matrices]


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def slow_gradient(model: nn.Module) -> dict[str, Tensor]:
    parameters = trained(model)
    penalty = slow_penalty(merged_terms(model))
    gradients = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(found) == set(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name].double() - value.double()).abs().max()) < tolerance * largest, name


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_penalty_is_that_of_the_merged_weights(name: str) -> None:
    """lambda would mean something else with an adapter, or its gradient reach the frozen base."""
    model = adapted(name)
    regularizer = MHERegularizer(model, CONFIG)
    expected = {"tiny": ["body", "classifier"]}.get(
        name, [f"transformer.h.0.{part}" for part in ("attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v", "mlp.c_fc")]
    )
    assert [group.name for group in regularizer.groups] == expected
    penalty = regularizer.penalty()
    torch.testing.assert_close(penalty, slow_penalty(merged_terms(model)), rtol=1e-12, atol=0)
    penalty.backward()
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    expected_gradient = slow_gradient(model)
    check_close(found, {key: value for key, value in expected_gradient.items() if not key.endswith("bias")}, 1e-10)
    assert all("lora_" in key or "modules_to_save" in key for key in found)
    energies = regularizer.energies()
    merging = MHERegularizer(model.merge_and_unload().requires_grad_(True), CONFIG)
    whole = merging.energies()
    assert all(whole[key] == pytest.approx(value, rel=1e-12) for key, value in energies.items())


def test_frozen_groups_are_not_computed() -> None:
    """Adapter training would pay for the energies of layers that it cannot change: here one of them cannot be had."""
    model = adapted("tiny")
    before = MHERegularizer(model, CONFIG).penalty()
    with torch.no_grad():
        model.base_model.model.middle.weight.fill_(torch.nan)
    assert torch.equal(MHERegularizer(model, CONFIG).penalty(), before)


class PlainTrainer(Trainer):
    """A Trainer class of the user's own."""


FACES = {"MHETrainer": MHETrainer, "with_mhe": with_mhe(PlainTrainer), "Seq2SeqTrainer": with_mhe(Seq2SeqTrainer)}


def one_step(
    model: Any, case: Case, face: str, batch: int, folder: Path, config: MHEConfig | None
) -> dict[str, Tensor]:
    """The parameters after one SGD step on eight examples, in micro-batches of `batch`."""
    seq2seq = face == "Seq2SeqTrainer"
    arguments = (Seq2SeqTrainingArguments if seq2seq else TrainingArguments)(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    off = MHEConfig(hidden_weight=0.0, output_weight=0.0)
    FACES[face](model, arguments, train_dataset=case.data(8), mhe_config=config or off).train()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "face", "batch"),
    [
        ("tiny", "MHETrainer", 8),
        ("tiny", "with_mhe", 2),
        ("gpt2", "MHETrainer", 2),
        ("gpt2", "Seq2SeqTrainer", 8),
    ],
)
def test_a_step_changes_the_adapters_by_the_formula(name: str, face: str, batch: int, tmp_path: Path) -> None:
    """The penalty would move frozen weights, or the adapters by another amount than -lr times its gradient."""
    start = {key: parameter.detach().clone() for key, parameter in adapted(name).named_parameters()}
    gradient = slow_gradient(adapted(name))
    plain = one_step(adapted(name), CASES[name], face, batch, tmp_path / "plain", None)
    pushed = one_step(adapted(name), CASES[name], face, batch, tmp_path / "pushed", CONFIG)
    for key, value in start.items():
        if key not in gradient:
            assert torch.equal(pushed[key], value), key
    check_close({key: (plain[key] - pushed[key]) / 0.1 for key in gradient}, gradient, 1e-9)


@pytest.mark.slow
def test_training_from_the_start_value_spreads_the_neurons(tmp_path: Path) -> None:
    """From LoRA's start, where B is zero, the penalty would not get hold of the adapter."""

    def energies_after(config: MHEConfig | None) -> float:
        model = peft.get_peft_model(make_tiny(), peft.LoraConfig(target_modules=["body", "middle"], **LORA))
        arguments = TrainingArguments(
            str(tmp_path), max_steps=30, learning_rate=0.03, use_cpu=True, report_to=[], save_strategy="no", seed=1
        )
        off = MHEConfig(hidden_weight=0.0, output_weight=0.0)
        MHETrainer(model, arguments, train_dataset=CASES["tiny"].data(16), mhe_config=config or off).train()
        report = hf_mhe.analyze(model, include=["body", "middle"], space="half")
        published = hf_mhe.analyze(model.merge_and_unload(), include=["body", "middle"], space="half")
        for ours, merged in zip(report.groups, published.groups, strict=True):
            assert ours.energy == pytest.approx(merged.energy, rel=1e-5)
        return sum(group.energy for group in report.groups)

    assert energies_after(MHEConfig(hidden_weight=10.0)) < 0.9 * energies_after(None)


def test_what_oft_trains_has_no_energy_to_lose() -> None:
    """A rotation of all neurons keeps their energy, so under exact OFT the penalty has no gradient."""
    config = peft.OFTConfig(target_modules=["middle"], oft_block_size=3, use_cayley_neumann=False)
    model = stir(peft.get_peft_model(make_tiny(), config)).double()
    regularizer = MHERegularizer(model, CONFIG)
    assert [group.name for group in regularizer.groups] == ["middle"]
    regularizer.penalty().backward()
    (gradient,) = (parameter.grad for parameter in trained(model).values())
    assert float(gradient.abs().max()) < 1e-12


def test_own_matrices_where_the_user_chooses_them() -> None:
    """Over a base whose weight cannot be read (quantized), nothing of an adapter could be regularized."""
    model = adapted("tiny")
    regularizer = MHERegularizer(model, MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT, adapters="own"))
    assert [group.name for group in regularizer.groups] == ["body.lora_A.default", "body.lora_B.default", "classifier"]
    bare = model.base_model.model
    a, b = bare.body.lora_A["default"].weight, bare.body.lora_B["default"].weight.T
    head = bare.classifier.modules_to_save["default"].weight
    expected = slow_penalty([(a, HIDDEN, "half"), (b, HIDDEN, "half"), (head, OUTPUT, "full")])
    torch.testing.assert_close(regularizer.penalty(), expected, rtol=1e-12, atol=0)
    names = [group.name for group in hf_mhe.analyze(model, adapters="own").groups]
    assert "body.lora_B.default" in names
    with pytest.raises(MHEError, match="adapters must be one of 'effective', 'own'; got 'both'"):
        MHEConfig(adapters="both")  # type: ignore[arg-type]
    assert MHEConfig.from_dict(MHEConfig(adapters="own").to_dict()).adapters == "own"


@pytest.mark.parametrize("saved", [None, ["classifier"]])
def test_another_adapter_under_a_regularizer_is_refused(saved: list[str] | None) -> None:
    """The penalty would go on with an adapter that no longer trains, or without it."""
    model = adapted("tiny", modules_to_save=saved)
    regularizer = MHERegularizer(model, CONFIG)
    model.add_adapter("second", peft.LoraConfig(target_modules=["body"], modules_to_save=saved, **LORA))
    model.double()
    regularizer.penalty()
    model.set_adapter("second")
    for ask in (regularizer.penalty, regularizer.advance):
        with pytest.raises(MHEError, match=r"'(body|classifier)'.*since the neuron groups were made.*MHERegularizer"):
            ask()
    assert [group.name for group in MHERegularizer(model, CONFIG).groups] == ["body", *(saved or [])]
    model.set_adapter("default")
    regularizer.penalty()


def test_adapter_for_inference_is_warned_of() -> None:
    """A training in which the penalty can reach nothing would run in silence."""
    model = adapted("tiny", modules_to_save=None, inference_mode=True)
    with pytest.warns(UserWarning, match="no penalty until .*all 3 groups with a weight above 0 are frozen"):
        MHERegularizer(model, CONFIG)


def texts(count: int) -> Iterable[dict[str, str]]:
    return [{"text": f"the {word} runs over the hill and the {word} sleeps"} for word in ("dog", "cat") * (count // 2)]


@pytest.mark.integrations
def test_sft_trainer_that_makes_the_adapter_itself(minilm_path: Path, tmp_path: Path) -> None:
    """trl wraps the model inside its constructor: the regularizer would be bound to the bare one."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model = make_gpt2()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    model.resize_token_embeddings(len(tokenizer))
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_length=5,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        per_device_train_batch_size=2,
        logging_steps=1,
        pad_token="[PAD]",
        eos_token="[SEP]",
        learning_rate=0.01,
    )
    trainer = with_mhe(trl.SFTTrainer)(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_list(list(texts(8))),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **LORA),
        mhe_config=CONFIG,
    )
    names = [f"transformer.h.0.attn.c_attn.{part}" for part in "qkv"]
    assert [group.name for group in trainer.mhe_regularizer.groups] == names
    before = {key: parameter.detach().clone() for key, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {key for key, p in trainer.model.named_parameters() if not torch.equal(p, before[key])}
    assert changed
    assert all("lora_" in key for key in changed)
    assert any("mhe_loss" in record for record in trainer.state.log_history)
