"""The energy of sentence embeddings beside any loss of sentence-transformers.

Note [Whose embeddings]
The embeddings are those that the wrapped loss computes; the model does not run again. While the loss runs, the model's
`forward` is replaced by one that also keeps what it returns, as `MatryoshkaLoss` and `AdaptiveLayerLoss` replace it
themselves; they put theirs around this one, which therefore sees whole embeddings, not truncated ones.
`AdaptiveLayerLoss` runs the model on the same features again for embeddings of earlier layers, which are not the
model's output: the first run on each counts. Losses with a gradient cache embed without a graph, and again in the
backward pass; their gradient on the embeddings comes from `calculate_loss`. So there the energy's is added, and goes
through their cache with it. Rejected: a forward hook on the model, which sees what was truncated and cannot tell the
runs apart; a second forward pass, at twice the time and with other dropout.

Note [Which pairs]
An anchor and its positive are meant to be close. With all pairs they would be most of the energy: for a cosine of 0.97
the pull is 400 times that at a right angle. So the texts of one example count as one class, and only pairs of
different examples repel, in whatever columns they are. A loss of one column with class labels has its classes.
Rejected: the energy of each column by itself, which does not see an anchor crowd another example's positive, and is of
fewer pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from hf_mhe.checks import check_number
from hf_mhe.choices import Distance, Space
from hf_mhe.citation import BIBTEX
from hf_mhe.errors import MHEError
from hf_mhe.extras import require_extra
from hf_mhe.neurons.model.unwrap import unwrap
from hf_mhe.training.engines.collectives import is_distributed
from hf_mhe.training.outputs.energy_loss import EnergyLoss
from hf_mhe.training.softening import AUTO

# What the losses of sentence-transformers call the model that they train.
_MODEL_NAMES = ("model", "sentence_embedder", "encoder", "model2")
_OF_ONE_RANK = 1 << 40  # example numbers that a rank has for itself

_Replacement = TypeVar("_Replacement", bound=Callable[..., Any])


class EnergyRegularizedLoss(nn.Module):
    """A loss of sentence-transformers plus the weighted energy of the embeddings that it computes.

    Example::

        loss = EnergyRegularizedLoss(MultipleNegativesRankingLoss(model), weight=1.0)
        trainer = SentenceTransformerTrainer(model=model, train_dataset=dataset, loss=loss)

    Any loss will do, those with a gradient cache too; put this one outermost, around `MatryoshkaLoss` and
    `AdaptiveLayerLoss`, whose embeddings count whole and from the last layer. Texts of one example (anchor, positive,
    negative) do not repel each other; a loss of one column with class labels has the pairs of different classes. The
    trainer logs `base_loss` and `energy_loss`, the weighted energy, beside their sum, and writes this loss into the
    model card. On several processes the energy is that of all ranks' embeddings, and every rank has to have a batch.

    Args:
        loss: the loss, which has its model.
        weight: what the mean energy is multiplied by, >= 0; 0 leaves the loss as it is.
        s, distance, space, softening, gather: as `hf_mhe.EnergyLoss`.

    Raises:
        MHEError: sentence-transformers is not installed, the loss has no model, or an option is not valid.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, of embeddings.
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        s: float = 2.0,
        *,
        distance: Distance = "euclidean",
        space: Space = "full",
        softening: float | str = AUTO,
        gather: bool | torch.distributed.ProcessGroup = True,
    ) -> None:
        require_extra("EnergyRegularizedLoss", "integrations", "sentence_transformers")
        super().__init__()
        check_number("weight", weight)
        self.model = _model_of(loss)  # the trainer puts the wrapped model in its place, here and in the loss
        self.loss, self.weight = loss, float(weight)
        self.energy = EnergyLoss(s, distance=distance, space=space, softening=softening, gather=gather)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Any:
        """The parts of the loss by name, whose sum is the loss; the loss alone where the weight is 0.

        Raises:
            MHEError: the loss is within another that changes embeddings, or computes none.
        """
        features = list(sentence_features)
        if not self.weight:
            return self.loss(features, labels)
        _refuse_within_another(self.model)
        cached = _with_gradient_cache(self.loss)
        if cached is None:
            model = _model_of(self.loss)
            with _replaced(model, "forward", _Keeping(model.forward)) as keeping:
                base = self.loss(features, labels)
            energy = self.weight * self._energy(keeping.embeddings, features, labels)
        else:
            adding = _Adding(cached.calculate_loss, lambda found: self.weight * self._energy(found, features, labels))
            with _replaced(cached, "calculate_loss", adding):
                base = self.loss(features, labels)
            if adding.energy is None:
                raise MHEError(f"{type(self.loss).__name__} did not compute its loss by {type(cached).__name__}")
            energy = adding.energy
        parts = dict(base) if isinstance(base, Mapping) else {"base_loss": base}
        return {**parts, "energy_loss": energy}

    def _energy(self, embeddings: list[Tensor], features: list[dict[str, Any]], labels: Tensor | None) -> Tensor:
        if not embeddings:
            raise MHEError(f"{type(self.loss).__name__} computed no sentence embeddings by its model")
        rows = torch.cat(embeddings)
        examples = _examples(features[0])
        # Labels of several columns are of the example: of a pair that is alike or not.
        if len(features) == 1 and len(rows) == examples and _is_one_class_each(labels, examples):
            return self.energy(rows, labels.reshape(-1).to(rows.device))
        numbers = [torch.arange(len(each), device=rows.device) for each in embeddings]
        if any(len(each) % examples for each in embeddings):
            counts = ", ".join(str(len(each)) for each in embeddings)
            raise MHEError(
                f"{type(self.loss).__name__} computed {counts} embeddings for columns of {examples} examples: each "
                "number must be a multiple of the examples"
            )
        same_example = torch.cat(numbers) % examples
        if self.energy.gather and is_distributed():
            same_example += _OF_ONE_RANK * torch.distributed.get_rank()
        return self.energy(rows, same_example)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as the trainer writes them into the model card."""
        potential, energy = self.energy.potential, self.energy
        return {
            "loss": self.loss,
            "weight": self.weight,
            "s": potential.s,
            "distance": potential.distance,
            "space": potential.space,
            "softening": energy.softening,
            "gather": bool(energy.gather),
        }

    @property
    def citation(self) -> str:
        """The paper, as the trainer writes it into the model card."""
        return BIBTEX


class _Keeping:
    """A model's forward pass that keeps the embeddings of the first run on each batch of features."""

    def __init__(self, forward: Callable[..., dict[str, Any]]) -> None:
        self._forward = forward
        self._seen: list[Any] = []
        self.embeddings: list[Tensor] = []

    def __call__(self, features: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        output = self._forward(features, *args, **kwargs)
        if not any(features is each for each in self._seen):
            self._seen.append(features)
            self.embeddings.append(output["sentence_embedding"])
        return output


class _Adding:
    """A `calculate_loss` of a loss with a gradient cache that adds the energy's gradient to that on the embeddings."""

    def __init__(self, calculate: Callable[..., Tensor], energy_of: Callable[[list[Tensor]], Tensor]) -> None:
        self._calculate, self._energy_of = calculate, energy_of
        self.energy: Tensor | None = None

    def __call__(self, reps: list[list[Tensor]], *args: Any, **kwargs: Any) -> Tensor:
        loss = self._calculate(reps, *args, **kwargs)
        energy = self._energy_of([torch.cat(column) for column in reps])
        # Without a gradient from the loss an embedding has none at all: its own error about such a column is to come.
        if kwargs.get("with_backward") and all(rep.grad is not None for column in reps for rep in column):
            energy.backward()
        self.energy = energy.detach()
        return loss


@contextmanager
def _replaced(owner: nn.Module, name: str, value: _Replacement) -> Iterator[_Replacement]:
    """An attribute of this one object as something else, within the context."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield value
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _model_of(loss: nn.Module) -> Any:
    """The model that a loss trains, as it stands in the loss now."""
    for name in _MODEL_NAMES:
        model = getattr(loss, name, None)
        if isinstance(model, nn.Module):
            return model
    raise MHEError(
        f"loss must be a loss of sentence-transformers, which has its model as one of {', '.join(_MODEL_NAMES)}; got "
        f"{type(loss).__name__}"
    )


def _with_gradient_cache(loss: Any) -> Any:
    """The loss itself, or that within it, which caches the gradients of its embeddings; None where none does."""
    while isinstance(loss, nn.Module):
        if getattr(loss, "uses_gradient_cache", False) and hasattr(loss, "calculate_loss"):
            return loss
        loss = getattr(loss, "loss", None)
    return None


def _refuse_within_another(model: nn.Module) -> None:
    """Refuse to run where another loss has replaced the model's forward pass, and adds up what this one returns."""
    for each in (model, unwrap(model)):
        replaced = type(vars(each).get("forward"))
        if replaced.__module__.startswith("sentence_transformers."):
            raise MHEError(
                "EnergyRegularizedLoss must be outermost: EnergyRegularizedLoss(MatryoshkaLoss(model, loss)), not "
                f"within another loss ({replaced.__module__.rpartition('.')[2]})"
            )


def _examples(features: dict[str, Any]) -> int:
    """How many texts a column of features has, padded, flattened or as bags of tokens."""
    if "cu_seq_lens_q" in features:
        return len(features["cu_seq_lens_q"]) - 1
    for name in ("offsets", "input_ids", "attention_mask"):
        if isinstance(features.get(name), Tensor):
            return len(features[name])
    return next(len(value) for value in features.values() if isinstance(value, Tensor) and value.dim())


def _is_one_class_each(labels: Any, examples: int) -> TypeGuard[Tensor]:
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel() == examples
