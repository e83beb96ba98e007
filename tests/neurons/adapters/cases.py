"""A module with one layer of each kind that peft adapts, the methods of peft with the kinds they take, and the truth.

The truth is peft's own: what the layer computes in its forward pass, and its weight after merging.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_mhe.neurons import NeuronGroup, coverage, neuron_groups

IN, OUT = 12, 20


class Layers(nn.Module):
    """One layer of each kind; `forward(kind)` runs that layer on an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(IN, OUT)
        self.square = nn.Linear(IN, IN)
        self.transposed = Conv1D(OUT, IN)
        nn.init.normal_(self.transposed.weight, std=0.3)
        self.embedding = nn.Embedding(10, IN)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.conv1d = nn.Conv1d(4, 6, 3)
        self.conv3d = nn.Conv3d(4, 6, 2)
        self.attention = nn.MultiheadAttention(IN, 2, batch_first=True)

    def forward(self, kind: str) -> Tensor:
        layer = getattr(self, kind)
        if kind == "embedding":
            return layer(torch.arange(10))
        shapes = {
            "conv": (4, 7, 7),
            "grouped": (4, 7, 7),
            "pointwise": (4, 3, 3),
            "conv1d": (4, 9),
            "conv3d": (4, 5, 5, 5),
        }
        shape = (2, *shapes.get(kind, (3, IN)))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        x = x.to(next(self.parameters()).dtype)
        return layer(x, x, x)[0] if kind == "attention" else layer(x)


KINDS = ("linear", "square", "transposed", "embedding", "conv", "pointwise", "conv1d", "conv3d", "attention")
# A grouped convolution is not among them: peft's LoRA of it has no one weight.
_CONVOLUTIONS = ("conv", "pointwise", "conv1d", "conv3d")
_DENSE = ("linear", "square")
_DENSE_OF_BOTH_LAYOUTS = (*_DENSE, "transposed")


@dataclass(frozen=True)
class Case:
    """One way to adapt: a method of peft, its arguments, and the kinds of layers it is tried on.

    `rounds` says that peft computes a part in float32 whatever the dtype. `own_gradient` is the reason why, by the
    method's own definition, the gradient that reaches the adapter is not that of the weight; "" where it is.
    """

    method: str
    kinds: tuple[str, ...] = _DENSE
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rounds: bool = False
    own_gradient: str = ""


CASES: dict[str, Case] = {
    "adalora": Case("adalora", (*_DENSE_OF_BOTH_LAYOUTS, "conv", "pointwise"), {"total_step": 10}),
    "adamss": Case("adamss"),
    "beft": Case("beft"),
    "boft": Case("boft", (*_DENSE, "conv", "pointwise"), {"boft_block_size": 4}),
    "boft two factors": Case("boft", arguments={"boft_block_size": 2, "boft_n_butterfly_factor": 2}),
    "c3a": Case("c3a", arguments={"block_size": 4}, rounds=True),
    "deft": Case("deft", _DENSE_OF_BOTH_LAYOUTS, rounds=True),
    "delora": Case("delora"),
    "dora": Case("lora", (*_DENSE_OF_BOTH_LAYOUTS, "embedding", *_CONVOLUTIONS), {"use_dora": True}),
    "fourierft": Case("fourierft", _DENSE_OF_BOTH_LAYOUTS, {"n_frequency": 10, "scaling": 100.0}, rounds=True),
    "frod": Case("frod", _DENSE_OF_BOTH_LAYOUTS),
    "glora": Case("glora"),
    "gralora": Case("gralora", _DENSE_OF_BOTH_LAYOUTS),
    "hira": Case("hira", (*_DENSE_OF_BOTH_LAYOUTS, "embedding", *_CONVOLUTIONS)),
    "hra": Case("hra"),
    "ia3 outputs": Case("ia3", (*_DENSE_OF_BOTH_LAYOUTS, "conv", "conv3d", "grouped"), {"feedforward_modules": []}),
    "ia3 inputs": Case("ia3", (*_DENSE_OF_BOTH_LAYOUTS, "conv"), {"feedforward_modules": list(KINDS)}),
    "loha": Case("loha", (*_DENSE, "conv", "grouped", "pointwise", "conv1d")),
    "loha tensor": Case("loha", ("conv",), {"use_effective_conv2d": True, "r": 2, "alpha": 3}),
    "lokr": Case("lokr", (*_DENSE, "conv", "grouped", "pointwise", "conv1d")),
    "lokr decomposed": Case("lokr", ("conv",), {"decompose_both": True, "use_effective_conv2d": True, "r": 2}),
    "lora": Case("lora", KINDS),
    "lora with bias": Case("lora", (*_DENSE_OF_BOTH_LAYOUTS, "conv"), {"lora_bias": True}),
    "miss": Case("miss", arguments={"r": 2}),
    "miss bat": Case("miss", ("square",), {"r": 2, "init_weights": "bat"}),
    "oft exact": Case("oft", (*_DENSE, "embedding", "pointwise"), {"oft_block_size": 4, "use_cayley_neumann": False}),
    "oft neumann": Case("oft", (*_DENSE, "embedding", "pointwise"), {"oft_block_size": 4, "use_cayley_neumann": True}),
    "oft one block": Case("oft", arguments={"oft_block_size": 4, "use_cayley_neumann": False, "block_share": True}),
    "oft constrained": Case(
        "oft", arguments={"oft_block_size": 4, "coft": True, "eps": 0.05}, own_gradient="taken at the projected point"
    ),
    "osf": Case("osf", own_gradient="projected away from the directions that the method keeps"),
    "peanut": Case("peanut"),
    "psoft": Case("psoft", arguments={"r": 4}, rounds=True),
    "pvera": Case("pvera", _DENSE_OF_BOTH_LAYOUTS),
    "randlora": Case("randlora", _DENSE_OF_BOTH_LAYOUTS, {"randlora_alpha": 4}),
    "road": Case("road", arguments={"group_size": 4}),
    "road 4": Case("road", arguments={"group_size": 4, "variant": "road_4"}),
    "rslora": Case("lora", KINDS, {"use_rslora": True, "lora_alpha": 3, "r": 4}),
    "shira": Case("shira", arguments={"r": 2}),
    "supertuning": Case("supertuning"),
    "tinylora": Case("tinylora", (*_DENSE_OF_BOTH_LAYOUTS, "embedding")),
    "trainable_tokens": Case("trainable_tokens", ("embedding",), {"token_indices": [1, 7]}),
    "unilora": Case("unilora", _DENSE_OF_BOTH_LAYOUTS, {"theta_d_length": 32}),
    "vblora": Case("vblora", _DENSE_OF_BOTH_LAYOUTS, {"num_vectors": 8, "vector_length": 4}),
    "vera": Case("vera", _DENSE_OF_BOTH_LAYOUTS),
    "waveft": Case("waveft", _DENSE_OF_BOTH_LAYOUTS, {"n_frequency": 20}),
}


