"""The registry of fused projections: what is registered exists, and nothing is divided that does not add up."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hf_mhe.neurons import neuron_groups
from hf_mhe.neurons.kinds.fused.split import SPLITTERS


def test_registered_classes_hold_what_their_splitters_read() -> None:
    """If this failed, a typing error in the registry would leave a fused layer whole without a word."""
    sources: dict[str, str] = {}
    for name, splitter in SPLITTERS.items():
        module, _, cls = name.rpartition(".")
        if module not in sources:
            spec = find_spec(module.rpartition(".")[0])
            assert spec is not None, module
            assert spec.origin is not None
            sources[module] = Path(spec.origin).with_name(f"{module.rpartition('.')[2]}.py").read_text()
        _, _, rest = sources[module].partition(f"\nclass {cls}(")
        body = re.split(r"\n(?=[@\w])", rest, maxsplit=1)[0]
        read = set(re.findall(r"\bmodule\.(\w+)", inspect.getsource(splitter)))
        assert read, name
        assert all(f"self.{attribute}" in body for attribute in read - {"config"}), (name, read)


def test_what_does_not_add_up_stays_whole(build: Callable[..., Any]) -> None:
    """If this failed, a layer that was pruned or replaced would be cut at places that mean nothing."""
    from transformers.pytorch_utils import Conv1D

    model = build("gpt2")
    model.transformer.h[0].attn.c_attn = Conv1D(90, 32)
    names = {group.name: group for group in neuron_groups(model, include="*.c_attn")}
    assert set(names) == {"transformer.h.0.attn.c_attn", *(f"transformer.h.1.attn.c_attn.{part}" for part in "qkv")}
    assert names["transformer.h.0.attn.c_attn"].n == 90


def test_a_wrapped_layer_is_divided_too(build: Callable[..., Any]) -> None:
    """If this failed, training under torch.compile or checkpointing would regularize q, k and v as one layer."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model, plain = build("gpt2"), build("gpt2")
    attention_layer = model.transformer.h[0].attn
    attention_layer.c_attn = checkpoint_wrapper(attention_layer.c_attn)
    model.transformer.h[1] = torch.compile(model.transformer.h[1])
    assert neuron_groups(model, by_head=True) == neuron_groups(plain, by_head=True)
