"""The config on a script's command line, beside transformers' own arguments."""

from __future__ import annotations

import pickle
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_mhe import MHEArguments, MHEConfig, MHEError
from tests.training.cases import make_tiny, slow_penalty


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


def test_softening_is_a_number_where_it_is_given() -> None:
    """The one field of two types would be refused by the parser, or taken for text."""
    assert parse().to_config() == MHEConfig(softening="auto")
    assert parse("--mhe_softening", "0.3").to_config() == MHEConfig(softening=0.3)
    assert parse("--no_mhe_part_copies").to_config() == MHEConfig(part_copies=False)


SCRIPT = """
import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_mhe import MHEArguments, MHETrainer
from tests.training.cases import make_tiny, tiny_data

if __name__ == "__main__":
    parser = HfArgumentParser((TrainingArguments, MHEArguments))
    training_args, mhe_args = parser.parse_args_into_dataclasses()
    model = make_tiny().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=training_args.learning_rate)
    config = mhe_args.to_config()
    trainer = MHETrainer(
        model, training_args, train_dataset=tiny_data(16), mhe_config=config, optimizers=(optimizer, None)
    )
    trainer.train()
    model = trainer.model
"""


@pytest.mark.slow
def test_a_script_trains_as_its_command_line_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments would be parsed, and something else be trained."""
    (tmp_path / "train.py").write_text(SCRIPT)
    line = f"train.py --output_dir {tmp_path} --use_cpu --max_steps 1 --max_grad_norm 0 --learning_rate 0.1"
    line += " --lr_scheduler_type constant --per_device_train_batch_size 4 --gradient_accumulation_steps 4"
    line += " --report_to none --save_strategy no"
    ends = []
    for mhe in ("--mhe_hidden_weight 0 --mhe_output_weight 0", "--mhe_s 1 --mhe_space full --mhe_hidden_weight 0.7"):
        monkeypatch.setattr(sys, "argv", [*line.split(), *mhe.split()])
        ends.append(dict(runpy.run_path(str(tmp_path / "train.py"), run_name="__main__")["model"].named_parameters()))
    model = make_tiny().double()
    terms = [
        (model.body.weight, 0.7, "full"),
        (model.middle.weight, 0.7, "full"),
        (model.classifier.weight, 1.0, "full"),
    ]
    gradient = torch.autograd.grad(slow_penalty(terms, s=1.0), [rows for rows, _, _ in terms])
    for name, value in zip(("body.weight", "middle.weight", "classifier.weight"), gradient, strict=True):
        torch.testing.assert_close(ends[1][name] - ends[0][name], -0.1 * value, rtol=1e-9, atol=1e-12)


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