def layers(dtype: torch.dtype = torch.float64) -> Layers:
    """The module without adapters, always with the same weights."""
    torch.manual_seed(0)
    return Layers().to(dtype).eval()


def config_of(case: Case, kind: str) -> Any:
    """peft's config of a case for one kind of layer."""
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(case.method.upper())]
    arguments = dict(case.arguments)
    if arguments.get("feedforward_modules"):
        arguments["feedforward_modules"] = [kind]  # peft wants a subset of the targets
    return config_class(target_modules=[kind], **arguments)


def adapt(case: Case, kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """The module with one layer adapted, no adapter at its start value, in eval mode."""
    if case.method == "psoft":  # its start value is taken in half or single precision only
        dtype = torch.float32 if dtype == torch.float64 else dtype
    model = peft.get_peft_model(layers(dtype), config_of(case, kind), autocast_adapter_dtype=False)
    return stir(model.to(dtype)).eval()


def stir(model: Any, seed: int = 1) -> Any:
    """Move everything that trains: many adapters start where they change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def groups_of(model: nn.Module, kind: str) -> list[NeuronGroup]:
    """The groups of one layer, by the name it has without adapters."""
    return [group for group in neuron_groups(model) if group.name.split(".")[0] == kind]


def matrices(model: nn.Module, kind: str) -> dict[str, Tensor]:
    return {group.name: group.matrix() for group in groups_of(model, kind)}


def apart_from_a_bias(difference: Tensor, kind: str) -> float:
    """The largest entry of a difference of two outputs of one layer, after what is the same for all inputs."""
    if kind not in ("embedding", "attention"):
        channel = difference.ndim - 1 if kind in ("linear", "square", "transposed") else 1
        axes = [axis for axis in range(difference.ndim) if axis != channel]
        difference = difference - difference.mean(axes, keepdim=True)
    return float(difference.detach().abs().max())


def with_weights(rows: Mapping[str, Tensor], kind: str) -> Layers:
    """The module without adapters, one layer's neurons set to the given ones."""
    module = layers(next(iter(rows.values())).dtype)
    with torch.no_grad():
        for group in groups_of(module, kind):
            group.matrix().copy_(rows[group.name])  # a view of the live parameter, whatever its layout
    return module


def merged(model: Any) -> Any:
    """A copy of the model with the adapters merged, and taken off."""
    return copy.deepcopy(model).merge_and_unload()


def furthest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of entries, over the largest entry; the same names must be there."""
    assert list(found) == list(expected)
    assert found, "nothing to compare"
    return max(float((found[k].double() - expected[k].double()).abs().max() / expected[k].abs().max()) for k in found)


def unaccounted(model: nn.Module, **options: Any) -> list[str]:
    """Parameters of two or more dimensions that `coverage` neither takes nor explains."""
    found = coverage(model, **options)
    taken = {name for group in found.groups for name in group.parameters} | set(found.skipped)
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and name not in taken]
