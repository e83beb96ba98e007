"""Which modules give a model's output, asked of the model itself.

Note [Output layers]. All of these together:
1. what `get_output_embeddings()` returns, for the model and every model nested in it (language-model heads);
2. the layers outside a transformers model's base model that have one neuron per label or vocabulary entry of its
   config (`num_labels`, `num_qa_labels` and the like, `vocab_size`, `output_vocab_size`), or where there is no such
   layer, one more, for the "no object" class of detectors: heads of classification, token classification, question
   answering, segmentation and CTC. A square layer that another such layer of the same head follows is the head's
   hidden layer (RobertaClassificationHead, where num_labels happens to equal the hidden size). A class that has no
   base model under its prefix (CLIPForImageClassification) is searched outside the models nested in it: its own direct
   layers, and of deeper ones those whose outputs no other layer takes.
   A base model that holds the head itself (Perceiver, RTDetr), or a second head like the one outside of it (D-FINE),
   is searched too: layers whose outputs no other layer takes, with more outputs than the four coordinates of a box;
3. what timm's `get_classifier()` returns;
4. the last `nn.Linear` of a plain `nn.Sequential`, if only a softmax, a sigmoid or a reshaping follows.
The last Linear in registration order is *not* a rule: registration need not follow the forward pass, and an auxiliary
projection is often registered last. Where none of these finds the head, name it with `output=`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.neurons.group import full_shape
from hf_mhe.neurons.kinds.pieces import pieces
from hf_mhe.neurons.layout import ByAxes
from hf_mhe.neurons.model.unwrap import bare

_LABELS = re.compile(r"(num_(\w+_)?(labels|classes)|head_out_channels)$")  # the last: PaddleOCR's characters
_BOX = 4
_AFTER_OUTPUT = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Sigmoid, nn.Flatten, nn.Unflatten, nn.Identity)


def output_modules(root: nn.Module) -> list[nn.Module]:
    """The modules whose neurons are the model's outputs; see Note [Output layers]."""
    found: list[nn.Module] = []
    for model in root.modules():
        found += _output_embeddings(model)
        found += _heads(model)
        found += _timm_classifier(model)
    if _is_sequential(root):
        found += _last_of_sequential(root)
    return found


def _output_embeddings(model: nn.Module) -> Iterator[nn.Module]:
    ask: Any = getattr(model, "get_output_embeddings", None)
    if not callable(ask):
        return
    try:
        answer = ask()
    except (AttributeError, NotImplementedError):  # how models of transformers say that they have none
        return
    if not isinstance(answer, nn.Module):
        return
    answer = bare(answer)
    if any(True for _ in pieces(answer)):
        yield answer
    elif isinstance(answer, (nn.ModuleList, nn.ModuleDict)):
        yield from (bare(child) for child in answer.children())
    else:
        yield from _of_sizes(answer.modules(), _vocabularies(getattr(model, "config", None)))


def _heads(model: nn.Module) -> Iterator[nn.Module]:
    prefix, config = getattr(model, "base_model_prefix", None), getattr(model, "config", None)
    if config is None or not isinstance(prefix, str):
        return
    base = getattr(model, prefix, None) if prefix else None
    base = base if isinstance(base, nn.Module) else None
    if base is None and not _has_head(model):
        return
    labels = _label_counts(config)
    for more in (0, 1):  # with a label for nothing, where there is no head without one
        found = list(_choosing(model, base, {count + more for count in labels}, _vocabularies(config)))
        if found:
            yield from found
            return


