"""Vectors in files: the numbers of the same vectors in memory, and what is said of files that hold none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hf_mhe
from hf_mhe import MHEError

N, D = 30, 5
Write = Callable[[Path], Path]


def vectors() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)


def dataset(columns: int = 1, kind: str = "float32", length: int = -1) -> datasets.Dataset:
    features = {f"vector{i or ''}": datasets.List(datasets.Value(kind), length=length) for i in range(columns)}
    described = {"text": datasets.Value("string"), **features}
    data = {"text": [str(row) for row in range(N)], **{name: list(vectors()) for name in features}}
    return datasets.Dataset.from_dict(data, features=datasets.Features(described))


def npy(path: Path, **changes: Any) -> Path:
    np.save(path / "vector.npy", vectors(), **changes)
    return path / "vector.npy"


def fortran(path: Path) -> Path:
    np.save(path / "vector.npy", np.asfortranarray(vectors()))
    return path / "vector.npy"


def other_order(path: Path) -> Path:
    np.save(path / "vector.npy", vectors().astype(">f4"))
    return path / "vector.npy"


def saved(path: Path) -> Path:
    dataset().save_to_disk(path / "saved")
    return path / "saved"


def saved_in_shards(path: Path) -> Path:
    dataset(length=D).save_to_disk(path / "saved", num_shards=3)
    return path / "saved"


def selected(path: Path) -> Path:
    backwards = dataset().select(range(N - 1, -1, -1))
    backwards.select(range(N - 1, -1, -1)).save_to_disk(path / "saved")
    return path / "saved"


def split(path: Path) -> Path:
    datasets.DatasetDict({"train": dataset(), "test": dataset()}).save_to_disk(path / "splits")
    return path / "splits" / "train"


def parquet(path: Path) -> Path:
    dataset().to_parquet(path / "data.parquet", batch_size=7)  # several row groups
    return path / "data.parquet"


def json_lines(path: Path) -> Path:
    lines = [json.dumps({"text": "a", "vector": row}) for row in vectors().tolist()]
    (path / "data.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path / "data.jsonl"


WAYS = [npy, fortran, other_order, saved, saved_in_shards, selected, split, parquet, json_lines]


@pytest.mark.parametrize("write", WAYS, ids=lambda write: write.__name__)
@pytest.mark.filterwarnings("error")
def test_a_file_has_the_numbers_of_its_vectors(write: Write, tmp_path: Path) -> None:
    """If this failed, the same embeddings would have other numbers for the way in which they were saved."""
    path = write(tmp_path)
    report = hf_mhe.analyze(path)
    (row,) = report.groups
    expected = hf_mhe.measure(vectors())
    assert (row.name, row.kind, row.role, row.parameters) == ("vector", "matrix", "hidden", ("vector",))
    for name in ("n", "d", "energy", "score", "max_cosine", "nearest_pair", "near_duplicates", "histogram"):
        assert getattr(row, name) == getattr(expected, name), name
    assert (report.source, report.revision, report.skipped, report.unseen) == (str(path), None, {}, 0.0)
    (mirrored,) = hf_mhe.analyze(str(path), space="half").groups
    assert mirrored.energy == hf_mhe.measure(vectors(), space="half").energy


def test_copies_stay_copies_in_text(tmp_path: Path) -> None:
    """If this failed, rounding to ten digits would turn a pair that coincides into one with an energy of 1e17."""
    copies = vectors()
    copies[9] = 2 * copies[4]
    lines = [json.dumps({"vector": [float(f"{number:.10g}") for number in row]}) for row in copies.tolist()]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (row,) = hf_mhe.analyze(tmp_path / "data.jsonl").groups
    assert (row.coincident, row.nearest_pair) == (1, (4, 9))
    assert row.energy == hf_mhe.measure(copies).energy


def test_tensors_of_a_file_are_measured_alike(tmp_path: Path) -> None:
    """If this failed, vectors in safetensors would need a config to be read."""
    save_file({"a": torch.from_numpy(vectors()), "b": torch.eye(4)}, tmp_path / "vectors.safetensors")
    report = hf_mhe.analyze(tmp_path / "vectors.safetensors")
    by_name = {row.name: row for row in report.groups}
    assert by_name.keys() == {"a", "b"}
    assert by_name["a"].energy == hf_mhe.measure(vectors()).energy


def test_one_of_several_columns_is_chosen(tmp_path: Path) -> None:
    """If this failed, a dataset with the vectors of several models could not be measured."""
    two = dataset(columns=2)
    two.to_parquet(tmp_path / "two.parquet")
    two.save_to_disk(tmp_path / "two")
    two.to_json(tmp_path / "two.jsonl")
    for name in ("two.parquet", "two", "two.jsonl"):
        assert hf_mhe.analyze(tmp_path / name, column="vector1").groups[0].name == "vector1"
        with pytest.raises(MHEError, match=r"which column has the vectors\? 2 \('vector', 'vector1'\) could be"):
            hf_mhe.analyze(tmp_path / name)
        with pytest.raises(MHEError, match=r"has no (column )?'vectors'; it has 'text', 'vector'"):
            hf_mhe.analyze(tmp_path / name, column="vectors")
        with pytest.raises(MHEError, match="'text'"):
            hf_mhe.analyze(tmp_path / name, column="text")


def test_a_file_and_another_are_compared(tmp_path: Path) -> None:
    """If this failed, embeddings before and after a training could not be set side by side."""
    (tmp_path / "after").mkdir()
    before, after = npy(tmp_path), npy(tmp_path / "after")
    comparison = hf_mhe.analysis.compare(before, after)
    assert len(comparison.rows) == 1


def test_a_dataset_that_is_changed_is_left_alone(tmp_path: Path) -> None:
    """If this failed, reading a file would write to it or beside it."""
    for write in (npy, saved, parquet, json_lines):
        folder = tmp_path / write.__name__
        folder.mkdir()
        path = write(folder)
        files = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        hf_mhe.analyze(path)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == files


class Bomb:
    """What a pickle may do: it makes a file as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    """If this failed, looking at a stranger's vectors would run the stranger's code."""
    trace = tmp_path / "trace"
    np.save(tmp_path / "objects.npy", np.array([[Bomb(trace)], [Bomb(trace)]], dtype=object), allow_pickle=True)
    torch.save([Bomb(trace)], tmp_path / "pickle.npy", _use_new_zipfile_serialization=False)
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(MHEError, match=name):
            hf_mhe.analyze(tmp_path / name)
    assert not trace.exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("a.npy", b"", "no array of numpy"),
    "a text": ("a.npy", b"hello", "no array of numpy"),
    "a pointer": ("a.npy", POINTER, "Git LFS pointer"),
    "a pointer to a dataset": ("a.parquet", POINTER, "Git LFS pointer"),
    "a page": ("a.jsonl", b"<!doctype html><html>", "web page"),
    "a text for a dataset": ("a.parquet", b"hello", "Parquet"),
    "no JSON": ("a.jsonl", b"{'vector': [1, 2]}\n", "JSON lines"),
    "no objects": ("a.jsonl", b"[1, 2]\n", "line 1 is no object"),
    "no line": ("a.jsonl", b"\n", "empty"),
    "no UTF-8": ("a.jsonl", b'{"vector": [1, 2], "text": "\xff"}\n', "JSON lines"),
    "ragged": ("a.jsonl", b'{"vector": [1, 2]}\n{"vector": [1, 2, 3]}\n', "row 1 has 3 numbers"),
    "a missing column": ("a.jsonl", b'{"vector": [1, 2]}\n{"text": "a"}\n', "line 2 has no 'vector'"),
    "a missing vector": ("a.jsonl", b'{"vector": [1, 2]}\n{"vector": null}\n', "line 2: 'vector' is None"),
    "NaN": ("a.jsonl", b'{"vector": [1, NaN]}\n{"vector": [1, 2]}\n', "1 NaN value"),
    "a number beyond all": ("a.jsonl", b'{"vector": [1, 1' + 400 * b"0" + b"]}\n", "JSON lines"),
    "nested without end": ("a.jsonl", 100_000 * b"[" + b"\n", "JSON lines"),
    "one vector": ("a.jsonl", b'{"vector": [1, 2]}\n', r"shape \(1, 2\)"),
}


