"""Filters of convolutions: the rows of a group are what the layer's own forward convolves with."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hf_mhe.neurons import neuron_groups
from tests.neurons.families.table import FAMILIES
from tests.neurons.families.watch import zeroed


def _plain(model: nn.Module) -> None:
    """Weights in several parts as one, in which rows can be zeroed; the groups must not change by it."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            before = [group.matrix().detach().clone() for group in neuron_groups(model, include=name)]
            parametrize.remove_parametrizations(module, "weight")
            after = [group.matrix() for group in neuron_groups(model, include=name)]
            assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["convnext", "resnet", "segformer", "wav2vec2"])
def test_a_zeroed_filter_bank_leaves_its_bias(name: str) -> None:
    """If this failed, depthwise kernels, filters of groups or dense maps would be laid out wrongly."""
    family = FAMILIES[name]
    model = family.build().eval()
    _plain(model)
    groups = [group for group in neuron_groups(model) if group.kind != "embedding"]
    outputs: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for group in groups:
        modules[group.module].register_forward_hook(
            lambda module, _, output, name=group.module: outputs.update({name: output})
        )

    def forward() -> dict[str, torch.Tensor]:
        outputs.clear()
        with torch.no_grad():
            model(**family.inputs)
        return dict(outputs)

    whole = forward()
    for group in groups:
        module = modules[group.module]
        with zeroed(group):
            found = forward()[group.module]
        channels = -1 if isinstance(module, nn.Linear) else 1
        bias = module.bias.detach() if module.bias is not None else torch.zeros(found.shape[channels])
        shape = [1] * found.ndim
        shape[channels] = -1
        constant = bias.view(shape).expand_as(found)
        # the filters of one group of a convolution give their own channels alone
        first = int(group.name.rpartition(".groups.")[2]) * group.n if ".groups." in group.name else 0
        mine = range(first, first + (group.n if ".groups." in group.name else found.shape[channels]))
        chosen = torch.tensor(list(mine))
        assert torch.equal(found.index_select(channels, chosen), constant.index_select(channels, chosen)), group.name
        rest = torch.tensor([index for index in range(found.shape[channels]) if index not in mine], dtype=torch.long)
        assert torch.equal(found.index_select(channels, rest), whole[group.module].index_select(channels, rest))
