"""A dense model that becomes a mixture of experts: what is copied, what is drawn anew, what the penalty does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness.data.images import Rows
from harness.models import mixture
from harness.models.images import build
from harness.training.train import Recipe, train
from torch import Tensor

SIZES = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "patch_size": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def model(experts: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(kind="mixture", classes=10, side=8, num_local_experts=experts, **SIZES)


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def upcycled(experts: int) -> tuple[Any, Any]:
    small, wide = model(1), model(experts, seed=5)
    mixture.widen(small, wide, experts)
    return small.eval(), wide.eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_a_mixture_of_copies_computes_what_the_dense_model_does(experts: int) -> None:
    small, wide = upcycled(experts)
    outputs = [m(pixel_values=images()).logits for m in (small, wide)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert mixture.cosine(wide) == (None if experts == 1 else pytest.approx(1.0))
    labels = torch.arange(32) % 10
    dense = torch.nn.functional.cross_entropy(outputs[0], labels)
    over = (wide(pixel_values=images(), labels=labels).loss - dense).item()
    # The loss that balances is the number of experts for a token where all get as many, and more where they do not.
    assert over == pytest.approx(0.0, abs=1e-5) if experts == 1 else 0.01 * 2 <= over + 1e-5 < 0.01 * 2 * experts


def test_another_number_of_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not 2 times as many experts in: model.layers.0.mlp.experts.gate_up_proj"):
        mixture.widen(model(1), model(4), 2)


def test_noise_is_as_long_as_it_is_said_to_be_and_on_experts_alone() -> None:
    _, wide = upcycled(4)
    before = copy.deepcopy(wide)
    mixture.add_noise(wide, 0.3, generator())
    for name, parameter in wide.named_parameters():
        old = before.get_parameter(name)
        if ".experts." in name:
            ratio = (parameter - old).norm(dim=2) / old.norm(dim=2)
            torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3))
        else:
            assert torch.equal(parameter, old)
    assert 0.8 < (mixture.cosine(wide) or 0) < 0.98  # 1 / (1 + 0.3 ** 2) is 0.92


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_units_is_new_in_all_their_weights_and_another_one_in_each_expert(share: float) -> None:
    _, wide = upcycled(4)
    before = copy.deepcopy(wide)
    mixture.renew(wide, 4, generator(), share=share)
    for layer, old in zip(wide.model.layers, before.model.layers, strict=True):
        experts, were = layer.mlp.experts, old.mlp.experts
        parts = [*experts.gate_up_proj.chunk(2, dim=1), experts.down_proj.transpose(1, 2)]
        olds = [*were.gate_up_proj.chunk(2, dim=1), were.down_proj.transpose(1, 2)]
        changed = [(a != b).any(2) for a, b in zip(parts, olds, strict=True)]  # (experts, units)
        assert torch.equal(changed[0], changed[1])
        assert torch.equal(changed[0], changed[2])
        assert changed[0].sum(1).tolist() == [round(12 * share)] * 4
        if share in (0.25, 0.5):
            assert len({tuple(row.tolist()) for row in changed[0]}) > 1
        for now, then in zip(parts, olds, strict=True):
            assert (now.std() / then.std()).item() == pytest.approx(1.0, abs=0.2)
    if share == 1.0:
        assert abs(mixture.cosine(wide) or 0) < 0.1


@pytest.mark.slow
def test_mhe_across_parts_experts_that_copies_alone_leave_together() -> None:
    rows = Rows(pixel_values=images(64), labels=torch.arange(64) % 10)
    recipe = Recipe(lr=5e-3, optimizer="adam", steps=30, batch=32)
    across = {"name": "mhe", "s": 2.0, "hidden_weight": 0.0, "output_weight": 0.0, "across": ["experts"]}
    ends = []
    for penalty in (None, {**across, "across_weight": 1.0}):
        _, wide = upcycled(4)
        mixture.add_noise(wide, 0.01, generator())
        train(wide, rows, recipe, seed=0, penalty=penalty)
        ends.append(mixture.cosine(wide) or 0.0)
    assert ends[1] < ends[0] - 0.1