def _choosing(model: nn.Module, base: nn.Module | None, labels: set[int], entries: set[int]) -> Iterator[nn.Module]:
    """The layers of a model that have that many neurons and lie where heads do."""
    bodies = [base] if base is not None else [m for m in model.modules() if m is not model and _is_pretrained(m)]
    inside = {module for body in bodies for module in body.modules()}
    outer = {model, *filter(_is_sequential, model.children())} if base is None else set()
    taken = _input_sizes(model)
    found: list[nn.Module] = []
    for parent in model.modules():
        if parent not in inside:
            children = (child for child in map(bare, parent.children()) if child not in inside)
            layers = list(_of_sizes(children, labels | entries))
            if base is None and parent not in outer:
                layers = [layer for layer in layers if _neurons(layer) not in taken]
            found += _last_of_squares(layers)
    yield from found
    if _has_head(model):
        outer_shapes = {_shape(layer) for layer in found}
        for layer in _of_sizes(map(bare, inside), {count for count in labels if count > _BOX}):
            if _neurons(layer) not in taken and (not found or _shape(layer) in outer_shapes):
                yield layer


def _last_of_squares(layers: list[nn.Module]) -> Iterator[nn.Module]:
    for index, layer in enumerate(layers):
        square = getattr(layer, "in_features", None) == getattr(layer, "out_features", 0)
        if not (square and index + 1 < len(layers)):
            yield layer


def _has_head(model: nn.Module) -> bool:
    """Whether a class of transformers carries a task's head: those are named `<Model>For<Task>`, or they generate."""
    names = [cls.__name__ for cls in type(model).__mro__]
    return "PreTrainedModel" in names and any("For" in name or name == "GenerationMixin" for name in names)


def _is_pretrained(module: nn.Module) -> bool:
    return any(cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__)


def _timm_classifier(model: nn.Module) -> Iterator[nn.Module]:
    ask: Any = getattr(model, "get_classifier", None)
    if callable(ask):
        answer = ask()
        answers = answer if isinstance(answer, (tuple, list)) else (answer,)
        yield from (bare(module) for module in answers if isinstance(module, nn.Module))


def _is_sequential(module: nn.Module) -> bool:
    """Whether a module runs its children one after the other; `fully_shard` makes subclasses that still do."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _last_of_sequential(root: nn.Module) -> Iterator[nn.Module]:
    for module in map(bare, reversed(list(root.children()))):
        if _is_sequential(module):
            yield from _last_of_sequential(module)
        elif isinstance(module, nn.Linear):
            yield module
        if not isinstance(module, _AFTER_OUTPUT):
            return


def _of_sizes(modules: Iterable[nn.Module], sizes: Container[int | None]) -> Iterator[nn.Module]:
    for module in modules:
        count = _neurons(module)
        if count is not None and count in sizes:
            yield module


def _neurons(module: nn.Module) -> int | None:
    """How many neurons a layer has, or each matrix of a stack that it holds itself (as AMSoftmaxLoss does)."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.out_channels
    own = [piece for piece in pieces(module) if piece.kind == "linear" and isinstance(piece.layout, ByAxes)]
    if len({piece.weight for piece in own}) != 1:
        return None
    weight = getattr(module, own[0].weight, None)
    if not isinstance(weight, Tensor):  # an entry of a list
        return None
    return int(own[0].layout(torch.empty(full_shape(weight), device="meta")).shape[0])


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = getattr(layer, "weight", None)
    return full_shape(weight) if isinstance(weight, Tensor) else ()


def _input_sizes(model: nn.Module) -> set[int]:
    """How many values each layer takes."""
    layers = (module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)))
    return {layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels for layer in layers}


def _label_counts(config: Any) -> set[int]:
    """The numbers of labels that a config gives."""
    given = {"num_labels": getattr(config, "num_labels", None), **vars(config)}  # num_labels is a property
    return {value for name, value in given.items() if _LABELS.match(name) and type(value) is int}


def _vocabularies(config: Any) -> set[int]:
    """The numbers of entries that a model chooses what it writes from: text, or codes of sound."""
    try:
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    except ValueError:  # how transformers says that several parts of the model write text
        text = config
    sizes = {getattr(text, name, None) for name in ("vocab_size", "output_vocab_size")}
    return {size for size in sizes if isinstance(size, int)}
