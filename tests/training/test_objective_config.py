"""What a config may say of the objective, and that it is what is trained."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from hf_mhe import MHEArguments, MHEConfig, MHEError
from tests.training.definitions import DEFINITIONS, OF_ENERGY, OPTIONS

NAMES = tuple(DEFINITIONS)


def test_an_unknown_name_lists_all() -> None:
    """A typing error would have to be looked up in the source."""
    with pytest.raises(MHEError) as error:
        MHEConfig(objective="mma")  # type: ignore[arg-type]
    for name in ("energy", *NAMES, "mma"):
        assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("srip", {"dim": 3}, "objective='srip' has no option 'dim' in objective_options; options: iterations"),
        ("separation", {"dim": 3}, "it has none"),
        ("energy", {"dim": 3}, "objective='energy' has no option 'dim'"),
        ("srip", {"iterations": 0}, "iterations in objective_options must be an integer >= 1; got 0"),
        ("comhe_random", {"dim": 1}, "dim in objective_options must be an integer >= 2; got 1"),
        ("comhe_random", {"projections": 2.5}, "projections in objective_options must be an integer >= 1; got 2.5"),
        ("gram_determinant", {"epsilon": 0}, "epsilon in objective_options must be a finite number > 0; got 0"),
        ("gram_determinant", {"jitter": -1}, "jitter in objective_options must be a finite number >= 0; got -1"),
        ("comhe_adversarial", {"unroll": 1}, "unroll in objective_options must be True or False; got 1"),
        ("comhe_adversarial", {"step_size": math.nan}, "step_size in objective_options must be"),
        ("srip", "iterations=3", "objective_options must be a dict"),
        ("srip", [3], "objective_options must be a dict"),
    ],
)
def test_options_are_checked_when_the_config_is_made(name: Any, options: Any, message: str) -> None:
    """A slip would be found at the first step, or be ignored."""
    with pytest.raises(MHEError) as error:
        MHEConfig(objective=name, objective_options=options)
    assert message in str(error.value)


SETTINGS = {"s": 1.0, "distance": "angular", "space": "full", "softening": 0.1}
TAKES = {"minimal_angle": {"space"}, "separation": {"distance", "space"}, "gram_determinant": {"space"}}


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_means_nothing_is_refused(name: str) -> None:
    """A training would be taken for one of an exponent or a distance that it never had."""
    for setting, value in SETTINGS.items():
        if name in OF_ENERGY or setting in TAKES.get(name, set()):
            assert getattr(MHEConfig(objective=name, **{setting: value}), setting) == value
        else:
            with pytest.raises(MHEError, match=f"^{setting}={value!r} has no effect with objective='{name}'"):
                MHEConfig(objective=name, **{setting: value})


@pytest.mark.parametrize("name", ["energy", *NAMES])
def test_a_saved_config_is_the_same(name: str, tmp_path: Path) -> None:
    """A published config would name another objective than the model was trained with."""
    config = MHEConfig(objective=name, objective_options=OPTIONS.get(name))  # type: ignore[arg-type]
    config.save_pretrained(tmp_path)
    assert MHEConfig.from_pretrained(tmp_path) == config
    saved = json.loads((tmp_path / "mhe_config.json").read_text())
    assert (saved["objective"], saved["objective_options"]) == (name, OPTIONS.get(name))
    older = {key: value for key, value in saved.items() if not key.startswith("objective")}
    assert MHEConfig.from_dict(older).objective == "energy"


def test_one_word_switches_the_objective() -> None:
    """Whoever compares regularizers would have to change more than one word of a config."""
    for name in NAMES:
        assert dataclasses.replace(MHEConfig(hidden_weight=0.1, budget=0.1), objective=name).objective == name


def test_on_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep over objectives would need a script of its own."""

    def parse(*line: str) -> MHEConfig:
        (arguments,) = HfArgumentParser(MHEArguments).parse_args_into_dataclasses(list(line))  # type: ignore[arg-type]
        return arguments.to_config()

    assert parse("--mhe_objective", "minimal_angle") == MHEConfig(objective="minimal_angle")
    chosen = parse("--mhe_objective", "srip", "--mhe_objective_options", '{"iterations": 5}')
    assert chosen == MHEConfig(objective="srip", objective_options={"iterations": 5})
    (from_file,) = HfArgumentParser(MHEArguments).parse_dict(  # type: ignore[arg-type]
        {"mhe_objective": "srip", "mhe_objective_options": {"iterations": 5}}
    )
    assert from_file.to_config() == chosen
    with pytest.raises(SystemExit):
        parse("--mhe_objective", "mma")
    assert "'soft_orthogonality'" in capsys.readouterr().err
