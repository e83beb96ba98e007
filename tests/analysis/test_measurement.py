"""The measurement of `evaluate`: loaded from the package's folder without a network, and equal to `measure`."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

evaluate = pytest.importorskip("evaluate")

import hf_mhe  # noqa: E402
from hf_mhe import MHEError, measure, measurement_path  # noqa: E402

pytestmark = pytest.mark.integrations
FOLDER = Path(measurement_path())


@pytest.fixture(scope="module")
def measurement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The measurement, its copy and its data in folders of their own."""
    home = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(home / "modules"))
        patch.setattr(sys, "path", [*sys.path])
        yield evaluate.load(measurement_path(), module_type="measurement", cache_dir=str(home / "data"))


def vectors(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A hundred vectors, two of them one direction and one of them zero."""
    made = torch.randn(100, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made[7], made[50] = 2 * made[3], 0
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_it_computes_what_measure_measures(measurement: Any, dtype: torch.dtype) -> None:
    """If this failed, a number of evaluate and one of a report would differ in their last digits, or in more."""
    expected = measure(vectors(dtype)).to_dict()
    assert measurement.compute(data=vectors(dtype)) == expected
    assert measurement.compute(predictions=vectors(dtype)) == expected
    if dtype != torch.bfloat16:
        assert measurement.compute(data=vectors(dtype).numpy()) == expected
    lists = vectors(dtype).double().tolist()
    assert measurement.compute(data=lists) == measure(lists).to_dict()


@pytest.mark.parametrize("options", [{"s": 0.0, "space": "half"}, {"distance": "angular", "duplicate_cosine": 0.5}])
def test_options_and_names_are_handed_on(measurement: Any, options: dict[str, Any]) -> None:
    """If this failed, an option would be ignored, which nobody sees in one number."""
    names = [f"text {row}" for row in range(100)]
    found = measurement.compute(data=vectors(), names=names, **options)
    assert found == measure(vectors(), names=names, **options).to_dict()
    assert [found["row_names"][str(row)] for row in found["nearest_pair"]] == ["text 3", "text 7"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vectors_are_added_in_batches_and_one_by_one(measurement: Any, dtype: torch.dtype) -> None:
    """If this failed, a loop over a dataset would lose vectors, or measure those of the loop before."""
    given = vectors(dtype)
    expected = measure(given).to_dict()
    for batch in given[:-1].split(33):
        measurement.add_batch(data=batch)
    measurement.add(data=given[-1])
    assert measurement.compute() == expected
    for batch in given[:64].split(1):
        measurement.add_batch(predictions=batch.numpy())
    for vector in given[64:]:
        measurement.add(prediction=vector.tolist() if dtype == torch.float64 else vector)
    assert measurement.compute() == expected
    measurement.add_batch(data=given[:50])
    assert measurement.compute(data=given[50:]) == expected
    assert measurement.compute(data=given.half()) == measure(given.half()).to_dict()


def test_the_data_may_stay_in_memory(measurement: Any, tmp_path: Path) -> None:
    """If this failed, the option of evaluate that avoids files would break."""
    in_memory = type(measurement)(keep_in_memory=True, cache_dir=str(tmp_path))
    assert in_memory.compute(data=vectors()) == measure(vectors()).to_dict()


@pytest.mark.slow  # evaluate waits a second for the lock of what failed before
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": [[1.0, 2.0], [3.0]]}, "row 1 has 1 numbers"),
        ({"data": [1.0, 2.0]}, "row 0"),
        ({"data": np.ones((3, 2), dtype=int)}, "int64"),
        ({"data": [["a", "b"], ["c", "d"]]}, "row 0"),
        ({"data": [[1.0, float("nan")], [1.0, 2.0]]}, "NaN"),
        ({"data": [[1.0, 2.0]]}, "1 row"),
        ({"data": vectors(), "predictions": vectors()}, "two names"),
        ({"predictions": vectors(), "references": vectors()}, "references"),
        ({"data": vectors(), "s": -1}, "s must be"),
        ({"data": vectors(), "names": ["a"]}, "1 were given for 100 rows"),
    ],
)
def test_bad_input(measurement: Any, given: dict[str, Any], said: str) -> None:
    """If this failed, a mistake would end in an error of Arrow, or spoil the next computation."""
    with pytest.raises(MHEError, match=said):
        measurement.compute(**given)
    assert measurement.compute(data=vectors()) == measure(vectors()).to_dict()


def test_batches_of_two_dimensions_are_refused(measurement: Any) -> None:
    """If this failed, vectors of two models would be one set."""
    measurement.add_batch(data=vectors())
    measurement.add_batch(data=vectors()[:, :5])
    with pytest.raises(MHEError, match="row 100 has 5 numbers, row 0 has 12"):
        measurement.compute()


def test_it_says_what_it_is(measurement: Any) -> None:
    """If this failed, evaluate would list and print it without a description, or as a metric."""
    assert (measurement.name, measurement.module_type) == ("hyperspherical_energy", "measurement")
    assert "liu2018learning" in measurement.citation
    assert list(measurement.features) == ["data"]
    for function in (measurement.compute, measurement.add_batch, measurement.add):
        assert measurement.inputs_description in function.__doc__
    options = set(re.findall(r"^    `(\w+)`", measurement.inputs_description.partition("Returns:")[0], re.MULTILINE))
    assert options == {"data", "names", "s", "distance", "space", "duplicate_cosine"}
    returned = re.findall(
        r"`(\w+)`", measurement.inputs_description.partition("Returns:")[2].partition("Examples:")[0]
    )
    assert set(returned) - {"int", "float", "str"} <= set(measure(vectors()).to_dict())


def offline(arguments: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """A program with an empty cache, and no way to any network."""
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "https_proxy": "http://127.0.0.1:9", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **nowhere},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_it_is_loaded_offline_in_a_fresh_home(tmp_path: Path) -> None:
    """If this failed, the first line of the card would need the Hub, where the measurement is not."""
    script = (
        "import evaluate, hf_mhe\n"
        "found = evaluate.load(hf_mhe.measurement_path()).compute(data=[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])\n"
        "assert found == hf_mhe.measure([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).to_dict()\n"
        "print(found['energy'])"
    )
    done = offline(["-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    # Chords of sqrt(2), sqrt(2) and 2, squared.
    assert float(done.stdout) == pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3)


@pytest.mark.story
def test_the_page_loads_it(tmp_path: Path) -> None:
    """If this failed, a Space made of the folder would not start."""
    import importlib.util

    if importlib.util.find_spec("gradio") is not None:
        pytest.skip("gradio is installed: the page would not end")
    done = offline([str(FOLDER / "app.py")], tmp_path)
    assert "No module named 'gradio'" in done.stderr.splitlines()[-1]
    assert "launch_gradio_widget" in done.stderr  # it was loaded, and only the page is missing


def test_the_card_is_whole() -> None:
    """If this failed, the Hub would not show the page of the measurement, or show it under a wrong name."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    card = yaml.safe_load(head)
    assert (card["sdk"], card["app_file"], card["tags"]) == ("gradio", "app.py", ["evaluate", "measurement"])
    assert (FOLDER / card["app_file"]).is_file()
    assert re.findall(r"^## (.*)", body, re.MULTILINE) == [
        "Measurement Description",
        "How to Use",
        "Limitations and Bias",
        "Citation",
        "Further References",
    ]
    assert {"evaluate", "hf-mhe"} == {
        re.split(r"[>=<]", line)[0] for line in (FOLDER / "requirements.txt").read_text(encoding="utf-8").split()
    }


@pytest.mark.slow
def test_the_examples_of_the_card_run(measurement: Any) -> None:
    """If this failed, the first thing that a reader of the card copies would not run, or say something else."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"measurement": measurement}
    for block in blocks:
        if ">>>" not in block:
            exec(block.replace("evaluate.load(hf_mhe.measurement_path())", "measurement"), {**names, "hf_mhe": hf_mhe})
    for source in (blocks[-1], measurement.inputs_description):
        example = source.replace("measurement = evaluate.load(hf_mhe.measurement_path())", "")
        (test,) = [doctest.DocTestParser().get_doctest(example, dict(names), "card", None, 0)]
        assert test.examples
        said: list[str] = []
        assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


def test_without_evaluate_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a user without the library would be given a path that nothing loads."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "evaluate" else object())
    with pytest.raises(MHEError, match=r"needs evaluate.*pip install 'hf-mhe\[integrations\]'"):
        measurement_path()
