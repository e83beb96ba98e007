"""The data of the experiments, from packages and not from a network, as tensors in memory."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT = 10_000  # the last training images of Fashion-MNIST: for choosing settings, never trained on
Batch = dict[str, Tensor]


class MissingDataError(RuntimeError):
    """The data is not on this machine; the message says which package has it."""


class Rows(Dataset[Batch]):
    """Rows of tensors of one length; a DataLoader takes a batch of them in one indexing (`collate=Rows.together`)."""

    def __init__(self, **columns: Tensor) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns must have one length; got {lengths}")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Batch:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.at(torch.tensor(indices))

    def at(self, index: Tensor) -> Batch:
        return {name: column[index] for name, column in self.columns.items()}

    def first(self, count: int) -> Rows:
        """The first rows, or all where there are fewer."""
        return Rows(**{name: column[:count] for name, column in self.columns.items()})

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in their order; the last batch may be smaller."""
        for index in torch.arange(len(self)).split(size):
            yield self.at(index)

    @staticmethod
    def together(batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True)
class Splits:
    """`test` is only read by a run with fresh seeds, at its end."""

    train: Rows
    validation: Rows
    test: Rows
    classes: int


def load(name: str, *, train: int | None, seed: int, **options: Any) -> Splits:
    """A data set by name; `train` rows of its training part are drawn with `seed`, all if None.

    Raises:
        MissingDataError: the package with the data is not installed.
        ValueError: there is no such data set, or too few rows.
    """
    if name not in _SOURCES:
        raise ValueError(f"data must be one of {', '.join(_SOURCES)}; got {name!r}")
    whole = _SOURCES[name](**options)
    if train is None:
        return whole
    if train > len(whole.train):
        raise ValueError(f"{name} has {len(whole.train)} training rows; {train} were asked for")
    drawn = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(seed))[:train]
    return Splits(Rows(**whole.train.at(drawn)), whole.validation, whole.test, whole.classes)


@functools.lru_cache(maxsize=2)
def fashion_mnist(side: int = 28) -> Splits:
    """Fashion-MNIST, `pixel_values` (1, side, side) of mean 0 and deviation 1; side 28, or 14 by means of 2 x 2."""
    images, labels = _idx("train-images-idx3-ubyte.gz"), _idx("train-labels-idx1-ubyte.gz")
    train = _images(images, labels, side, mean=0.2860, std=0.3530)
    test = _images(_idx("t10k-images-idx3-ubyte.gz"), _idx("t10k-labels-idx1-ubyte.gz"), side, mean=0.2860, std=0.3530)
    index = torch.arange(len(train))
    return Splits(Rows(**train.at(index[:-HELD_OUT])), Rows(**train.at(index[-HELD_OUT:])), test, 10)


@functools.lru_cache(maxsize=1)
def digits(side: int = 8) -> Splits:
    """scikit-learn's 1,797 handwritten digits, `pixel_values` (1, 8, 8): for trying whether something runs."""
    from sklearn.datasets import load_digits

    if side != 8:
        raise ValueError(f"digits have a side of 8; got {side}")
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    rows = _images(pixels, bunch.target, side, mean=0.3053, std=0.3761)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = order.split([1197, 300, 300])
    return Splits(*(Rows(**rows.at(part)) for part in parts), 10)


def _images(images: np.ndarray, labels: np.ndarray, side: int, *, mean: float, std: float) -> Rows:
    pixels = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    if side != pixels.shape[-1]:
        factor, rest = divmod(pixels.shape[-1], side)
        if rest:
            raise ValueError(f"side must divide {pixels.shape[-1]}; got {side}")
        pixels = torch.nn.functional.avg_pool2d(pixels, factor)
    return Rows(pixel_values=(pixels - mean) / std, labels=torch.from_numpy(labels.astype(np.int64)))


def _idx(name: str) -> np.ndarray:
    path = FASHION_MNIST / name
    if not path.is_file():
        raise MissingDataError(f"{path} is not there: install Debian's package dataset-fashion-mnist")
    with gzip.open(path) as file:
        content = file.read()
    axes = content[3]  # the magic number: two zeros, the type (8: unsigned bytes), the number of axes
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


_SOURCES = {"fashion-mnist": fashion_mnist, "digits": digits}
