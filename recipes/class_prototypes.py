# Train an image classifier onto class prototypes that are as far apart as can be: directions of minimum hyperspherical
# energy as a last layer that is frozen. As it stands: a small ResNet on Fashion-MNIST. With --federated N, in the
# setting of SphereFed: N clients who have few of the classes each and share the frozen layer, simulated on one machine
# one after the other; --num_train_epochs are rounds, after each of which their models are averaged (FedAvg), and
# --max_steps are those of a client in a round, in place of all its data once.
#
#   python recipes/class_prototypes.py                     # in an environment with pip install -e ".[recipes]"
#   python recipes/class_prototypes.py --federated 10 --num_train_epochs 10
#   accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/class_prototypes.py \
#       --model_name_or_path google/vit-base-patch16-224-in21k --dataset_name ethz/food101 --learning_rate 5e-5
#
# --trained_head trains the last layer like all others, to compare.
# --mhe_hidden_weight 0 --mhe_output_weight 0 is the same training without MHE; --quick tries whether all of it runs.
from __future__ import annotations

import copy
import math
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import PIL.Image
import torch
from datasets import ClassLabel, DatasetDict, Image, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ProgressCallback,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

import hf_mhe

DEFAULTS = {
    "output_dir": "class_prototypes", "learning_rate": 2e-3, "num_train_epochs": 3,
    "per_device_train_batch_size": 64, "per_device_eval_batch_size": 256, "remove_unused_columns": False,
}  # fmt: skip
QUICK = DEFAULTS | {
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8, "max_train_samples": 64,
    "max_eval_samples": 32,
}  # fmt: skip


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model of the Hub or a folder. Default: a small ResNet with random weights."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, or a folder of images. Default: Fashion-MNIST."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The part to train on."})
    test_split: str = field(default="test", metadata={"help": "The part to evaluate on; made where there is none."})
    image_column: str = field(default="image", metadata={"help": "The column with the images."})
    label_column: str = field(default="label", metadata={"help": "The column with the classes."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many, drawn once."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many, drawn once."})
    metric: str = field(
        default=str(Path(__file__).parent / "metrics" / "accuracy"),
        metadata={"help": "A metric of evaluate: a folder, or a name on the Hub, such as accuracy."},
    )
    trained_head: bool = field(default=False, metadata={"help": "Train the last layer too, from random weights."})
    scale: float = field(default=4.0, metadata={"help": "The length of the prototypes."})
    federated: int = field(default=0, metadata={"help": "How many clients, of two shards each; 0: none."})
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
            raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
    if len(dataset["train"].unique(column)) < 2:
        raise ValueError(f"the train data has only one {column!r}: there is nothing to tell apart")
    return dataset


def load_data(args: ScriptArguments) -> DatasetDict:
    """The splits `train` and `test` with class labels."""
    if args.dataset_name is None:
        from offline import fashion_mnist

        dataset = fashion_mnist()
    else:
        dataset = load_dataset(args.dataset_name, args.dataset_config)
    for split in (args.train_split, args.test_split):
        if split not in dataset and (split == args.train_split or split != "test"):
            raise ValueError(f"the data has no split {split!r}; it has {', '.join(dataset)}")
    parts = {"train": args.train_split, "test": args.test_split}
    dataset = DatasetDict({part: dataset[split] for part, split in parts.items() if split in dataset})
    for part, rows in dataset.items():
        for column in (args.image_column, args.label_column):
            if column not in rows.column_names:
                raise ValueError(f"the {part} data has no column {column!r}; it has {', '.join(rows.column_names)}")
            if rows.data.column(column).null_count:
                raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
    if not isinstance(dataset["train"].features[args.image_column], Image):
        feature = dataset["train"].features[args.image_column]
        raise ValueError(f"the column {args.image_column!r} has no images: it is {feature}")
    dataset = as_classes(dataset, args.label_column)
    if "test" not in dataset:
        dataset = dataset["train"].train_test_split(0.1, seed=0)
    limits = {"train": args.max_train_samples, "test": args.max_eval_samples}
    for name, limit in limits.items():
        if limit:  # drawn, and not the first: many data sets are sorted by class
            dataset[name] = dataset[name].shuffle(seed=0).take(min(limit, len(dataset[name])))
    return dataset


def freeze_prototypes(model: torch.nn.Module, classes: int, scale: float) -> None:
    """Make the last layer the directions of minimum energy, of one length and without a bias, for good."""
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    if head.out_features != classes:
        raise ValueError(f"the last linear layer has {head.out_features} outputs, and there are {classes} classes")
    with torch.no_grad():
        head.weight.copy_(scale * hf_mhe.minimize_energy(classes, head.in_features))
        head.bias.zero_()
    head.requires_grad_(False)


