"""A step of the penalty on tied layers that peft adapts together: that of one matrix, an embedding."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

peft = pytest.importorskip("peft")

from hf_mhe import MHEConfig, MHERegularizer  # noqa: E402
from tests.training.cases import dense_penalty  # noqa: E402

EMBEDDING, OUTPUT, RATE = 0.5, 10.0, 0.1


def tied(**arguments: Any) -> Any:
    """A small Llama whose head is its embedding, adapted together."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=True, **sizes)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, lora_alpha=6, ensure_weight_tying=True, **arguments)
        adapted: Any = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted


@pytest.mark.parametrize(
    "arguments",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["adapted", "saved"],
)
def test_one_step_is_that_of_the_formula(arguments: dict[str, Any]) -> None:
    """Else the head, which is the embedding, would be pulled at a second time, with the weight of an output layer."""
    model = tied(**arguments)
    table = model.base_model.model.model.embed_tokens
    if "modules_to_save" in arguments:
        trained = [table.modules_to_save["default"].weight]
        rows = trained[0]
    else:
        trained = [table.lora_embedding_A["default"], table.lora_embedding_B["default"]]
        rows = table.base_layer.weight + 2 * (trained[1] @ trained[0]).T
    config = MHEConfig(hidden_weight=0.0, output_weight=OUTPUT, embedding_weight=EMBEDDING)
    regularizer = MHERegularizer(model, config)
    assert [(group.name, group.role) for group in regularizer.groups] == [("model.embed_tokens", "embedding")]
    expected = dense_penalty([(rows, EMBEDDING, config.potential("embedding").space)])
    gradients = torch.autograd.grad(expected, trained)
    before = [parameter.detach().clone() for parameter in trained]
    penalty = regularizer.penalty()
    torch.testing.assert_close(penalty, expected.detach(), rtol=1e-10, atol=0)
    penalty.backward()
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    for parameter, start, gradient in zip(trained, before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), start - RATE * gradient, rtol=1e-9, atol=1e-12)
