"""Warnings of what is likely not meant: gradients out of all proportion, and weights that no group has a use for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_mhe import MHEConfig, MHERegularizer, MHETrainer
from tests.training.cases import make_bert, make_plain, make_tiny, tiny_data
from tests.training.trainers import arguments


@contextmanager
def said() -> Iterator[list[str]]:
    """What MHE warns of within, each time it does."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught if "MHE" in str(warning.message)]


def steps(model: Any, config: MHEConfig, count: int, loss_of: Any) -> list[str]:
    regularizer = MHERegularizer(model.train(), config)
    with said() as messages:
        for _ in range(count):
            model.zero_grad()
            regularizer(loss_of(model)).backward()
    return messages


def task(model: Any) -> Any:
    return model(torch.ones(2, 6), torch.tensor([0, 1])).loss


@pytest.mark.slow
@pytest.mark.parametrize("scaler", [1.0, 2.0**10])
def test_an_infinite_gradient_is_said_with_its_layer(scaler: float) -> None:
    """Clipping would make every step zero for the rest of the training, without a word."""
    model = make_tiny()
    with torch.no_grad():
        model.middle.weight *= 1e-25  # a layer as a whole is not dead
    (message,) = steps(model, MHEConfig(), 4, lambda m: scaler * task(m))
    assert "'middle.weight' is infinite or too long" in message
    assert "clipping by the norm makes every gradient zero" in message


def test_a_task_that_reaches_nothing_is_said() -> None:
    """The loss of another model would be trained on, and MHE alone would move the weights."""
    other = torch.zeros((), requires_grad=True)
    model = make_tiny()
    assert not steps(model, MHEConfig(), 1, lambda m: other * 1.0)  # as behind a head that starts at zero
    (message,) = steps(model, MHEConfig(), 4, lambda m: other * 1.0)
    assert "the task's gradient is zero over all parameters" in message


@pytest.mark.slow
def test_an_overflow_under_a_gradient_scaler_is_none_of_ours() -> None:
    """Every training in float16 begins with some, and would begin with a warning."""
    assert not steps(make_tiny(), MHEConfig(hidden_weight=1e-3), 4, lambda m: task(m) * 1e38 * 1e3)
    assert not steps(make_tiny(), MHEConfig(hidden_weight=1e-3), 4, task)


class Wrapped(nn.Module):
    """How most people put a head on a model: plain modules around one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                vocab_size=29, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10,
                max_position_embeddings=8,
            )
        )  # fmt: skip
        self.classifier = nn.Linear(8, 3)


class Encoder(nn.Module):
    """Layers of which none is called as heads are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)


NO_OUTPUT = {
    "head by its name": (make_plain, {}, ["output_weight=1 ", "hidden: 'body', 'head'", "output='head'"]),
    "head by its name, weighted": (make_plain, {"output_weight": 10}, ["output_weight=10 ", "output='head'"]),
    "head that was to be left out": (make_plain, {"output_weight": 0}, ["output_weight=0 ", "output='head'"]),
    "head around a model of transformers": (Wrapped, {}, ["output='classifier'"]),
    "weighted": (Encoder, {"output_weight": 10}, ["hidden: 'first', 'last'", "output=<its name>"]),
    "encoder, weighted": (lambda: Wrapped().bert, {"output_weight": 2}, ["'output'", "..."]),
    "left out": (make_bert, {"output_weight": 2, "exclude": "classifier"}, ["exclude leave out 'classifier'"]),
    "no embedding": (Encoder, {"embedding_weight": 1}, ["embedding_weight=1 has no effect", "'embedding'"]),
}
SILENT = {
    "named": (make_plain, {"output": "head", "output_weight": 10}),
    "by num_labels": (make_tiny, {"output_weight": 10}),
    "encoder": (lambda: Wrapped().bert, {}),
    "plain encoder": (Encoder, {}),
    "chosen layers": (make_bert, {"include": "bert.*"}),
    "off": (make_plain, {"hidden_weight": 0, "output_weight": 0}),
}


@pytest.mark.parametrize("case", NO_OUTPUT)
def test_a_weight_without_a_group_is_said_once(case: str) -> None:
    """`output_weight=10` would do nothing, and the classifier be spread in half space."""
    make, config, parts = NO_OUTPUT[case]
    model = make()
    with said() as messages:
        for _ in range(2):
            MHERegularizer(model, config)
    (message,) = messages
    assert len(message) < 400
    for part in parts:
        assert part in message


@pytest.mark.parametrize("case", SILENT)
def test_a_model_without_a_head_is_no_reason_to_speak(case: str) -> None:
    """Every encoder would be trained with a warning that nobody can do anything about."""
    make, config = SILENT[case]
    with said() as messages:
        MHERegularizer(make(), config)
    assert not messages


@pytest.mark.slow
def test_a_trainer_says_it_once(tmp_path: Path) -> None:
    """A Trainer binds the model when it is made, and again for each training."""
    args = arguments(tmp_path, max_steps=1)
    with said() as messages:
        trainer = MHETrainer(make_plain(), args, train_dataset=tiny_data(8), mhe_config={"output_weight": 10})
        trainer.train()
        trainer.train()
    assert sum("has no effect" in message for message in messages) == 1
