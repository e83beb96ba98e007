"""`hf-mhe analyze` and `hf-mhe compare` on real weights: the table, the files, the check, the pipes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import harmonic_mean

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
LAYERS = ("encoder.layer.0.intermediate.dense", "encoder.layer.5.output.dense", "pooler.dense")
LONG = "decoder.block_with_a_long_name.0.another_long_name.1"  # the layers of two_layers begin with it
CHOSEN = [argument for layer in LAYERS for argument in ("--include", layer)]


def rows_of(stdout: str) -> dict[str, list[str]]:
    """The cells of each row of the printed table, by layer; a verdict is several words."""
    cells = [re.split(r" {2,}", line.strip()) for line in stdout.splitlines()]
    return {row[0]: row[1:] for row in cells if row[0] in LAYERS}


@pytest.mark.slow
def test_the_table_has_the_known_energies(hf_mhe: Run, minilm_path: Path, tmp_path: Path) -> None:
    """Else what users read is not what the weights are: values of a dense float32 computation by another program."""
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    outputs = [argument for kind, file in files.items() for argument in (f"--{kind}", file)]
    done = hf_mhe("analyze", minilm_path, *CHOSEN, *outputs, "--plot", tmp_path / "scores.png", "--verbose")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert list(rows) == list(LAYERS)  # most crowded first
    role, n, d, dimension, spread, verdict, energy, score, cosine, near_duplicates, dead = rows[LAYERS[0]]
    assert (role, n, d, energy, cosine, dead) == ("hidden", "1536", "384", "0.5191", "0.954", "0")
    assert (dimension, spread, verdict) == ("112.6", "0.293", "shared direction, few dimensions")
    assert float(score) > 1
    assert int(near_duplicates) == 1
    assert rows[LAYERS[1]][3] == "574.4"
    assert rows[LAYERS[1]][6] == "0.4998"
    assert rows[LAYERS[1]][8] == "0.736"
    assert "3 layers, 2304 neurons" in done.stdout
    assert "skipped encoder.layer.1.intermediate.dense.weight: left out" in done.stderr

    report = json.loads(files["json"].read_text())
    stored = {group["name"]: group for group in report["groups"]}
    assert set(stored) == set(LAYERS)
    assert stored[LAYERS[0]]["energy"] == pytest.approx(0.5191, abs=5e-5)
    with files["csv"].open(newline="") as stream:
        table = {row["name"]: row for row in csv.DictReader(stream)}
    assert {name: float(row["energy"]) for name, row in table.items()} == {
        name: group["energy"] for name, group in stored.items()
    }
    page = files["html"].read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert all(layer in page for layer in LAYERS)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_json_to_stdout_is_json_alone(hf_mhe_process: Run, two_layers: Path) -> None:
    """Else `hf-mhe analyze ... --json - | jq` would break on a table; and the potential asked for is the one used."""
    done = hf_mhe_process("analyze", two_layers, "--include", "*.random", "--json", "-", "--space", "half", "--s", "1")
    report = json.loads(done.stdout)
    assert report["potential"] == {"s": 1.0, "distance": "euclidean", "space": "half"}
    assert [group["name"] for group in report["groups"]] == [f"{LONG}.random"]


@pytest.mark.story
@pytest.mark.slow
def test_the_check_fails_with_status_1_and_says_where(hf_mhe_process: Run, two_layers: Path) -> None:
    """Else a gate in CI would let a redundant model through, or stop a good one."""
    failed = hf_mhe_process("analyze", two_layers, "--fail-above", "2")
    assert failed.returncode == 1
    assert f"above 2: {LONG}.alike has score" in failed.stderr
    assert f"{LONG}.random has score" not in failed.stderr
    assert f"{LONG}.random" in failed.stdout  # the table is printed all the same
    passed = hf_mhe_process("analyze", two_layers, "--fail-above", "1000000", "--top", "1")
    assert passed.returncode == 0
    assert "above" not in passed.stderr
    assert f" {LONG}.alike " in passed.stdout
    assert f" {LONG}.random " not in passed.stdout


@pytest.mark.slow
def test_the_check_of_spreads_fails_with_status_1_and_says_where(hf_mhe_process: Run, two_layers: Path) -> None:
    """Else a gate in CI would let a crowded model through, or stop a good one."""
    failed = hf_mhe_process("analyze", two_layers, "--fail-below", "0.5", "--json", "-")
    assert failed.returncode == 1
    spreads = {group["name"]: group["spread"] for group in json.loads(failed.stdout)["groups"]}
    assert f"below 0.5: {LONG}.alike has spread {spreads[f'{LONG}.alike']:.3f}" in failed.stderr
    assert f"{LONG}.random has spread" not in failed.stderr
    limit = str(spreads[f"{LONG}.alike"] * 0.999)
    assert hf_mhe_process("analyze", two_layers, "--fail-below", limit).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-below", "0"], "--fail-below 0.0: a finite spread above 0"),
        (["--fail-below", "nan"], "--fail-below nan: a finite spread above 0"),
        (["--explain", f"{LONG}.alke"], f"--explain {LONG}.alke: no layer of .* the nearest are {LONG}.alike"),
    ],
)
def test_bad_checks_and_names_are_one_line(hf_mhe: Run, two_layers: Path, arguments: list[str], told: str) -> None:
    """Else a mistyped layer or limit ends in silence, or in a traceback."""
    done = hf_mhe("analyze", two_layers, *arguments)
    assert done.returncode == 2
    assert re.search(told, done.stderr.replace("\n", " "))
    assert "Traceback" not in done.stderr


def test_a_layer_is_explained(hf_mhe: Run, two_layers: Path) -> None:
    """Else a user has a number and nobody to ask."""
    done = hf_mhe("analyze", two_layers, "--explain", f"{LONG}.alike", "--explain", f"{LONG}.random")
    assert done.returncode == 0, done.stderr
    assert f"{LONG}.random: as random" in done.stdout
    assert "no more crowded than random directions" in done.stdout
    said = hf_mhe("analyze", two_layers, "--explain", f"{LONG}.random", "--json", "-")
    assert json.loads(said.stdout)["format"] == "hf_mhe.energy_report"
    assert "no more crowded than random directions" in said.stderr


def test_spectra_are_shown_on_request(hf_mhe: Run, two_layers: Path) -> None:
    """Else every table is wider than a screen, or the ranks that were asked for are in none."""
    assert "stable rank" not in hf_mhe("analyze", two_layers).stdout
    done = hf_mhe("analyze", two_layers, "--spectrum")
    assert all(name in done.stdout for name in ("spectral norm", "stable rank", "effective rank", "numerical rank"))


@pytest.mark.slow
def test_heads_are_listed_apart_and_together(hf_mhe: Run, minilm_path: Path, tmp_path: Path) -> None:
    """Else `--by-head` would show twelve rows that nobody can sum up, or the sum without the heads."""
    layer, csv_file = "encoder.layer.0.attention.self.query", tmp_path / "stacks.csv"
    done = hf_mhe("analyze", minilm_path, "--by-head", "--include", layer)
    assert done.returncode == 0, done.stderr
    rows = {row[0]: row[1:] for row in map(str.split, done.stdout.splitlines()) if row and row[0].startswith(layer)}
    assert set(rows) == {f"{layer}.head.{head}" for head in range(12)} | {f"{layer}.head.*"}
    assert rows[f"{layer}.head.3"][:3] == ["hidden", "32", "384"]
    assert rows[f"{layer}.head.*"][:4] == ["hidden", "12", "384", "384"]  # heads, neurons, dimension
    spreads = [float(rows[f"{layer}.head.{head}"][4]) for head in range(12)]
    assert float(rows[f"{layer}.head.*"][4]) == pytest.approx(harmonic_mean(spreads), abs=1e-3)
    assert float(rows[f"{layer}.head.*"][5]) == min(spreads)
    done = hf_mhe("analyze", minilm_path, "--by-head", "--aggregate", "--include", layer, "--csv", csv_file)
    assert [row[0] for row in map(str.split, done.stdout.splitlines()) if row and layer in row[0]] == [
        f"{layer}.head.*"
    ]
    with csv_file.open(newline="") as stream:
        assert [(row["name"], row["groups"]) for row in csv.DictReader(stream)] == [(f"{layer}.head.*", "12")]


@pytest.mark.slow
def test_a_narrow_terminal_does_not_cut_what_goes_into_a_pipe(hf_mhe: Run, two_layers: Path) -> None:
    """Else `hf-mhe analyze ... | grep LAYER` would miss layers whose names were wrapped or cut."""
    rows = [
        re.split(r" {2,}", line.strip()) for line in hf_mhe("analyze", two_layers, COLUMNS="40").stdout.splitlines()
    ]
    assert [row[0] for row in rows if len(row) == 12 and row[1] == "hidden"] == [f"{LONG}.alike", f"{LONG}.random"]


@pytest.mark.slow
def test_compare_sets_saved_reports_side_by_side(hf_mhe: Run, two_layers: Path, tmp_path: Path) -> None:
    """Else before and after could not be told apart: a model is like itself, and a report is like the model."""
    report, comparison = tmp_path / "report.json", tmp_path / "comparison.json"
    assert hf_mhe("analyze", two_layers, "--json", report).returncode == 0
    done = hf_mhe("compare", report, two_layers, "--json", comparison, "--html", tmp_path / "c.html")
    assert done.returncode == 0, done.stderr
    summary = json.loads(comparison.read_text())["summary"]
    assert (summary["unchanged"], summary["improved"], summary["worsened"]) == (2, 0, 0)
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(LONG)]
    assert [row[5] for row in rows] == ["+0.000", "+0.000"]
    assert (tmp_path / "c.html").read_text().lstrip().lower().startswith("<!doctype html")
