"""Hyperspherical energy of vectors, as a measurement of the library `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from hf_mhe.analysis.as_matrix import as_matrix, of_arrow
from hf_mhe.analysis.measure import measure
from hf_mhe.errors import MHEError

_DESCRIPTION = """
The hyperspherical energy of a set of vectors: embeddings, predictions, prototypes, hidden states. The directions of
the vectors are points on a sphere that repel each other; the more evenly they spread, the lower is their mean energy.
It comes with what independent random directions would have, with what no set can go below, and with the pairs that are
nearly the same.
"""

_KWARGS_DESCRIPTION = """
Args:
    `data` (a list of vectors, or an array or a tensor of shape (n, d)): floating-point numbers, n and d at least 2.
        `predictions` is another name for it.
    `names` (list of `str`): what the vectors are called, one for each. Optional.
    `s` (`float`): exponent of the energy, >= 0. Default: 2.0.
    `distance` (`str`): "euclidean" or "angular". Default: "euclidean".
    `space` (`str`): "full", or "half", where a vector and its mirror image count alike. Default: "full".
    `duplicate_cosine` (`float`): pairs whose cosine reaches it, in (0, 1], are near-duplicates. Default: 0.95.

Returns:
    A dictionary, that of `hf_mhe.measure(data, ...).to_dict()`; an infinite or undefined number is None. Among others:
    `n`, `d` (`int`): vectors that are not zero, and their dimension.
    `equivalent_dimension` (`float`): the dimension in which random directions would be as crowded.
    `spread` (`float`): the same as a share of d: 1 for random directions, below 1 crowded.
    `verdict` (`str`): what crowds them: "copies", "shared direction", "few dimensions"; "spread" or "as random".
    `energy` (`float`): mean over ordered pairs, coincident pairs left out.
    `expected` (`float`): of n independent random directions.
    `lower_bound` (`float`): no n directions have less.
    `score` (`float`): where the energy lies between the bound (0) and a random draw (1).
    `max_cosine` (`float`), `nearest_pair` (two `int`): the two vectors that are most alike.
    `near_duplicates`, `coincident` (`int`): pairs that are nearly, or exactly, one direction.
    `dead` (`int`): vectors of zeros.

Examples:
    >>> import evaluate, hf_mhe
    >>> measurement = evaluate.load(hf_mhe.measurement_path())
    >>> results = measurement.compute(data=[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], s=1)
    >>> round(results["energy"], 4), results["n"], results["max_cosine"]
    (0.6381, 3, 0.0)
"""

_CITATION = """
@inproceedings{liu2018learning,
    title = {Learning towards Minimum Hyperspherical Energy},
    author = {Liu, Weiyang and Lin, Rongmei and Liu, Zhen and Liu, Lixin and Yu, Zhiding and Dai, Bo and Song, Le},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2018},
    eprint = {1805.09298},
    archivePrefix = {arXiv}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class HypersphericalEnergy(evaluate.Measurement):
    """The library keeps what is added as float64, which holds every smaller float; `_dtype` is what it was."""

    _dtype: torch.dtype | None = None

    def _info(self) -> evaluate.MeasurementInfo:
        info = evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"data": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/1805.09298"],
            license="Apache-2.0",
        )
        # As it lies in memory: lists would be an object for each number, and numpy's format rounds to float32. It is
        # set afterwards, because MeasurementInfo takes a format for features of single numbers only.
        info.format = "arrow"
        return info

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Compute the measurement of all that was added, and of what is given here."""
        found: dict[str, Any] | None = super().compute(**_named(predictions, references, kwargs))
        return found

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch of vectors."""
        given = _named(predictions, references, kwargs)
        if "data" in given:
            given["data"] = self._kept(given["data"])
        super().add_batch(**given)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one vector."""
        given = _named(prediction, reference, kwargs)
        if "data" in given:
            given["data"] = self._kept([given["data"]])[0]
        super().add(**given)

    def _kept(self, data: Any) -> np.ndarray[Any, Any]:
        vectors = as_matrix(data, "data", least=1)
        self._dtype = vectors.dtype if self._dtype is None else torch.promote_types(self._dtype, vectors.dtype)
        return vectors.to("cpu", torch.float64).numpy()

    def _compute(
        self,
        data: Any,
        names: list[str] | None = None,
        s: float = 2.0,
        distance: str = "euclidean",
        space: str = "full",
        duplicate_cosine: float = 0.95,
    ) -> dict[str, Any]:
        # Of process 0 where several add vectors: the others' are of the same kind.
        dtype, self._dtype = self._dtype or torch.float64, None
        vectors = of_arrow(data, "data").to(dtype)
        return measure(
            vectors, names=names, s=s, distance=distance, space=space, duplicate_cosine=duplicate_cosine
        ).to_dict()


def _named(predictions: Any, references: Any, others: dict[str, Any]) -> dict[str, Any]:
    """The inputs by the one name that the features have."""
    if references is not None:
        raise MHEError("references were given: the energy is of one set of vectors, data")
    if predictions is None:
        return others
    if others.get("data") is not None:
        raise MHEError("data and predictions were given: they are two names for the same vectors")
    return {**others, "data": predictions}
