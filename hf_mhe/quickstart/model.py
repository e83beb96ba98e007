"""The model that the quickstart trains: a small ResNet of transformers, and the image processor that feeds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_mhe.quickstart.data import LABELS, MODEL_SIDE

if TYPE_CHECKING:
    from transformers import ResNetForImageClassification
    from transformers.image_processing_utils import BaseImageProcessor

NARROW = 4  # channels of the first stage of the model that grows
COPIES = 8  # of each of its channels


def build_model(seed: int, channels: int = NARROW * COPIES) -> ResNetForImageClassification:
    """Build a `ResNetForImageClassification` of two stages, its weights drawn with `seed`.

    Input: `pixel_values` (batch, 1, 32, 32) float32 in [-1, 1]; output: `logits` (batch, 10). `channels` are those of
    the first stage, the second has twice as many: 79 thousand parameters with 32, 1.4 thousand with 4.
    """
    from transformers import ResNetConfig, ResNetForImageClassification, set_seed

    config = ResNetConfig(
        num_channels=1,
        embedding_size=channels,
        hidden_sizes=[channels, 2 * channels],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    set_seed(seed)
    return ResNetForImageClassification(config)


def widened(model: ResNetForImageClassification, copies: int = COPIES) -> ResNetForImageClassification:
    """A model with so many exact copies of every channel, which computes the same (Net2Net, arXiv:1511.05641).

    A weight that reads `copies` channels where it read one is divided by that number.
    """
    wide = build_model(0, channels=copies * model.config.embedding_size)
    shapes = {name: value.shape for name, value in wide.state_dict().items()}
    state = {}
    for name, value in model.state_dict().items():
        if value.ndim > 1 and shapes[name][1] > value.shape[1]:
            value = value.repeat_interleave(copies, dim=1) / copies
        if value.ndim > 0 and shapes[name][0] > value.shape[0]:
            value = value.repeat_interleave(copies, dim=0)
        state[name] = value
    wide.load_state_dict(state)
    return wide


def build_processor() -> BaseImageProcessor:
    """Build the processor that turns 8 x 8 grayscale images into the model's 32 x 32 input.

    It enlarges by repeating pixels: the stem divides the side by four, which would leave 2 x 2 of an 8 x 8 image. Any
    smoother interpolation would also differ between the PIL and the torchvision backend; this one does not.
    """
    from PIL.Image import Resampling
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(
        size={"height": MODEL_SIDE, "width": MODEL_SIDE},
        resample=Resampling.NEAREST,
        image_mean=[0.5],
        image_std=[0.5],
    )
