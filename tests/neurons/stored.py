"""A saved checkpoint read through safetensors alone, and its groups beside those of the model that loads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from hf_mhe.neurons import Coverage, NeuronGroup, coverage

Get = Callable[[str], torch.Tensor]


@contextmanager
def opened(folder: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Get, dict[str, Any]]]:
    """Shapes, a reader by name, and the parsed config of a checkpoint folder, through safetensors alone."""
    with ExitStack() as stack:
        file_of = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, "pt"))
            file_of.update(dict.fromkeys(file.keys(), file))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in file_of.items()}
        yield shapes, lambda name: file_of[name].get_tensor(name), json.loads((folder / "config.json").read_text())


def described(groups: list[NeuronGroup]) -> list[tuple[object, ...]]:
    return [(g.name, g.kind, g.role, g.n, g.d, g.aliases, g.module) for g in groups]


def assert_same(
    model: nn.Module, found: Coverage, shapes: dict[str, tuple[int, ...]], get: Get, by_head: bool = False
) -> None:
    """The checkpoint's groups are the model's, equal to the last bit, and no tensor is unaccounted for."""
    groups = coverage(model, by_head=by_head).groups
    assert found.note is None
    assert described(found.groups) == described(groups)
    assert [group.apart for group in found.groups] == [group.apart for group in groups]
    for group, stored in zip(groups, found.groups, strict=True):
        assert torch.equal(stored.build(get), group.matrix()), group.name
        assert not stored.requires_grad
        assert set(stored.parameters) <= set(shapes)
        # By the model's own names, unless the checkpoint stores it under others; one name of a tied one is enough.
        own = tuple(name for name in group.parameters if name in shapes)
        assert stored.parameters == own or not own, group.name
    grouped = {name for group in found.groups for name in group.parameters}
    assert {name for name, shape in shapes.items() if len(shape) >= 2} <= grouped | set(found.skipped)
    assert not grouped & set(found.skipped)
