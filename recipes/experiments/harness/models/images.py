"""The models of the experiments: transformers models, small enough for one core.

`widened_layers` of a model says where it can grow: which layer makes the units, what normalizes them, which layer
takes them, and how many inputs of that layer a unit fills.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from harness.models.mixture import MixtureConfig, MixtureForImageClassification


@dataclass(frozen=True)
class Units:
    """Hidden units that can be copied, by the names of the modules around them."""

    makes: str
    takes: str
    norm: str | None = None
    spread: int = 1  # inputs of `takes` that one unit fills: positions of a channel that was flattened


class MLPConfig(PretrainedConfig):
    """Widths of a perceptron: inputs, then the hidden layers; the classes are `num_labels`."""

    model_type = "experiment_mlp"

    def __init__(self, widths: tuple[int, ...] | list[int] = (784, 64, 64), **kwargs: Any) -> None:
        self.widths = list(widths)
        super().__init__(**kwargs)


class _Classifier(PreTrainedModel):
    """Kaiming's initialisation, and a cross-entropy that a config may replace by the authors' of MHE."""

    base_model_prefix = "body"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _output(self, logits: Tensor, labels: Tensor | None) -> SequenceClassifierOutput:
        loss = None if labels is None else task_loss(logits, labels, getattr(self.config, "loss", "cross_entropy"))
        return SequenceClassifierOutput(loss=loss, logits=logits)


class MLPForImageClassification(_Classifier):
    config_class = MLPConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        pairs = itertools.pairwise(config.widths)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.classifier = nn.Linear(config.widths[-1], config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        x = pixel_values.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self._output(self.classifier(x), labels)

    def widened_layers(self) -> list[Units]:
        names = [*(f"hidden.{i}" for i in range(len(self.hidden))), "classifier"]
        return [Units(a, b) for a, b in itertools.pairwise(names)]


class ConvConfig(PretrainedConfig):
    """Stages of 3 x 3 convolutions; `features` is the width of the linear layer between them and the classifier.

    `between` is what stands between the two linear layers: nothing, as in the authors' code, or "norm".
    """

    model_type = "experiment_conv"

    def __init__(
        self,
        widths: tuple[int, ...] | list[int] = (16, 32, 64),
        depth: int = 3,
        features: int = 64,
        side: int = 28,
        between: str = "nothing",
        loss: str = "cross_entropy",
        **kwargs: Any,
    ) -> None:
        self.widths, self.depth, self.features, self.side = list(widths), depth, features, side
        self.between, self.loss = between, loss
        super().__init__(**kwargs)


class ConvForImageClassification(_Classifier):
    """The network of the MHE paper's CIFAR experiments (wy1iu/MHE): three stages of three, and two linear layers."""

    config_class = ConvConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        widths = [1, *(width for width in config.widths for _ in range(config.depth))]
        pairs = list(itertools.pairwise(widths))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.positions = _after_pooling(config.side, len(config.widths)) ** 2
        self.features = nn.Linear(widths[-1] * self.positions, config.features)
        self.between = nn.BatchNorm1d(config.features) if config.between == "norm" else nn.Identity()
        self.classifier = nn.Linear(config.features, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        return self._output(self.classifier(self.embed(pixel_values)), labels)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """What the classifier takes."""
        x = pixel_values
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), 1):
            x = norm(convolution(x)).relu()
            if index % self.config.depth == 0:
                x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
        return self.between(self.features(x.flatten(1)))

    def widened_layers(self) -> list[Units]:
        """The channels; the features, which no activation follows, stay as they are."""
        last = len(self.convolutions) - 1
        return [
            Units(
                f"convolutions.{i}",
                "features" if i == last else f"convolutions.{i + 1}",
                norm=f"norms.{i}",
                spread=self.positions if i == last else 1,
            )
            for i in range(last + 1)
        ]


class PatchesForImageClassification(ViTForImageClassification):
    """transformers' ViT as it is; what grows is the hidden layer of its MLPs."""

    def widened_layers(self) -> list[Units]:
        names = [name for name, _ in self.named_modules() if name.endswith(".mlp.fc1")]
        return [Units(name, name.removesuffix("fc1") + "fc2") for name in names]


def build(kind: str, *, classes: int, side: int, loss: str = "cross_entropy", **options: Any) -> PreTrainedModel:
    """A freshly initialised model of one channel images: "mlp", "conv", "patches" or "mixture"; options of its config.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "mlp":
        widths = [side * side, *options.pop("widths")]
        return MLPForImageClassification(MLPConfig(widths=widths, num_labels=classes, loss=loss, **options))
    if kind == "conv":
        return ConvForImageClassification(ConvConfig(side=side, num_labels=classes, loss=loss, **options))
    if kind == "patches":
        config = ViTConfig(image_size=side, num_channels=1, num_labels=classes, **options)
        return PatchesForImageClassification(config)
    if kind == "mixture":
        return MixtureForImageClassification(MixtureConfig(side=side, num_labels=classes, **options))
    raise ValueError(f"model must be one of mlp, conv, patches, mixture; got {kind!r}")


def task_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """`"cross_entropy"`, or `"authors"`: `-log(softmax + 1e-4)` on labels smoothed by 0.01, as in wy1iu/MHE.

    Raises:
        ValueError: there is no such loss.
    """
    if kind == "cross_entropy":
        return nn.functional.cross_entropy(logits, labels)
    if kind != "authors":
        raise ValueError(f"loss must be cross_entropy or authors; got {kind!r}")
    classes = logits.shape[-1]
    target = nn.functional.one_hot(labels, classes) * (1 - 0.01) + 0.01 / classes
    return -(target * (logits.softmax(-1) + 1e-4).log()).sum(-1).mean()


def _after_pooling(side: int, times: int) -> int:
    """The side after so many poolings by two, each rounded up."""
    for _ in range(times):
        side = -(-side // 2)
    return side
