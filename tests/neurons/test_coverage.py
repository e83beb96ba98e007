"""Nothing is skipped in silence: every parameter of two or more dimensions is in a group or has a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import coverage, neuron_groups

# Model types that transformers builds from their default config: text, vision, audio, multimodal, mixtures of experts,
# state spaces, detection, time series; chosen for what their modules own.
MODEL_TYPES = [
    "albert",
    "audio-spectrogram-transformer",
    "bark",
    "bloom",
    "codegen",
    "convbert",
    "deberta-v2",
    "decision_transformer",
    "deepseek_v3",
    "efficientnet",
    "encodec",
    "falcon",
    "gpt_oss",
    "hiera",
    "longformer",
    "mamba2",
    "mobilenet_v2",
    "patchtst",
    "perceiver",
    "qwen3_moe",
    "rwkv",
    "sam",
    "speecht5",
    "swin",
    "univnet",
    "videomae",
    "vits",
    "xlnet",
]

UNTOLD = "no product or look-up in the code of Net shows its neurons"


def assert_accounted(model: nn.Module) -> None:
    """Every parameter of two or more dimensions is in exactly one place, and no group is empty or named twice."""
    found = coverage(model)
    grouped = {name for group in found.groups for name in group.parameters}
    matrices = {name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2}
    assert matrices <= grouped | set(found.skipped)
    assert not grouped & set(found.skipped)
    assert all(found.skipped.values())
    assert all(group.n >= 2 and group.d >= 2 for group in found.groups)
    names = [group.name for group in found.groups]
    assert len(names) == len(set(names))
    assert found.note is None


@pytest.mark.matrix
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_model_type_is_accounted_for(model_type: str) -> None:
    """If this failed, a model of the Hub would be reported without some of its weights."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with torch.device("meta"):
        assert_accounted(AutoModel.from_config(CONFIG_MAPPING[model_type]()))


def test_architecture_is_accounted_for(architecture: str, build: Callable[..., nn.Module]) -> None:
    """If this failed, a model with a head would lose weights in the report, or differ on the meta device."""
    model = build(architecture)
    assert_accounted(model)
    assert neuron_groups(build(architecture, device="meta")) == neuron_groups(model)
    for group in neuron_groups(model):
        assert group.matrix().shape == (group.n, group.d)


def test_reasons_say_what_the_parameter_is() -> None:
    """If this failed, a user could not tell from the report why a weight has no energy."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mystery = nn.Parameter(torch.randn(9, 4))
            self.cubes = nn.ParameterList([nn.Parameter(torch.randn(3, 4, 5))])
            self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
            self.layer_scale = nn.Parameter(torch.randn(3, 4))
            self.bias_u = nn.Parameter(torch.randn(3, 4))
            self.pos_embed = nn.Parameter(torch.randn(2, 3, 4))
            self.register_tokens = nn.Parameter(torch.randn(1, 0, 4))
            self.one = nn.Linear(4, 1)
            self.flat = nn.Linear(1, 4)
            self.packed = nn.Linear(4, 4)
            self.packed.weight = nn.Parameter(torch.zeros(4, 2, dtype=torch.uint8), requires_grad=False)
            self.waiting = nn.LazyLinear(3)
            self.used = nn.Linear(4, 3)

    found = coverage(Net())
    assert [group.name for group in found.groups] == ["used"]
    assert found.skipped == {
        "mystery": f"bare parameter 'mystery' of Net (2-dimensional): {UNTOLD}",
        "cubes.0": f"bare parameter 'cubes.0' of Net (3-dimensional): {UNTOLD}",
        "cls_token": "one vector only, shape (1, 1, 4): energy needs at least two",
        "layer_scale": "elementwise factor 'layer_scale' of Net (2-dimensional): scales single values, no direction",
        "bias_u": "bias 'bias_u' of Net (2-dimensional): added to outputs, no direction",
        "pos_embed": "position table 'pos_embed' of Net: shape (2, 3, 4) does not show its vectors",
        "register_tokens": "empty: shape (1, 0, 4)",
        "one.weight": "one neuron only: energy needs at least two",
        "flat.weight": "one coordinate only: directions in one dimension are nothing but signs",
        "packed.weight": "stored as uint8: a quantized weight has no directions without its scales",
        "waiting.weight": "uninitialized lazy parameter: its shape is not known before a first forward",
        "waiting.bias": "uninitialized lazy parameter: its shape is not known before a first forward",
    }


def test_a_tensor_subclass_is_not_read_by_rows() -> None:
    """If this failed, a weight quantized by torchao, which claims to be bfloat16, would be read as plain numbers."""
    from torch.testing._internal.two_tensor import TwoTensor

    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(TwoTensor(torch.randn(3, 4), torch.randn(3, 4)))
    found = coverage(layer)
    assert found.groups == []
    assert found.skipped == {"weight": "stored as TwoTensor: not a plain tensor whose rows can be compared"}


def test_unknown_experts_are_named_as_such() -> None:
    """If this failed, a mixture of experts would seem to be measured whole when most of its weights are not."""

    class MyExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
            self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 8))

    assert coverage(MyExperts()).skipped == {
        "gate_up_proj": "three-dimensional experts: parameter 'gate_up_proj' of MyExperts",
        "gate_up_proj_bias": "bias 'gate_up_proj_bias' of MyExperts (2-dimensional): added to outputs, no direction",
    }


def test_a_subclass_counts_as_its_kind() -> None:
    """If this failed, a library's own Linear would be a bare parameter."""

    class Scaled(nn.Linear):
        pass

    (group,) = neuron_groups(nn.Sequential(Scaled(4, 3), nn.ReLU()))
    assert group.kind == "linear"


def test_a_model_that_is_one_layer_is_called_by_its_class() -> None:
    """If this failed, the only group of a bare layer would have an empty name."""
    (group,) = neuron_groups(nn.Linear(4, 3))
    assert (group.name, group.parameters) == ("Linear", ("weight",))


def test_what_is_no_module_is_refused() -> None:
    """If this failed, a path given in place of a model would end in an attribute error."""
    with pytest.raises(MHEError, match="model is a str; neuron groups are taken"):
        coverage("bert-base-uncased")  # type: ignore[arg-type]
