"""Neurons that do not compete are no part of the penalty, unless asked for; it is said, with the word for it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, MobileNetV1Config, MobileNetV1ForImageClassification

from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer
from tests.training.cases import slow_energy
from tests.training.trainers import logged_arguments


def separable() -> nn.Sequential:
    """A depthwise convolution, a pointwise one, and another depthwise one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 9, 3, groups=9)
    ).double()


def gradients(model: nn.Module, **config: Any) -> dict[str, torch.Tensor | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regularizer = MHERegularizer(model, MHEConfig(**config))
    regularizer.penalty().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith("weight")}


def test_the_penalty_is_that_of_the_others() -> None:
    """Kernels that each smooth a channel of their own would be driven apart, for nothing."""
    model = separable()
    found = gradients(model, softening=0.0)
    expected = torch.autograd.grad(slow_energy(model[2].weight.flatten(1), space="half"), model[2].weight)[0]
    torch.testing.assert_close(found["2.weight"], expected, rtol=1e-9, atol=0)
    assert found["0.weight"] is None
    assert found["4.weight"] is None


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ["2"]),
        ({"only_competing": False}, ["0", "2", "4"]),
        ({"include": "4"}, ["4"]),
        ({"include": ["0", "2"]}, ["0", "2"]),
        ({"include": "*"}, ["2"]),
        ({"include": ["*", "re:^4$"]}, ["2", "4"]),
        ({"include": "*", "only_competing": False}, ["0", "2", "4"]),
        ({"only_competing": False, "exclude": "0"}, ["2", "4"]),
    ],
)
def test_which_are_taken_in(config: dict[str, Any], names: list[str]) -> None:
    """A pattern for a part of a model would bring its depthwise kernels along, or their own name would not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regularizer = MHERegularizer(separable(), MHEConfig(**config))
    assert [group.name for group in regularizer.groups] == names


def said(model: nn.Module, **config: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MHERegularizer(model, MHEConfig(**config))
    return [str(warning.message) for warning in caught]


def test_it_is_said_once_with_the_word_for_it() -> None:
    """Nobody would know that layers have no penalty, or how to give them one."""
    model = separable()
    (message,) = said(model)
    assert re.search(r"leaves out 2 neuron groups of Sequential .*'0', '4'.*depthwise", message)
    assert "MHEConfig(only_competing=False) takes them in" in message
    assert said(model) == []
    assert said(separable(), only_competing=False) == []
    assert said(separable(), exclude=["0", "4"]) == []  # left out by the user, who knows


BERT = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def test_positions_and_types_stay_as_they_are() -> None:
    """A weight for the sake of the words would push neighbouring places apart."""
    model = BertModel(BertConfig(**BERT), add_pooling_layer=False)
    assert not any("compete" in message for message in said(model))  # embeddings have no weight by default
    (message,) = [message for message in said(model, embedding_weight=0.1) if "compete" in message]
    assert re.search(r"position_embeddings'?: they are positions.*token_type_embeddings'?: they are types", message)
    regularizer = MHERegularizer(model, MHEConfig(embedding_weight=0.1))
    embeddings = [group.name for group in regularizer.groups if group.role == "embedding"]
    assert embeddings == ["embeddings.word_embeddings"]
    regularizer = MHERegularizer(model, MHEConfig(embedding_weight=0.1, only_competing=False))
    embeddings = [group.name for group in regularizer.groups if group.role == "embedding"]
    assert len(embeddings) == 3


@pytest.mark.parametrize("how", ["depthwise", "positions"])
def test_a_model_of_nothing_else_names_the_word(how: str) -> None:
    """The error would say that the model has no neurons, and not how they are taken in."""
    if how == "depthwise":
        model, config = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4)), {}
    else:
        model, config = nn.ModuleDict({"position_embeddings": nn.Embedding(9, 4)}), {"embedding_weight": 1.0}
    with pytest.raises(MHEError, match=r"nothing to regularize in .* 1 neuron group .*only_competing=False\) takes"):
        MHERegularizer(model, MHEConfig(**config))
    assert len(MHERegularizer(model, MHEConfig(only_competing=False, **config)).groups) == 1


def test_a_config_of_another_type_is_refused() -> None:
    """A file that says "no" would switch it on."""
    with pytest.raises(MHEError, match="only_competing must be True or False; got 'no'"):
        MHEConfig(only_competing="no")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("only_competing", [True, False])
def test_mobilenet_trains(only_competing: bool, tmp_path: Path) -> None:
    """The family that is half of depthwise kernels would stop, or have its kernels moved by the penalty."""
    torch.manual_seed(0)
    config = MobileNetV1Config(image_size=32, depth_multiplier=0.25, min_depth=4, num_labels=3)
    data = [{"pixel_values": torch.rand(3, 32, 32), "labels": index % 3} for index in range(8)]
    ends = []
    for mhe in ({"hidden_weight": 0.0, "output_weight": 0.0}, {"only_competing": only_competing}):
        torch.manual_seed(0)
        model = MobileNetV1ForImageClassification(config)
        args = logged_arguments(tmp_path, max_steps=1, gradient_accumulation_steps=1, seed=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            MHETrainer(model, args, train_dataset=data, mhe_config=mhe).train()  # type: ignore[arg-type]
        ends.append(dict(model.named_parameters()))
    moved = {name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])}
    kernels = {name for name, weight in ends[0].items() if weight.dim() == 4 and weight.shape[1] == 1}
    assert len(kernels) == 13
    assert moved & kernels == (set() if only_competing else kernels)
    assert moved - kernels
