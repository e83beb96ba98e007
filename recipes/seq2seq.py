# Train a sequence-to-sequence model with minimum hyperspherical energy. As it stands: a small T5 with random weights
# that says how English words are pronounced.
#
#   python recipes/seq2seq.py                              # in an environment with pip install -e ".[recipes]"
#   accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/seq2seq.py \
#       --model_name_or_path google/flan-t5-small --dataset_name knkarthick/dialogsum --source_column dialogue \
#       --target_column summary --learning_rate 1e-4
#   python recipes/seq2seq.py --model_name_or_path google/flan-t5-small --dataset_name my_pairs.csv \
#       --source_column question --target_column answer
#
# --mhe_hidden_weight 0 --mhe_output_weight 0 is the same training without MHE; --quick tries whether all of it runs.
from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import numpy as np
from datasets import DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    set_seed,
)

import hf_mhe

DEFAULTS = {
    "output_dir": "seq2seq", "learning_rate": 1e-3, "warmup_steps": 50, "max_steps": 1500, "max_eval_samples": 500,
    "per_device_train_batch_size": 64, "per_device_eval_batch_size": 100, "predict_with_generate": True,
    "generation_max_length": 64,
    # Else Trainer multiplies the loss by the number of processes, which is none for a mean over tokens, as T5's is.
    "average_tokens_across_devices": False,
}  # fmt: skip
VOCABULARY = "re:embed|wte|wpe|shared$"  # not in the table: its rows take longer to compare than all other layers
QUICK = DEFAULTS | {
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8, "max_train_samples": 64,
    "max_eval_samples": 32,
}  # fmt: skip


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model of the Hub or a folder. Default: a small T5 with random weights."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, a folder or a file. Default: words."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The part to train on."})
    test_split: str = field(default="test", metadata={"help": "The part to evaluate on; made where there is none."})
    source_column: str = field(default="word", metadata={"help": "The column with what is read."})
    target_column: str = field(default="phonemes", metadata={"help": "The column with what is to be written."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many."})
    metric: str = field(
        default=str(Path(__file__).parent / "metrics" / "wer"),
        metadata={"help": "A metric of evaluate: a folder, or a name on the Hub, such as wer."},
    )
    quick: bool = field(default=False, metadata={"help": "A few steps, to see whether it runs."})


def load_data(args: ScriptArguments) -> DatasetDict:
    """The splits `train` and `test`."""
    if args.dataset_name is None:
        from offline import pronunciations

        dataset = pronunciations()
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
        for column in (args.source_column, args.target_column):
            if column not in rows.column_names:
                raise ValueError(f"the {part} data has no column {column!r}; it has {', '.join(rows.column_names)}")
            if rows.data.column(column).null_count:
                raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
    for column in (args.source_column, args.target_column):
        if dataset["train"].features[column] not in (Value("string"), Value("large_string")):
            raise ValueError(f"the column {column!r} has no texts: it is {dataset['train'].features[column]}")
    if "test" not in dataset:
        dataset = dataset["train"].train_test_split(0.1, seed=0)
    limits = {"train": args.max_train_samples, "test": args.max_eval_samples}
    return DatasetDict({name: rows.take(min(limits[name] or len(rows), len(rows))) for name, rows in dataset.items()})


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where its files are missing, transformers makes one without words, or fails."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # of the kind that each class of tokenizers has
        raise ValueError(f"{model} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}:
        raise ValueError(f"{model} has no tokenizer with words: its files are missing, such as tokenizer.json")
    return tokenizer


def build_trainer(args: ScriptArguments, training_args: Seq2SeqTrainingArguments, config: hf_mhe.MHEConfig):
    set_seed(training_args.seed)
    with training_args.main_process_first():
        dataset = load_data(args)
    if args.model_name_or_path is None:
        from offline import whole_words

        rows = dataset["train"]
        tokenizer = whole_words([*rows[args.source_column], *rows[args.target_column]])
        sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        model = AutoModelForSeq2SeqLM.from_config(
            T5Config(**sizes, vocab_size=len(tokenizer), decoder_start_token_id=0, tie_word_embeddings=False)
        )
        model.lm_head.weight.data *= model.config.d_model**-0.5  # T5 itself does so only where the tables are tied
    else:
        tokenizer = load_tokenizer(args.model_name_or_path)
        model = AutoModelForSeq2SeqLM.from_pretrained(args.model_name_or_path)
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    if 0 < longest < tokenizer.model_max_length:  # which the tokenizer does not know
        tokenizer.model_max_length = longest - 2  # RoBERTa counts positions from 2

    def to_tokens(batch):
        return tokenizer(batch[args.source_column], text_target=batch[args.target_column], truncation=True)

    with training_args.main_process_first():
        dataset = dataset.map(to_tokens, batched=True, remove_columns=dataset["train"].column_names)
    metric = evaluate.load(args.metric)

    def compute_metrics(prediction):
        pads = (
            np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in (prediction.predictions, prediction.label_ids)
        )
        ours, theirs = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in pads)
        result = metric.compute(predictions=ours, references=theirs)
        return result if isinstance(result, dict) else {metric.name: result}

    return hf_mhe.with_mhe(Seq2SeqTrainer)(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=compute_metrics,
        mhe_config=config,
    )


def check(training_args: Seq2SeqTrainingArguments) -> None:
    """Refuse before the training what would end it later."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:  # accelerate does not connect them where it finds no GPU
        raise ValueError(f"{launched} processes were launched, each for itself: without GPUs, add --use_cpu")
    start = training_args.resume_from_checkpoint
    if start and not Path(start, "trainer_state.json").is_file():
        raise ValueError(f"there is no checkpoint in {start}: it has no trainer_state.json")
    if Path(training_args.output_dir).is_dir():
        tempfile.TemporaryFile(dir=training_args.output_dir).close()  # can it be written?


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, Seq2SeqTrainingArguments, hf_mhe.MHEArguments))
    parser.set_defaults(**(QUICK if "--quick" in sys.argv else DEFAULTS))
    try:
        args, training_args, mhe_args = parser.parse_args_into_dataclasses()
        check(training_args)
        trainer = build_trainer(args, training_args, mhe_args.to_config())
        before = hf_mhe.analyze(trainer.model, exclude=VOCABULARY) if trainer.is_world_process_zero() else None
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # before anything else can fail
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        change = hf_mhe.compare(before, hf_mhe.analyze(training_args.output_dir, exclude=VOCABULARY))
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
