"""Models that begin with copies, or with neurons that decayed, under the default config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback

from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer
from tests.training.cases import make_gpt2, make_plain, make_tiny, tiny_data
from tests.training.trainers import arguments

Loss = Any


def largest_cosine(rows: Tensor) -> float:
    unit = nn.functional.normalize(rows.detach().double(), dim=1)
    return float((unit @ unit.t()).fill_diagonal_(-1).max())


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def train(model: nn.Module, steps: int, config: MHEConfig | None, lr: float, classes: int = 10) -> float:
    """SGD on the digits below `classes`; returns the task's loss over all of these."""
    images, labels = digits()
    images, labels = images[labels < classes], labels[labels < classes]
    regularizer = None if config is None else MHERegularizer(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        (loss if regularizer is None else regularizer(loss)).backward()
        optimizer.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images), labels))


def widened(times: int) -> nn.Sequential:
    """A trained MLP 64-8-8-10 whose hidden neurons are there several times; it computes what it did."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    train(small, 150, None, 0.05)
    wide = nn.Sequential(
        nn.Linear(64, 8 * times), nn.ReLU(), nn.Linear(8 * times, 8 * times), nn.ReLU(), nn.Linear(8 * times, 10)
    )
    with torch.no_grad():
        for index, (inputs, outputs) in {0: (1, times), 2: (times, times), 4: (times, 1)}.items():
            source: Any = small[index]
            target: Any = wide[index]
            target.weight.copy_(source.weight.repeat(outputs, inputs) / inputs)
            target.bias.copy_(source.bias.repeat(outputs))
    return wide


@pytest.mark.slow
def test_a_widened_network_parts_and_learns() -> None:
    """Copies would stay copies, or the penalty that parts them would end the task."""
    start = widened(8)
    plain, stuck, parted = (copy.deepcopy(start) for _ in range(3))
    without = train(plain, 100, None, 0.05)
    train(stuck, 100, MHEConfig(part_copies=False), 0.05)
    with_mhe = train(parted, 100, MHEConfig(), 0.05)
    assert with_mhe < 1.02 * without
    for index in (0, 2):
        copies = [slice(neuron, None, 8) for neuron in range(8)]
        for model, low, high in ((plain, 1 - 1e-9, 2.0), (stuck, 1 - 1e-9, 2.0), (parted, -1.0, 0.995)):
            layer: Any = model[index]
            cosines = [largest_cosine(layer.weight[each]) for each in copies]
            assert low < sum(cosines) / 8 < high, (index, cosines)


@pytest.mark.slow
def test_a_head_that_starts_at_zero_waits_for_its_classes() -> None:
    """After one step the rows of the classes that are missing coincide: training ended there."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    head: Any = start[2]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    plain, parted = copy.deepcopy(start), copy.deepcopy(start)
    losses = []
    for model, config in ((plain, None), (parted, MHEConfig())):
        train(model, 10, config, 0.05, classes=5)
        missing = largest_cosine(model[2].weight[5:])  # type: ignore[index]
        assert missing > 1 - 1e-9 if config is None else missing < 0.95
        losses.append(train(model, 100, config, 0.05))
    assert losses[1] < 1.02 * losses[0]
    with pytest.raises(MHEError, match="coincide; leave softening at its default"):
        train(start, 10, MHEConfig(softening=0), 0.02, classes=5)


def tokens(vocabulary: int, seed: int) -> Tensor:
    return torch.randint(vocabulary, (8, 5), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mean_resizing", [False, True])
def test_a_vocabulary_resized_to_one_mean(mean_resizing: bool) -> None:
    """Added tokens are one point, or nearly: their exact energy is infinite, or outweighs everything."""
    model = make_gpt2()
    torch.manual_seed(0)
    if mean_resizing:
        model.resize_token_embeddings(79, mean_resizing=True)
    else:
        model.resize_token_embeddings(79, mean_resizing=False)
        with torch.no_grad():
            weight: Any = model.get_input_embeddings().weight
            weight[29:] = weight[:29].mean(0)
    regularizer = MHERegularizer(model.train(), MHEConfig(embedding_weight=1.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(3):
        ids = tokens(29, step)  # the added ones do not come up: the task has one gradient for all of them
        loss = model(input_ids=ids, labels=ids).loss
        total = regularizer(loss)
        # A pair counts 1 / 0.1 + 2 / 0.1^2 * 0.05 = 20 at most in each of the seven groups; it was 1e6 and more.
        assert (total - loss).item() < 7 * 20
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    added: Any = model.get_input_embeddings().weight[29:]  # type: ignore[index]
    assert len(torch.unique(added, dim=0)) == 50
    assert largest_cosine(added) < 1 - 1e-9


def test_replicated_key_value_heads() -> None:
    """A model with grouped queries could not be turned into one with a head each and trained."""
    torch.manual_seed(0)
    few = LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    many = LlamaConfig(**{**few.to_dict(), "num_key_value_heads": 4})
    model = LlamaForCausalLM(many)
    weights = LlamaForCausalLM(few).state_dict()
    repeated = {
        key: value.repeat(4, 1) if "k_proj" in key or "v_proj" in key else value for key, value in weights.items()
    }
    model.load_state_dict(repeated)
    regularizer = MHERegularizer(model.train(), MHEConfig())
    keys = model.model.layers[0].self_attn.k_proj.weight
    penalty = regularizer.penalty()
    penalty.backward()
    assert torch.isfinite(penalty)
    assert keys.grad is not None
    pushed = (keys.detach() - 0.1 * keys.grad).unflatten(0, (4, 4)).transpose(0, 1)
    assert all(largest_cosine(copies) < 1 - 1e-7 for copies in pushed)


def test_softening_0_is_the_exact_energy() -> None:
    """Who wants the paper's energy would get another one wherever two neurons are close."""
    model = make_tiny().double()
    with torch.no_grad():
        model.body.weight[3] = model.body.weight[5] + 0.05 * model.body.weight[6]
    unit = nn.functional.normalize(model.body.weight.detach(), dim=1)
    points = torch.cat((unit, -unit))
    exact = nn.functional.pdist(points).pow(-2).mean().item()
    found = {
        softening: MHERegularizer(model, MHEConfig(include="body", softening=softening)).penalty().item()
        for softening in (0, "auto")
    }
    assert found[0] == pytest.approx(exact, rel=1e-10)
    assert found["auto"] < 0.9 * exact


def trained(folder: Path, length: float, clip: float, **changes: Any) -> tuple[MHETrainer, dict[str, Tensor]]:
    model = make_plain()
    with torch.no_grad():
        model.body.weight[3] *= length / model.body.weight[3].norm()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    args = arguments(
        folder, max_steps=10, optim="sgd", learning_rate=0.1, max_grad_norm=clip, per_device_train_batch_size=8,
        logging_strategy="steps", logging_steps=1, **changes,
    )  # fmt: skip
    trainer = MHETrainer(model, args, train_dataset=tiny_data(32), mhe_config=MHEConfig(output="head"))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer, before


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("length", [0.0, 1e-25, 1e-12, 1e-6, 1e-4])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_neuron_that_decayed_stops_nothing(length: float, clip: float, tmp_path: Path) -> None:
    """Clipping by an infinite norm made every step zero, and without clipping the neuron was thrown 4e5 away."""
    trainer, before = trained(tmp_path, length, clip)
    after = dict(trainer.model.named_parameters())  # type: ignore[union-attr]
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    norms = [record["grad_norm"] for record in trainer.state.log_history if "grad_norm" in record]
    assert max(norms) < 10
    rows = after["body.weight"].detach()
    assert rows[3].norm() < rows.norm(dim=1).max()