@pytest.mark.parametrize(("name", "content", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_holds_none(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    """If this failed, a damaged file would end in an error of the library that reads it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MHEError, match=said) as refused:
        hf_mhe.analyze(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_archive_of_arrays_and_half_a_file(tmp_path: Path) -> None:
    """If this failed, the wrong array of several, or half a download, would be measured."""
    np.savez(tmp_path / "several", a=vectors(), b=vectors())
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(MHEError, match="several arrays"):
        hf_mhe.analyze(tmp_path / "several.npy")
    for write in (npy, parquet):
        path = write(tmp_path)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(MHEError, match="cannot be read"):
            hf_mhe.analyze(path)


def test_splits_are_named(tmp_path: Path) -> None:
    """If this failed, a user with several splits would not know what to give."""
    with pytest.raises(MHEError, match=r"several splits.*\(test, train\)"):
        hf_mhe.analyze(split(tmp_path).parent)


def test_missing_values_in_a_column_are_named(tmp_path: Path) -> None:
    """If this failed, sentences without an embedding would be measured as something."""
    features = datasets.Features({"vector": datasets.List(datasets.Value("float32"))})
    for at, hole, said in ((3, None, "row 3 has no vector"), (2, [1.0, None], "row 2 has a missing value")):
        rows: list[Any] = [[1.0, float(row)] for row in range(5)]
        rows[at] = hole
        datasets.Dataset.from_dict({"vector": rows}, features=features).to_parquet(tmp_path / "holes.parquet")
        with pytest.raises(MHEError, match=said):
            hf_mhe.analyze(tmp_path / "holes.parquet")


def test_what_was_given_for_something_else(tmp_path: Path) -> None:
    """If this failed, an option that says nothing about what is read would be taken and ignored."""
    with pytest.raises(MHEError, match="column 'a' was given for Linear"):
        hf_mhe.analyze(torch.nn.Linear(3, 3), column="a")
    with pytest.raises(MHEError, match="has no columns"):
        hf_mhe.analyze(npy(tmp_path), column="a")
    save_file({"a": torch.eye(4)}, tmp_path / "a.safetensors")
    with pytest.raises(MHEError, match=r"a\.safetensors: only a dataset"):
        hf_mhe.analyze(tmp_path / "a.safetensors", column="a")
    with pytest.raises(MHEError, match="revision 'main'"):
        hf_mhe.analyze(npy(tmp_path), revision="main")
    with pytest.raises(MHEError, match=r"there is no file .*gone\.npy"):
        hf_mhe.analyze(tmp_path / "gone.npy")
