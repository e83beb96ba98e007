# Train a causal language model with minimum hyperspherical energy and TRL's SFTTrainer, in full, with LoRA or QLoRA.
# As it stands: a small Llama with random weights, on the source of Python's standard library.
#
#   python recipes/causal_lm.py                            # in an environment with pip install -e ".[recipes]"
#   accelerate launch --config_file recipes/accelerate_configs/fsdp2.yaml recipes/causal_lm.py \
#       --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/Capybara --learning_rate 2e-5 --mhe_budget 0.05
#   python recipes/causal_lm.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name my_texts.csv \
#       --use_peft --load_in_4bit --learning_rate 2e-4
#
# --mhe_hidden_weight 0 --mhe_output_weight 0 is the same training without MHE; --quick tries whether all of it runs.
from __future__ import annotations

import math
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

import hf_mhe

DEFAULTS = {
    "output_dir": "causal_lm", "learning_rate": 2e-3, "max_steps": 150, "max_length": 256, "packing": True,
    "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "lr_scheduler_type": "cosine", "bf16": False,
    "max_train_samples": 400, "max_eval_samples": 10,
}  # fmt: skip
VOCABULARY = "re:embed|wte|wpe|shared$"  # not in the table: its rows take longer to compare than all other layers
QUICK = DEFAULTS | {
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8, "max_train_samples": 64,
    "max_eval_samples": 32,
}  # fmt: skip


@dataclass
class ScriptArguments:
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, a folder or a file. Default: Python's."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The part to train on."})
    test_split: str = field(default="test", metadata={"help": "The part to evaluate on; made where there is none."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many."})
    quick: bool = field(default=False, metadata={"help": "A few steps, to see whether it runs."})


def load_data(args: ScriptArguments, text: str) -> DatasetDict:
    """The splits `train` and `test`: texts, or whatever else SFTTrainer takes."""
    if args.dataset_name is None:
        from offline import standard_library

        dataset = standard_library()
    elif (file := Path(args.dataset_name).resolve()).is_file():
        dataset = load_dataset(str(file.parent), data_files=file.name)
    else:
        dataset = load_dataset(args.dataset_name, args.dataset_config)
    for split in (args.train_split, args.test_split):
        if split not in dataset and (split == args.train_split or split != "test"):
            raise ValueError(f"the data has no split {split!r}; it has {', '.join(dataset)}")
    parts = {"train": args.train_split, "test": args.test_split}
    dataset = DatasetDict({part: dataset[split] for part, split in parts.items() if split in dataset})
    for part, rows in dataset.items():
        columns = [name for name in (text, "messages", "prompt", "completion") if name in rows.column_names]
        if columns in ([], ["prompt"], ["completion"]):
            raise ValueError(
                f"the {part} data has no column {text!r}, messages, or prompt and completion; it has "
                f"{', '.join(rows.column_names)} (--dataset_text_field)"
            )
        for column in columns:
            if rows.data.column(column).null_count:
                raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
        if text in columns and rows.features[text] not in (Value("string"), Value("large_string")):
            raise ValueError(f"the column {text!r} has no texts: it is {rows.features[text]}")
    if "test" not in dataset:
        dataset = dataset["train"].train_test_split(0.1, seed=0)
    limits = {"train": args.max_train_samples, "test": args.max_eval_samples}
    return DatasetDict({name: rows.take(min(limits[name] or len(rows), len(rows))) for name, rows in dataset.items()})


def load_tokenizer(model: str, **version: Any) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where its files are missing, transformers makes one without words, or fails."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **version)
    except Exception as error:  # of the kind that each class of tokenizers has
        raise ValueError(f"{model} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}:
        raise ValueError(f"{model} has no tokenizer with words: its files are missing, such as tokenizer.json")
    return tokenizer


def build_trainer(args: ScriptArguments, training_args: SFTConfig, model_args: ModelConfig, config: hf_mhe.MHEConfig):
    set_seed(training_args.seed)
    with training_args.main_process_first():
        dataset = load_data(args, training_args.dataset_text_field)
    version = {"revision": model_args.model_revision}
    if model_args.model_name_or_path is None:
        from offline import byte_pairs

        if (text := training_args.dataset_text_field) not in dataset["train"].column_names:
            raise ValueError(f"the default model reads a column {text!r}; others need --model_name_or_path")
        tokenizer = byte_pairs(dataset["train"][text])
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=len(tokenizer)))
    else:
        tokenizer = load_tokenizer(model_args.model_name_or_path, **version)
        model = AutoModelForCausalLM.from_pretrained(
            model_args.model_name_or_path,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            **version,
            quantization_config=get_quantization_config(model_args),
        )
    if model_args.use_peft:
        from peft import get_peft_model

        model = get_peft_model(model, get_peft_config(model_args))
    return hf_mhe.with_mhe(SFTTrainer)(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        mhe_config=config,
    )


def check(training_args: SFTConfig, adapter: bool) -> None:
    """Refuse before the training what would end it later."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:  # accelerate does not connect them where it finds no GPU
        raise ValueError(f"{launched} processes were launched, each for itself: without GPUs, add --use_cpu")
    start = training_args.resume_from_checkpoint
    if start and not Path(start, "trainer_state.json").is_file():
        raise ValueError(f"there is no checkpoint in {start}: it has no trainer_state.json")
    other = "model*.safetensors" if adapter else "adapter_model.safetensors"
    if any(Path(training_args.output_dir).glob(other)):  # which from_pretrained would take for the result, or a part
        with_or_without = "without" if adapter else "with"
        raise ValueError(
            f"{training_args.output_dir} has a model {with_or_without} an adapter in it: give another --output_dir"
        )
    if Path(training_args.output_dir).is_dir():
        tempfile.TemporaryFile(dir=training_args.output_dir).close()  # can it be written?


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, SFTConfig, ModelConfig, hf_mhe.MHEArguments))
    parser.set_defaults(**(QUICK if "--quick" in sys.argv else DEFAULTS))
    try:
        args, training_args, model_args, mhe_args = parser.parse_args_into_dataclasses()
        check(training_args, model_args.use_peft)
        trainer = build_trainer(args, training_args, model_args, mhe_args.to_config())
        before = hf_mhe.analyze(trainer.model, exclude=VOCABULARY) if trainer.is_world_process_zero() else None
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # before anything else can fail
    metrics = trainer.evaluate()
    metrics["eval_perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        trained = trainer.model if model_args.use_peft else training_args.output_dir
        change = hf_mhe.compare(before, hf_mhe.analyze(trained, exclude=VOCABULARY))
        columns = ["name", "n", "d", "spread_before", "spread_after", "verdict"]
        print(change.to_pandas()[columns].to_string(index=False, float_format="%.3f"))
        print(f"mean spread {change.before.summary.mean_spread:.3f} -> {change.after.summary.mean_spread:.3f}")
        if training_args.push_to_hub:  # what Trainer has pushed gets its card: energies, figures and metrics
            hf_mhe.push_to_hub(
                training_args.output_dir, trainer.hub_model_id, before=before, after=change.after, metrics=metrics
            )
    trainer.accelerator.wait_for_everyone()  # leaving early may abort, and end the rest (pytorch/pytorch#190489)
    trainer.end()


if __name__ == "__main__":
    main()
