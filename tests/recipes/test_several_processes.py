"""The recipes in two processes: DDP under `accelerate launch`, FSDP2 and ZeRO-2 under torchrun, and what cannot be."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import pytest

from tests.recipes.in_turn import Outcome, in_turn
from tests.recipes.scripts import (
    OWN,
    RECIPES,
    Own,
    furthest,
    images,
    in_this_process,
    in_two_processes,
    launched_by_accelerate,
    own,
    pairs_of_two_embeddings,
    parameters,
    spreads,
    weights,
)

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "tests.recipes.sharded"]
# Scripts that a library beneath them cannot run on an engine, and how it fails: a test fails as soon as it can.
IMPOSSIBLE = {
    # sentence-transformers saves the model that it trains, whose parameters are shards, and not what Trainer gathers
    # for it. Its maintainers call FSDP "somewhat" supported (huggingface/sentence-transformers#2449, #3023).
    ("fsdp2", "sentence_embeddings"): r"save_pretrained(.|\n)*data pointer on an invalid python storage",
}


@pytest.mark.parametrize("script", OWN)
def test_two_processes_end_where_one_does(script: str, tmp_path: Path) -> None:
    """The launch line of a recipe would train something else than the plain line, batch for batch."""
    given, trained = own(script)
    arguments = [*given.given(tmp_path, processes=2), given.on_cpus]
    said = in_two_processes(launched_by_accelerate("multi_gpu"), RECIPES / f"{script}.py", *arguments)
    assert spreads(said)
    assert furthest(weights(tmp_path), weights(trained)) < 1e-5


def test_a_process_that_aborts_as_it_leaves_takes_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher ends every process when one aborts, as one of gloo does now and then when it leaves."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\nif os.environ.get('RANK') == '1':\n    atexit.register(os.abort)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    given, _ = own("upcycle")
    arguments = [*given.given(tmp_path / "trained", processes=2), given.on_cpus]
    with pytest.raises(AssertionError, match=r"exitcode *: -6 ") as failed:
        in_two_processes(launched_by_accelerate("multi_gpu"), RECIPES / "upcycle.py", *arguments)
    assert spreads(str(failed.value))
    assert "cosine of experts by layer, with:" in str(failed.value)


def test_federated_clients_of_two_processes_end_where_those_of_one_do(tmp_path: Path) -> None:
    """A client's rows would be divided otherwise, or the mean be of one process's models."""
    given = images(tmp_path)
    rounds = {"federated": 2, "num_train_epochs": 2, "max_steps": 2}
    assert in_this_process("class_prototypes", *given.given(tmp_path / "one", **rounds)) == 0
    arguments = [*given.given(tmp_path / "two", processes=2, **rounds), given.on_cpus]
    said = in_two_processes(launched_by_accelerate("multi_gpu"), RECIPES / "class_prototypes.py", *arguments)
    assert re.findall(r"round (\d) of 2: .*'eval_accuracy': \d", said) == ["1", "2"]
    assert furthest(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-5


def alone(engine: str, script: str) -> tuple[Own, Path]:
    """The training in one process that one on an engine is compared with."""
    if (engine, script) == ("fsdp2", "seq2seq"):
        return own(script, pairs_of_two_embeddings)
    return own(script)


@functools.cache
def sharded(engine: str) -> tuple[Path, dict[str, Outcome]]:
    """All scripts in two processes on an engine, in one launch; a folder for each in the folder."""
    folder, jobs = Path(tempfile.mkdtemp(prefix=f"{engine}-")), []
    for script in sorted(OWN, key=lambda script: (engine, script) in IMPOSSIBLE):  # a failure ends a launch
        given, _ = alone(engine, script)
        arguments = [*given.given(folder / script, processes=2), given.on_cpus]
        jobs.append([script, RECIPES / f"{script}.py", *arguments])
    return folder, in_turn(jobs, lambda *files: in_two_processes([*TORCHRUN, engine], *files, timeout=500))


@pytest.mark.timeout(1200)  # of the first, which starts all
@pytest.mark.parametrize("script", OWN)
@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_a_sharded_training_ends_where_one_process_does(engine: str, script: str) -> None:
    """A recipe would need another line where a model is sharded."""
    if engine == "zero2":
        pytest.importorskip("deepspeed")
    given, trained = alone(engine, script)
    folder, outcomes = sharded(engine)
    if expected := IMPOSSIBLE.get((engine, script)):
        assert re.search(expected, outcomes[script].fault), outcomes[script]
        return
    assert spreads(outcomes[script].checked())
    found, expected = parameters(folder / script, given.auto_class), parameters(trained, given.auto_class)
    assert furthest(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ("tensor_parallel", ["--use_cpu"], "error: Mesh should not be bigger than default world size 2"),
        ("multi_gpu", [], "error: 2 processes were launched, each for itself: without GPUs, add --use_cpu"),
    ],
)
def test_a_config_that_does_not_fit_the_machine_is_one_clear_line(
    config: str, more: list[str], expected: str, tmp_path: Path
) -> None:
    """A mesh of eight would end in pages of torch, and processes that are not connected in each other's files."""
    script = RECIPES / "image_classification.py"
    with pytest.raises(AssertionError) as failed:
        in_two_processes(launched_by_accelerate(config), script, "--quick", "--output_dir", tmp_path, *more)
    assert f"image_classification.py: {expected}" in str(failed.value)
    assert not list(tmp_path.iterdir())
