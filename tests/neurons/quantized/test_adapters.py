"""Adapters on quantized layers (QLoRA): the effective weight is `W0 + dW`, where W0 is what the codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_mhe
from hf_mhe import MHEConfig, MHERegularizer
from tests.neurons.quantized.cases import assert_alike, build, plain_groups, with_weights

pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.integrations
peft = pytest.importorskip("peft")

_NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}
_TARGETS = ["q_proj", "v_proj", "down_proj"]


def _quantized(form: str, folder: Path) -> tuple[Any, nn.Module]:
    """A quantized llama; and the float model of the weights that it stands for."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    build("llama").save_pretrained(folder)
    config: Any = BitsAndBytesConfig(load_in_8bit=True)
    if form == "nf4":
        config = BitsAndBytesConfig(**_NF4)
    if form == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    plain = build("llama")
    load = type(plain).from_pretrained
    other = load(folder, quantization_config=config)
    if form == "torchao":
        dense = {name: p.dequantize() for name, p in other.named_parameters() if type(p) is not nn.Parameter}
    else:
        # `dequantize` changes the model in place, so it is done on another one.
        dense = dict(load(folder, quantization_config=config).dequantize(dtype=torch.float32).named_parameters())
    return other, with_weights(plain, dense)


def _adapted(model: Any, **said: Any) -> Any:
    """The model with an adapter whose matrices are those of every other call."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=_TARGETS, **said))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapted


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["nf4", "int8", "torchao"])
def test_the_energy_is_that_of_the_dequantized_and_merged_model(form: str, dora: bool, tmp_path: Path) -> None:
    """If this failed, a quantized layer would be measured without its adapter, or an adapter without its base."""
    quantized, plain = _quantized(form, tmp_path)
    model, oracle = _adapted(quantized, use_dora=dora), _adapted(plain, use_dora=dora)
    groups = hf_mhe.neuron_groups(model)
    trained = [group for group in groups if group.requires_grad]
    assert len(trained) == 2 * len(_TARGETS)
    assert all(group.quantized for group in trained)
    report = hf_mhe.analyze(model)
    merged = oracle.merge_and_unload()
    assert_alike(report, hf_mhe.analyze(merged), plain_groups("llama"))


def _step(model: Any, regularizer: MHERegularizer, optimizer: Any, inputs: Tensor) -> Tensor:
    loss = regularizer(model(input_ids=inputs, labels=inputs).loss)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.slow
def test_three_steps_are_those_of_the_float_model(tmp_path: Path) -> None:
    """If this failed, training an adapter on 4-bit weights would follow another penalty than on the same numbers."""
    quantized, plain = _quantized("nf4", tmp_path)
    inputs = torch.randint(3, 60, (3, 4, 12), generator=torch.Generator().manual_seed(2))
    config = MHEConfig(hidden_weight=5.0)
    losses, trained = [], []
    for base in (quantized, plain):
        model = _adapted(base).train()
        regularizer = MHERegularizer(model, config)
        assert len(regularizer.groups) == 2 * len(_TARGETS)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        losses.append([_step(model, regularizer, optimizer, batch) for batch in inputs])
        trained.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-5, atol=1e-6)
    start = {name: p for name, p in _adapted(build("llama")).named_parameters() if name in trained[0]}
    assert all((value - start[name]).abs().max() > 1e-4 for name, value in trained[0].items())


def test_the_gradient_is_that_of_the_float_model(tmp_path: Path) -> None:
    """If this failed, the energy would reach the adapter through something else than the sum of both."""
    gradients = []
    for base in _quantized("nf4", tmp_path):
        model = _adapted(base)
        MHERegularizer(model, MHEConfig(hidden_weight=1.0)).penalty().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 2 * len(_TARGETS)
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-9)
