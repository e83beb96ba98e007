"""The config on a script's command line, beside transformers' own arguments."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_mhe import MHEArguments, MHEConfig, MHEError


def parse(*line: str) -> MHEArguments:
    (arguments,) = HfArgumentParser(MHEArguments).parse_args_into_dataclasses(list(line))  # type: ignore[arg-type]
    return arguments


def test_a_scripts_command_line_holds_both(tmp_path: Path) -> None:
    """A script could not offer the penalty on its command line without repeating every field."""
    parser = HfArgumentParser((TrainingArguments, MHEArguments))  # type: ignore[arg-type]
    line = f"--output_dir {tmp_path} --warmup_steps 7 --mhe_s 1 --mhe_space full --mhe_hidden_weight 0.5"
    line += " --mhe_exclude *.pooler re:^head --mhe_schedule cosine --mhe_warmup_steps 3 --mhe_log_groups"
    training, mhe = parser.parse_args_into_dataclasses(line.split())
    assert training.warmup_steps == 7  # the learning rate's own
    assert mhe.to_config() == MHEConfig(
        s=1,
        space="full",
        hidden_weight=0.5,
        exclude=["*.pooler", "re:^head"],
        schedule="cosine",
        warmup_steps=3,
        log_groups=True,
    )


def test_no_argument_is_the_default_config() -> None:
    """A script would train with other values than a program that writes `MHEConfig()`."""
    assert parse().to_config() == MHEConfig()


def test_every_field_can_be_given() -> None:
    """A field added to the config would be missing on the command line, or be there without a word of help."""
    text = " ".join(HfArgumentParser(MHEArguments).format_help().split())  # type: ignore[arg-type]
    for item in fields(MHEConfig):
        assert f"--mhe_{item.name} " in text or f"--mhe_{item.name}]" in text, item.name
        assert item.metadata["help"] in text


def test_bad_values_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip on the command line would be found out after hours of training."""
    with pytest.raises(MHEError, match="hidden_weight must be a finite number >= 0; got -1"):
        parse("--mhe_hidden_weight", "-1").to_config()
    with pytest.raises(SystemExit):
        parse("--mhe_space", "quarter")
    assert "'full'" in capsys.readouterr().err


def test_arguments_can_be_pickled() -> None:
    """A launcher could not send them to its processes."""
    arguments = parse("--mhe_s", "1")
    assert pickle.loads(pickle.dumps(arguments)).to_config() == arguments.to_config()
