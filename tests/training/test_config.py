"""The config: what it refuses, and that what was saved is what is read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

import hf_mhe
from hf_mhe import MHEConfig, MHEError

CHANGED = MHEConfig(
    s=1, distance="angular", space="full", softening=0.01, hidden_weight=2, output_weight=0.5, embedding_weight=0.25,
    include=["encoder.*", "re:^head"], exclude="*.pooler", output=["head.out"],
)  # fmt: skip


@pytest.mark.parametrize("name", ["s", "softening", "hidden_weight", "output_weight", "embedding_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "2", None, True, [1.0]])
def test_numbers_are_checked(name: str, value: Any) -> None:
    """A negative weight would pull neurons together, and a NaN would end the training at its first step."""
    with pytest.raises(MHEError, match=rf"^{name} must be a finite number >= 0; got"):
        MHEConfig(**{name: value})


@pytest.mark.parametrize("name", ["part_copies", "log_groups"])
@pytest.mark.parametrize("value", [None, 1, "no"])
def test_switches_are_true_or_false(name: str, value: Any) -> None:
    """`"no"` would switch something on."""
    with pytest.raises(MHEError, match=rf"^{name} must be True or False; got"):
        MHEConfig(**{name: value})


def test_a_file_of_an_older_version_means_what_it_meant() -> None:
    """A published config would name another energy than the model was trained with."""
    older = {key: value for key, value in CHANGED.to_dict().items() if key != "part_copies"} | {"softening": 0.0}
    potential = MHEConfig.from_dict(older).potential("hidden")
    assert (potential.softening, potential.closest, potential.parts) == (0.0, 0.0, False)
    default = MHEConfig().potential("hidden")
    assert 1 - 0.5 * default.closest**2 == pytest.approx(0.95)
    assert (default.softening, default.parts) == (0.0, True)
    assert MHEConfig.from_dict(MHEConfig().to_dict()) == MHEConfig()


@pytest.mark.parametrize(("name", "allowed"), [("distance", "'euclidean', 'angular'"), ("space", "'full', 'half'")])
@pytest.mark.parametrize("value", ["cosine", "", None, 2])
def test_options_list_what_is_allowed(name: str, allowed: str, value: Any) -> None:
    """A typing error in an option would have to be looked up in the source."""
    with pytest.raises(MHEError, match=f"^{name} must be one of {allowed}; got"):
        MHEConfig(**{name: value})


@pytest.mark.parametrize("name", ["include", "exclude", "output"])
@pytest.mark.parametrize("value", [[], [1], "", 3, {"a": ""}.values()])
def test_patterns_are_checked(name: str, value: Any) -> None:
    """An empty list of patterns would leave everything, or nothing, depending on who reads it."""
    with pytest.raises(MHEError, match=f"^{name} must be a pattern or a list of patterns"):
        MHEConfig(**{name: value})


def test_output_role_is_always_full_space() -> None:
    """Class vectors would repel the mirror images of each other (paper, section 3.3)."""
    config = MHEConfig(space="half")
    assert [config.potential(role).space for role in ("hidden", "output", "embedding")] == ["half", "full", "half"]
    with pytest.raises(MHEError, match="role must be one of 'hidden', 'output', 'embedding'"):
        config.weight("head")


@pytest.mark.parametrize("config", [MHEConfig(), CHANGED], ids=["defaults", "changed"])
def test_saved_is_what_is_read(config: MHEConfig, tmp_path: Path) -> None:
    """A published model would not say how it was trained."""
    path = config.save_pretrained(tmp_path / "new" / "folder")
    assert path.name == "mhe_config.json"
    assert json.loads(path.read_text())["hf_mhe_version"] == hf_mhe.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MHEConfig.from_pretrained(path.parent) == config
        assert MHEConfig.from_dict(config.to_dict()) == config


def test_keys_of_a_newer_version_are_named_in_one_warning() -> None:
    """A model published by a newer version could not be loaded, or would be loaded without a word."""
    values = {"s": 1.0, "temperature": 3, "anneal": 0.02, "hf_mhe_version": "9.0"}
    with pytest.warns(UserWarning, match="does not know and ignores") as caught:
        config = MHEConfig.from_dict(values)
    assert config == MHEConfig(s=1.0)
    assert len(caught) == 1
    assert "9.0" in str(caught[0].message)
    assert "anneal, temperature" in str(caught[0].message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"s": "two"}', "s must be a finite number"),
        ("[1, 2]", "mapping"),
        ("{", "not valid JSON"),
        ('{"s": NaN}', "s must be a finite number"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    """The user would get a traceback of the json module and not know which file."""
    (tmp_path / "mhe_config.json").write_text(text)
    with pytest.raises(MHEError, match=message) as error:
        MHEConfig.from_pretrained(tmp_path)
    assert "mhe_config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["folder", "nobody/nothing", "no/such/folder", "nothing"])
def test_a_missing_config_is_named(name: str, tmp_path: Path) -> None:
    """A wrong path would look like a problem of the Hub."""
    (tmp_path / "folder").mkdir()
    source = str(tmp_path / name) if name == "folder" else name
    with pytest.raises(MHEError, match=name) as error:
        MHEConfig.from_pretrained(source)
    assert "\n" not in str(error.value)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    """The config would be written over the user's file, or fail with the system's message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(MHEError, match="is a file"):
        MHEConfig().save_pretrained(tmp_path / "file")


def test_a_program_may_not_misspell() -> None:
    """`MHETrainer(mhe_config={"hiden_weight": 5})` would train with the default and say nothing."""
    assert MHEConfig.of({"hidden_weight": 5}) == MHEConfig(hidden_weight=5.0)
    assert MHEConfig.of(None) == MHEConfig()
    with pytest.raises(MHEError, match="no field 'hiden_weight'; fields: s, distance"):
        MHEConfig.of({"hiden_weight": 5})
    with pytest.raises(MHEError, match="got str"):
        MHEConfig.of("half")  # type: ignore[arg-type]


def test_hf_argument_parser_reads_it() -> None:
    """A script would have to repeat every field of the config for its command line."""
    line = ["--s", "1", "--distance", "angular", "--hidden_weight", "0.5", "--exclude", "*.pooler", "*.head"]
    (config,) = HfArgumentParser(MHEConfig).parse_args_into_dataclasses(line)  # type: ignore[arg-type]
    assert config == MHEConfig(s=1, distance="angular", hidden_weight=0.5, exclude=["*.pooler", "*.head"])
