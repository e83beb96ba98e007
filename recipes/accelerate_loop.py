# A loop of your own with accelerate, laid out as accelerate's examples/nlp_example.py. What minimum hyperspherical
# energy (MHE) adds is under `# New Code #`; the rest is a loop as anybody has it. As it stands: MiniLM, which language
# a name of a place, a language or a currency is in.
#
#   python recipes/accelerate_loop.py                      # in an environment with pip install -e ".[recipes]"
#   accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/accelerate_loop.py \
#       --model_name_or_path answerdotai/ModernBERT-base --dataset_name stanfordnlp/imdb
#   python recipes/accelerate_loop.py --num_epochs 3 --resume_from_checkpoint accelerate_loop/epoch_0
#
# --mhe_hidden_weight 0 --mhe_output_weight 0 is the same training without MHE; --quick tries whether all of it runs.
from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from datasets import ClassLabel, DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

# New Code #
import hf_mhe

VOCABULARY = "re:embed|wte|wpe|shared$"  # not compared: its rows take longer than all other layers
QUICK = {"num_epochs": 2, "batch_size": 8, "max_train_samples": 32, "max_eval_samples": 32}


@dataclass
class LoopArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "A model. Default: MiniLM."})
    dataset_name: str | None = field(default=None, metadata={"help": "Data with text and label. Default: names."})
    output_dir: str = field(default="accelerate_loop", metadata={"help": "Where checkpoints and the model go."})
    metric: str = field(
        default=str(Path(__file__).parent / "metrics" / "accuracy"), metadata={"help": "A metric of evaluate."}
    )
    learning_rate: float = field(default=3e-4, metadata={"help": "At the end of the warm-up."})
    num_epochs: int = field(default=1, metadata={"help": "Passes over the data."})
    batch_size: int = field(default=64, metadata={"help": "Of each process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of an optimizer step."})
    seed: int = field(default=42, metadata={"help": "Of the data's order and of new weights."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many, drawn once."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many, drawn once."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A folder epoch_N to go on from."})
    report_to: str | None = field(default=None, metadata={"help": "A tracker, such as tensorboard."})
    push_to_hub: str | None = field(default=None, metadata={"help": "The repository to publish the model to."})
    cpu: bool = field(default=False, metadata={"help": "Train on CPUs, with several processes too."})
    quick: bool = field(default=False, metadata={"help": "A few steps, to see whether it runs."})


def as_classes(dataset: DatasetDict, column: str) -> DatasetDict:
    """Class labels in place of words or whole numbers, in the order of these."""
    feature = dataset["train"].features[column]
    if not isinstance(feature, ClassLabel):
        if not isinstance(feature, Value) or "float" in feature.dtype:
            raise ValueError(f"the column {column!r} has no classes: it is {feature}")
        words = dataset.cast_column(column, Value("string"))
        values = dict(zip(words["train"].unique(column), dataset["train"].unique(column), strict=True))
        for part, rows in words.items():
            if unseen := set(rows.unique(column)) - {"-1", *values}:
                raise ValueError(f"the {part} data has a {column!r} that train lacks: {', '.join(sorted(unseen))}")
        dataset = words.cast_column(column, ClassLabel(names=sorted(values, key=values.get)))
    for part, rows in dataset.items():
        if -1 in rows.unique(column):  # as data sets of the Hub mark labels that they keep secret
            raise ValueError(f"the {part} data has rows without a {column!r}")
    if len(dataset["train"].unique(column)) < 2:
        raise ValueError(f"the train data has only one {column!r}: there is nothing to tell apart")
    return dataset


def load_data(args: LoopArguments) -> DatasetDict:
    """The splits `train` and `test` with texts and class labels."""
    if args.dataset_name is None:
        from offline import place_names

        dataset = place_names()
    elif (file := Path(args.dataset_name).resolve()).is_file():
        dataset = load_dataset(str(file.parent), data_files=file.name)
    else:
        dataset = load_dataset(args.dataset_name)
    if "train" not in dataset:
        raise ValueError(f"the data has no split 'train'; it has {', '.join(dataset)}")
    dataset = DatasetDict({part: dataset[part] for part in ("train", "test") if part in dataset})
    for part, rows in dataset.items():
        for column in ("text", "label"):
            if column not in rows.column_names:
                raise ValueError(f"the {part} data has no column {column!r}; it has {', '.join(rows.column_names)}")
            if rows.data.column(column).null_count:
                raise ValueError(f"the {part} data has rows without a {column!r}")
    if dataset["train"].features["text"] not in (Value("string"), Value("large_string")):
        raise ValueError(f"the column 'text' has no texts: it is {dataset['train'].features['text']}")
    dataset = as_classes(dataset, "label")
    return dataset if "test" in dataset else dataset["train"].train_test_split(0.1, seed=0)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where its files are missing, transformers makes one without words, or fails."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # of the kind that each class of tokenizers has
        raise ValueError(f"{model} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}:
        raise ValueError(f"{model} has no tokenizer with words: its files are missing, such as tokenizer.json")
    return tokenizer


def get_dataloaders(accelerator: Accelerator, args: LoopArguments):
    with accelerator.main_process_first():
        datasets = load_data(args)
    names = datasets["train"].features["label"].names
    tokenizer = load_tokenizer(args.model_name_or_path)
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    longest = getattr(config, "max_position_embeddings", None) or 0
    if 0 < longest < tokenizer.model_max_length:  # which the tokenizer does not know
        tokenizer.model_max_length = longest - 2  # RoBERTa counts positions from 2
    if tokenizer.pad_token is None:  # as of many decoders
        tokenizer.pad_token = tokenizer.eos_token
    loaders = []
    for split, limit in (("train", args.max_train_samples), ("test", args.max_eval_samples)):
        rows = datasets[split]
        if limit:  # drawn, and not the first: many data sets are sorted by class
            rows = rows.shuffle(seed=0).take(min(limit, len(rows)))
        with accelerator.main_process_first():
            rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
        rows = rows.rename_column("label", "labels").select_columns(
            [*tokenizer.model_input_names[:1], "attention_mask", "labels"]
        )
        collate = DataCollatorWithPadding(tokenizer)
        loaders.append(DataLoader(rows, args.batch_size, shuffle=split == "train", collate_fn=collate))
    return *loaders, tokenizer, names


def training_function(accelerator: Accelerator, args: LoopArguments, prepared, mhe_config: hf_mhe.MHEConfig) -> None:
    model, tokenizer, train_dataloader, eval_dataloader, metric = prepared
    optimizer = AdamW(model.parameters(), lr=args.learning_rate)
    num_steps = args.num_epochs * -(-len(train_dataloader) // args.gradient_accumulation_steps)
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, num_steps // 20, num_steps)

    # New Code #
    before = hf_mhe.analyze(model, exclude=VOCABULARY) if accelerator.is_main_process else None

    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )

    # New Code # (its steps are the optimizer's, of which several processes make fewer)
    total_steps = args.num_epochs * -(-len(train_dataloader) // args.gradient_accumulation_steps)
    regularizer = hf_mhe.MHERegularizer(model, mhe_config, total_steps=total_steps, seed=args.seed)
    accelerator.register_for_checkpointing(regularizer)

    starting_epoch = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        starting_epoch = int(Path(args.resume_from_checkpoint).name.removeprefix("epoch_")) + 1

    for epoch in range(starting_epoch, args.num_epochs):
        model.train()
        train_dataloader.set_epoch(epoch)
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                # New Code #
                loss = regularizer(loss)
                accelerator.backward(loss)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()

        model.eval()
        for batch in eval_dataloader:
            with torch.no_grad():
                predictions = model(**batch).logits.argmax(dim=-1)
            predictions, references = accelerator.gather_for_metrics((predictions, batch["labels"]))
            metric.add_batch(predictions=predictions, references=references)
        eval_metric = metric.compute()
        accelerator.print(f"epoch {epoch}:", eval_metric)
        # New Code #
        accelerator.log(eval_metric | regularizer.logs(), step=epoch)
        accelerator.save_state(f"{args.output_dir}/epoch_{epoch}")

    unwrapped, state = accelerator.unwrap_model(model), accelerator.get_state_dict(model)
    unwrapped.save_pretrained(
        args.output_dir, is_main_process=accelerator.is_main_process, save_function=accelerator.save, state_dict=state
    )
    if accelerator.is_main_process:
        tokenizer.save_pretrained(args.output_dir)
        # New Code #
        mhe_config.save_pretrained(args.output_dir)
        change = hf_mhe.compare(before, hf_mhe.analyze(args.output_dir, exclude=VOCABULARY))
        print(f"mean spread {change.before.summary.mean_spread:.3f} -> {change.after.summary.mean_spread:.3f}")
        if args.push_to_hub:
            hf_mhe.push_to_hub(
                args.output_dir, args.push_to_hub, before=before, after=change.after, metrics=eval_metric
            )
    accelerator.wait_for_everyone()  # leaving early may abort, and end the rest (pytorch/pytorch#190489)
    accelerator.end_training()


def check(accelerator: Accelerator, args: LoopArguments) -> None:
    """Refuse before the training what would end it later."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:  # accelerate does not connect them where it finds no GPU
        raise ValueError(f"{launched} processes were launched, each for itself: without GPUs, add --cpu")
    if args.report_to and not accelerator.log_with:
        raise ValueError(f"{args.report_to} is not installed")
    start = args.resume_from_checkpoint
    if start and not (re.fullmatch(r"epoch_\d+", Path(start).name) and Path(start, "random_states_0.pkl").is_file()):
        raise ValueError(f"there is no checkpoint in {start}: it is no folder epoch_N that this loop has saved")
    first = int(Path(start).name.removeprefix("epoch_")) + 1 if start else 0
    if first >= args.num_epochs:
        raise ValueError(f"nothing is left to train: epoch {first} is not among --num_epochs {args.num_epochs}")
    if accelerator.is_main_process:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.output_dir).close()  # can it be written?


def main() -> None:
    parser = HfArgumentParser((LoopArguments, hf_mhe.MHEArguments))
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    try:
        args, mhe_args = parser.parse_args_into_dataclasses()
        mhe_config = mhe_args.to_config()
        if args.model_name_or_path is None:
            from offline import minilm

            args.model_name_or_path = minilm()
        accelerator = Accelerator(
            cpu=args.cpu,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.report_to,
            project_dir=args.output_dir,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # one order, whoever trains on it
        )
        check(accelerator, args)
        accelerator.init_trackers("accelerate_loop")
        set_seed(args.seed)
        metric = evaluate.load(args.metric)
        train_dataloader, eval_dataloader, tokenizer, names = get_dataloaders(accelerator, args)
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model_name_or_path,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            pad_token_id=tokenizer.pad_token_id,
            ignore_mismatched_sizes=True,
        )
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")
    training_function(accelerator, args, (model, tokenizer, train_dataloader, eval_dataloader, metric), mhe_config)


if __name__ == "__main__":
    main()
