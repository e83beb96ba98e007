"""`measure`: the numbers of a layer for any matrix, whatever holds it, and what is said of what is none."""

from __future__ import annotations

import doctest
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import hf_mhe
from hf_mhe import GroupEnergy, MHEError
from hf_mhe.analysis import measure
from tests.oracle import slow_energy

N, D = 40, 6


def vectors(dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Forty vectors, of which two are zero, two are one direction and two are nearly so."""
    matrix = np.random.default_rng(0).standard_normal((N, D))
    matrix[[5, 30]] = 0
    matrix[11] = 4 * matrix[2]
    matrix[12] = matrix[3] + 0.01
    return matrix.astype(dtype)


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("space", ["full", "half"])
def test_the_numbers_are_those_of_the_definition(distance: str, space: str) -> None:
    """If this failed, embeddings would be measured by something else than the energy that is named."""
    matrix = vectors(np.float64)
    found = measure(matrix, s=1.0, distance=distance, space=space)
    alone = np.delete(matrix, [5, 30, 11], axis=0)  # without dead rows, and one of the two that coincide
    expected = slow_energy(torch.from_numpy(alone), 1.0, distance, space)
    apart = measure(alone, s=1.0, distance=distance, space=space)
    assert apart.energy == pytest.approx(float(expected), rel=1e-9)
    assert (found.n, found.d, found.dead, found.dead_rows) == (N - 2, D, 2, (5, 30))
    assert (found.coincident, found.near_duplicates, found.nearest_pair) == (1, 2, (2, 11))
    assert (found.kind, found.role, found.name, found.parameters) == ("matrix", "hidden", "matrix", ())


def test_the_numbers_are_those_of_a_layer() -> None:
    """If this failed, a matrix in memory and the same matrix in a model would have two answers."""
    layer = torch.nn.Linear(D, N)
    layer.weight.data = torch.from_numpy(vectors())
    for options in ({}, {"s": 0.0, "space": "half"}, {"distance": "angular", "duplicate_cosine": 0.5}):
        (of_layer,) = hf_mhe.analyze(layer, **options).groups
        found = measure(layer.weight, **options)
        described = {"name": "matrix", "kind": "matrix", "parameters": (), "row_names": {}}
        assert found == replace(of_layer, **{key: value for key, value in described.items() if hasattr(found, key)})


def of_datasets(kind: str, format: str | None = None, length: int = -1) -> Any:
    import datasets

    vector = datasets.List(datasets.Value(kind), length=length)
    features = datasets.Features({"text": datasets.Value("string"), "vector": vector})
    data = {"text": list(map(str, range(N))), "vector": list(vectors())}
    made = datasets.Dataset.from_dict(data, features=features)
    return made.with_format(format)


HOLDERS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "tensor": torch.from_numpy,
    "a parameter": lambda array: torch.nn.Parameter(torch.from_numpy(array)),
    "not contiguous": lambda array: torch.from_numpy(np.asfortranarray(array)),
    "array": lambda array: array,
    "read only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "backwards": lambda array: array[::-1].copy()[::-1],
    "of the other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "a list of arrays": list,
    "a tuple of tensors": lambda array: tuple(map(torch.from_numpy, array)),
    "a frame": pd.DataFrame,
    "a series of vectors": lambda array: pd.Series(list(array)),
    "a column": lambda array: of_datasets("float32")["vector"],
    "a column of fixed length": lambda array: of_datasets("float32", length=D)["vector"],
    "a column as tensors": lambda array: of_datasets("float32", "torch")["vector"],
    "all of a column": lambda array: of_datasets("float32", "numpy")["vector"][:],
    "a column that was shuffled back": lambda array: (
        of_datasets("float32").select(range(N - 1, -1, -1)).select(range(N - 1, -1, -1))["vector"]
    ),
    "a column with a transform": lambda array: of_datasets("float32").with_transform(
        lambda rows: {"vector": list(map(np.float32, rows["vector"]))}
    )["vector"],
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.filterwarnings("error")
def test_whatever_holds_the_vectors(hold: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    """If this failed, the same vectors would have other numbers for the library that they come from."""
    assert measure(hold(vectors())) == measure(torch.from_numpy(vectors()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_every_floating_dtype(dtype: str) -> None:
    """If this failed, half-precision embeddings would have to be converted by hand, or be rounded once more."""
    stored = torch.from_numpy(vectors()).to(getattr(torch, dtype))
    assert measure(stored).energy == pytest.approx(measure(stored.double()).energy, rel=1e-5)
    if dtype in ("float16", "float64"):
        assert measure(stored.numpy()) == measure(stored)


def test_numbers_of_lists_are_float64() -> None:
    """If this failed, what is typed by hand would be rounded, or whole numbers be refused."""
    assert measure(vectors(np.float64).tolist()) == measure(vectors(np.float64))
    assert measure([[1, 0], [0, 1], [-1, 0]]) == measure(np.array([[1.0, 0], [0, 1], [-1, 0]]))
    assert measure([[1, 0], [0.0, 1.5]]).max_cosine == 0


def test_the_matrix_is_left_alone() -> None:
    """If this failed, a measurement would change what it measures, or keep the graph of a forward pass."""
    hidden = torch.from_numpy(vectors()).requires_grad_()
    outputs = hidden * 2
    before = outputs.detach().clone()
    measure(outputs)
    assert torch.equal(outputs, before)
    assert hidden.grad is None
    frozen = vectors()
    frozen.flags.writeable = False
    measure(frozen)


def test_rows_have_names() -> None:
    """If this failed, a user would have to look up by hand which sentences are the same."""
    names = [f"sentence {row}" for row in range(N)]
    found = measure(vectors(), names=names, name="sentences")
    assert found.name == "sentences"
    assert [found.row_names[row] for row in found.nearest_pair] == ["sentence 2", "sentence 11"]
    assert [found.row_names[row] for row in found.dead_rows] == ["sentence 5", "sentence 30"]
    assert measure(vectors(), names=names) == measure(vectors(), names=pd.Index(names))
    assert measure(vectors(), names=np.array(names)).row_names == found.row_names
    assert found.row_names == {row: names[row] for row in found.row_names}, "of the rows that are named, and no other"
    of_dataset = measure(vectors(), names=of_datasets("float32")["text"]).row_names
    assert of_dataset == {row: str(row) for row in found.row_names}
    assert GroupEnergy.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert GroupEnergy.from_dict({**measure(vectors()).to_dict()}).row_names == {}


class Unknown:
    pass


BAD: dict[str, tuple[Any, str]] = {
    "one vector": (vectors()[0], r"shape \(6,\).*one vector"),
    "a batch": (vectors()[None], r"shape \(1, 40, 6\).*flatten"),
    "one row": (vectors()[:1], r"shape \(1, 6\).*1 row"),
    "no row": (vectors()[:0], r"shape \(0, 6\).*0 row"),
    "numbers": (vectors()[:, :1], r"shape \(40, 1\).*rows of one number"),
    "codes": (vectors().astype(int), "int64"),
    "codes in a tensor": (torch.ones(3, 3, dtype=torch.int32), "int32"),
    "masks": (vectors() > 0, "bool"),
    "complex": (vectors().astype(complex), "complex128"),
    "complex in a tensor": (torch.ones(3, 3, dtype=torch.complex64), "complex64"),
    "texts": (np.array([["a", "b"], ["c", "d"]]), "<U1"),
    "a text": ("vectors.npy", "type str"),
    "a dictionary": ({"vector": vectors()}, "type dict"),
    "an iterator": (iter(vectors()), "type"),
    "an object": (Unknown(), "type Unknown"),
    "None": (None, "type NoneType"),
    "a dataset": (of_datasets("float32"), r"type Dataset.*data\['embedding'\]"),
    "integers in a column": (of_datasets("int32")["vector"], "int32"),
    "ragged": ([[1.0, 2.0], [3.0, 4.0], [5.0]], "row 2 has 1 numbers, row 0 has 2"),
    "ragged tensors": ([torch.ones(2), torch.ones(3)], "row 1 has 3 numbers, row 0 has 2"),
    "ragged within": ([[1.0, [2.0]], [3.0, 4.0]], "row 0"),
    "a missing number": ([[1.0, 2.0], [None, 4.0]], "row 1"),
    "a missing row": ([[1.0, 2.0], None], "row 1"),
    "a word among numbers": ([[1.0, 2.0], ["x", 4.0]], "row 1"),
    "a list of numbers": ([1.0, 2.0], "row 0"),
    "a list of matrices": ([[[1.0], [2.0]], [[1.0], [2.0]]], "row 0"),
    "tensors of two ranks": ([torch.ones(2), torch.ones(1, 2)], "row 1"),
    "an empty list": ([], r"shape \(0, 0\)"),
    "NaN": (np.where(vectors() > 2, np.nan, vectors()), "NaN"),
    "infinite": (torch.tensor([[1.0, math.inf], [1.0, 1.0]]), r"infinite.*\[0, 1\]"),
    "zeros": (torch.zeros(3, 4), "0 of 3 rows"),
    "one direction": (torch.eye(3)[:1].repeat(2, 1) * torch.tensor([[1.0], [0.0]]), "1 of 2 rows"),
    "sparse": (torch.eye(3).to_sparse(), "to_dense"),
    "meta": (torch.ones(3, 3, device="meta"), "meta device"),
    "masked": (np.ma.masked_greater(vectors(), 2), "masked"),
}


@pytest.mark.parametrize(("given", "said"), BAD.values(), ids=BAD)
def test_what_is_no_matrix_of_vectors(given: Any, said: str) -> None:
    """If this failed, a mistake would be measured, or end in an error of numpy."""
    with pytest.raises(MHEError, match=f"^sentences.*{said}"):
        measure(given, name="sentences")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b"], "2 were given for 40 rows"),
        ("a" * N, "a list of 40 texts"),
        (range(N), "row 0 is 0"),
        ([*"a" * (N - 1), None], "row 39 is None"),
        (7, "a list of 40 texts"),
    ],
)
def test_names_that_are_none(names: Sequence[str], said: str) -> None:
    """If this failed, rows would be called by the names of others."""
    with pytest.raises(MHEError, match=said):
        measure(vectors(), names=names)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"s": -1}, "s must be"),
        ({"distance": "manhattan"}, "manhattan"),
        ({"space": "third"}, "third"),
        ({"duplicate_cosine": 0}, "duplicate_cosine"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    """If this failed, a mistyped option would be measured with another one."""
    with pytest.raises(MHEError, match=said):
        measure(vectors(), **options)


def test_real_sentences(minilm_path: Path) -> None:
    """If this failed, the call of the documentation would not tell apart what is said twice."""
    from transformers import AutoModel, AutoTokenizer

    texts = ["The cat sleeps.", "A cat is sleeping.", "Stocks fell sharply on Monday.", "He plays the violin."]
    tokens = AutoTokenizer.from_pretrained(minilm_path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden: Tensor = AutoModel.from_pretrained(minilm_path)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    found = hf_mhe.measure((hidden * mask).sum(1) / mask.sum(1), names=texts, duplicate_cosine=0.8)
    assert [found.row_names[row] for row in found.nearest_pair] == texts[:2]
    assert found.near_duplicates == 1


def test_the_example_prints_what_it_says() -> None:
    """If this failed, the first lines that a newcomer copies would stop, or print something else."""
    (test,) = doctest.DocTestFinder(recurse=False).find(measure, "measure")
    assert any(example.want for example in test.examples)
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_near_dead_rows_are_named(dtype: torch.dtype) -> None:
    """If this failed, neurons that weight decay has all but removed would look like all others."""
    rows = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    rows[[3, 17]] *= 1e-6
    rows[9] = 0
    rows[20] *= 2.0**-11
    found = measure(rows.to(dtype), names=[f"n{row}" for row in range(30)])
    assert (found.dead_rows, found.near_dead, found.near_dead_rows) == ((9,), 2, (3, 17))
    assert found.n == 29, "a direction is a direction, however short the row"
    assert found.row_names[17] == "n17"
    assert measure(1e-20 * rows.double()).near_dead_rows == (3, 17), "what counts is the length beside the others'"


def test_as_many_pairs_are_listed_as_were_asked_for() -> None:
    """If this failed, a layer of a thousand copies would list all of them, or none."""
    rows = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    assert len(measure(rows).duplicate_pairs) == 20
    found = measure(rows, max_pairs=3)
    assert [(i, j) for i, j, _ in found.duplicate_pairs] == [(0, 12), (0, 24), (0, 36)]
    assert found.near_duplicates == 12 * 6
    assert measure(rows, max_pairs=0).duplicate_pairs == ()
    with pytest.raises(MHEError, match="max_pairs"):
        measure(rows, max_pairs=-1)