def federate(trainer: Trainer, clients: int, label_column: str) -> None:
    """FedAvg: in each round every client trains the model on its own rows, and the mean of them is the next model."""
    rows = trainer.train_dataset
    by_class = np.argsort(rows.with_format(None)[label_column], kind="stable")
    shards = np.array_split(by_class, 2 * clients)  # two of each client, as McMahan et al. have it: few classes each
    order = np.random.default_rng(0).permutation(2 * clients)
    rounds = math.ceil(trainer.args.num_train_epochs)
    trainer.create_optimizer_and_scheduler(rounds)
    rates = []
    for _ in range(rounds):  # over which the schedule goes; within each the rate stays
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()  # without gradients: it moves nothing
        trainer.lr_scheduler.step()
    args = copy.deepcopy(trainer.args)
    args.num_train_epochs, args.lr_scheduler_type, args.warmup_steps = 1, "constant", 0
    args.save_strategy = args.eval_strategy = "no"
    args.eval_on_start, args.push_to_hub, args.report_to = False, False, []
    model, config, collator = trainer.model, trainer.mhe_config, trainer.data_collator
    trainer.remove_callback(ProgressCallback)  # each client has its own
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)  # opens the trackers
    for round_, args.learning_rate in enumerate(rates, 1):
        args.seed = trainer.args.seed + round_  # another order of the data
        start, total = copy.deepcopy(model.state_dict()), {}
        for client in range(clients):
            model.load_state_dict(start)
            own = rows.select(np.concatenate([shards[i] for i in order[2 * client : 2 * client + 2]]))
            hf_mhe.MHETrainer(model, args, collator, own, mhe_config=config).train()
            for name, value in model.state_dict().items():
                total[name] = total.get(name, 0) + value.float() * len(own)
        model.load_state_dict({name: value / len(rows) for name, value in total.items()})
        trainer.state.epoch = trainer.state.global_step = round_  # as which it is logged
        found = {name: value for name, value in trainer.evaluate().items() if not name.endswith(("time", "second"))}
        trainer.accelerator.print(f"round {round_} of {rounds}:", found)


def to_rgb(image: dict[str, Any]) -> PIL.Image.Image:
    """What a file or its bytes show; a damaged one is named."""
    try:
        pixels = Image().decode_example(image)
    except Exception as error:  # PIL has one for each format
        raise ValueError(f"{image['path'] or 'an image'} cannot be read: {error}") from error
    if pixels.mode.startswith("I;16"):  # all above 255 would be white
        pixels = pixels.point(lambda value: value / 257)
    return pixels.convert("RGB")


def build_trainer(args: ScriptArguments, training_args: TrainingArguments, config: hf_mhe.MHEConfig):
    set_seed(training_args.seed)
    with training_args.main_process_first():
        dataset = load_data(args)
    names = dataset["train"].features[args.label_column].names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if args.model_name_or_path is None:
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [2, 2, 2], "layer_type": "basic"}
        model = AutoModelForImageClassification.from_config(ResNetConfig(**sizes, **labels))
        processor = ViTImageProcessor(size={"height": 32, "width": 32})
    else:
        # Trainer would miss what from_pretrained renames, as of a ViT (huggingface/transformers#43701).
        start = training_args.resume_from_checkpoint or args.model_name_or_path
        model = AutoModelForImageClassification.from_pretrained(start, ignore_mismatched_sizes=True, **labels)
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)

    if not args.trained_head:
        freeze_prototypes(model, len(names), args.scale)

    def to_pixels(batch):
        images = [to_rgb(image) for image in batch[args.image_column]]
        return {**processor(images, return_tensors="pt"), "labels": batch[args.label_column]}

    dataset = dataset.cast_column(args.image_column, Image(decode=False)).with_transform(to_pixels)
    metric = evaluate.load(args.metric)
    return hf_mhe.MHETrainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=processor,
        compute_metrics=lambda p: metric.compute(predictions=p.predictions.argmax(-1), references=p.label_ids),
        mhe_config=config,
    )


def check(training_args: TrainingArguments) -> None:
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
    parser = HfArgumentParser((ScriptArguments, TrainingArguments, hf_mhe.MHEArguments))
    parser.set_defaults(**(QUICK if "--quick" in sys.argv else DEFAULTS))
    try:
        args, training_args, mhe_args = parser.parse_args_into_dataclasses()
        check(training_args)
        trainer = build_trainer(args, training_args, mhe_args.to_config())
        if not 0 <= 2 * args.federated <= len(trainer.train_dataset):
            raise ValueError(
                f"{len(trainer.train_dataset)} rows cannot be two shards for each of {args.federated} clients"
            )
        if args.federated and (training_args.resume_from_checkpoint or training_args.load_best_model_at_end):
            raise ValueError("--federated saves no checkpoints, to resume from or to choose the best of")
        before = hf_mhe.analyze(trainer.model) if trainer.is_world_process_zero() else None
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")

    if args.federated:
        federate(trainer, args.federated, args.label_column)
    else:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # before anything else can fail
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        change = hf_mhe.compare(before, training_args.output_dir)
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
