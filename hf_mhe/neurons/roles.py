"""Which modules give a model's output, asked of the model itself.

Note [Output layers]. In order:
1. what `get_output_embeddings()` returns, for the model and every model nested in it (language-model heads);
2. the layers outside a transformers model's base model that have one neuron per label or vocabulary entry of its
   config (`num_labels`, one more for the "no object" class of detectors, `vocab_size`): heads of classification, token
   classification, question answering, segmentation, CTC. A square layer that another such layer of the same head
   follows is the head's hidden layer (RobertaClassificationHead, where num_labels happens to equal the hidden size).
   Where the class has no base model under its prefix (CLIPForImageClassification), its own direct layers are asked;
3. what timm's `get_classifier()` returns;
4. the last layer of a plain `nn.Sequential`, if only a softmax, a sigmoid or a reshaping follows.
The last Linear in registration order is *not* a rule: registration need not follow the forward pass, and an auxiliary
projection is often registered last. Where none of these finds the head, name it with `output=`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from hf_mhe.neurons.kinds import pieces
from hf_mhe.neurons.wrappers import bare

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
        yield from _of_sizes(answer.modules(), {_vocabulary(getattr(model, "config", None))})


def _heads(model: nn.Module) -> Iterator[nn.Module]:
    prefix, config = getattr(model, "base_model_prefix", None), getattr(model, "config", None)
    if config is None or not isinstance(prefix, str):
        return
    base = getattr(model, prefix, None) if prefix else None
    if isinstance(base, nn.Module):
        inside = set(base.modules())
        parents = list(model.modules()) if base is not model else []
    else:
        inside = set()
        parents = [model, *filter(_is_sequential, model.children())] if _has_head(model) else []
    labels = getattr(config, "num_labels", None)
    sizes = {_vocabulary(config)}
    if isinstance(labels, int):
        sizes |= {labels, labels + 1}
    for parent in parents:
        children = [child for child in map(bare, parent.children()) if child not in inside]
        layers = list(_of_sizes(children, sizes))
        for index, layer in enumerate(layers):
            square = getattr(layer, "in_features", None) == getattr(layer, "out_features", 0)
            if not (square and index + 1 < len(layers)):
                yield layer


def _has_head(model: nn.Module) -> bool:
    """Whether a class of transformers carries a task's head: those are named `<Model>For<Task>`."""
    return any("For" in cls.__name__ and "PreTrainedModel" in _names_above(cls) for cls in type(model).__mro__)


def _names_above(cls: type) -> set[str]:
    return {above.__name__ for above in cls.__mro__[1:]}


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


def _of_sizes(modules: Iterable[nn.Module], sizes: set[int | None]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            if size in sizes:
                yield module


def _vocabulary(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None
