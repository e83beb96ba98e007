# Fine-tune sentence embeddings with in-batch negatives and spread them: by the energy of the embeddings
# (--arm energy), by the global orthogonal regularization of sentence-transformers (--arm gor), or not (--arm none).
# As it stands: MiniLM on WordNet, which finds the gloss of a word; NDCG@10 in float32, int8 and binary.
#
#   python recipes/sentence_embeddings.py                  # in an environment with pip install -e ".[recipes]"
#   accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/sentence_embeddings.py \
#       --model_name_or_path microsoft/mpnet-base --dataset_name sentence-transformers/gooaq \
#       --anchor_column question --positive_column answer --learning_rate 2e-5
#   python recipes/sentence_embeddings.py --dataset_name my_pairs.csv --anchor_column question --positive_column answer
#
# The penalty here is on the embeddings; --mhe_hidden_weight 1 adds that on the weights. --quick tries whether all of
# it runs.
from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    quantize_embeddings,
)
from sentence_transformers.evaluation import InformationRetrievalEvaluator
from sentence_transformers.losses import GlobalOrthogonalRegularizationLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim
from torch import Tensor
from transformers import HfArgumentParser, PreTrainedTokenizerBase, set_seed

import hf_mhe
from hf_mhe.integrations.sentence_transformers import EnergyRegularizedLoss

DEFAULTS = {
    "output_dir": "sentence_embeddings", "learning_rate": 2e-4, "num_train_epochs": 1, "max_train_samples": 3200,
    "max_eval_samples": 1000, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 256,
    "batch_sampler": "no_duplicates", "mhe_hidden_weight": 0, "mhe_output_weight": 0,
}  # fmt: skip
VOCABULARY = "re:embed|wte|wpe|shared$"  # not in the table: its rows take longer to compare than all other layers
QUICK = DEFAULTS | {
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8, "max_train_samples": 64,
    "max_eval_samples": 32,
}  # fmt: skip


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model of the Hub or a folder. Default: MiniLM."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, a folder or a file. Default: WordNet."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The part to train on."})
    test_split: str = field(default="test", metadata={"help": "The part to evaluate on; made where there is none."})
    anchor_column: str = field(default="lemma", metadata={"help": "The column with what is looked up."})
    positive_column: str = field(default="gloss", metadata={"help": "The column with what is to be found."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many."})
    arm: str = field(
        default="energy",
        metadata={"help": "What spreads the embeddings.", "choices": ["none", "energy", "gor"]},
    )
    arm_weight: float = field(default=1.0, metadata={"help": "What it is multiplied by."})
    quick: bool = field(default=False, metadata={"help": "A few steps, to see whether it runs."})


class OrthogonallyRegularizedLoss(torch.nn.Module):
    """In-batch negatives and global orthogonal regularization of the same embeddings, as the latter's docs have it."""

    def __init__(self, ranking: MultipleNegativesRankingLoss, weight: float) -> None:
        super().__init__()
        self.model, self.ranking = ranking.model, ranking
        self.orthogonal = GlobalOrthogonalRegularizationLoss(
            ranking.model, mean_weight=weight, second_moment_weight=weight
        )

    def forward(self, sentence_features: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        embeddings = [self.model(column)["sentence_embedding"] for column in sentence_features]
        ranking = self.ranking.compute_loss_from_embeddings(embeddings, labels)
        return {"base_loss": ranking, **self.orthogonal.compute_loss_from_embeddings(embeddings, labels)}


def quantized(precision: str):
    """The cosines of embeddings that are stored in a precision; int8 has the range of the corpus in each dimension."""

    def stored(embeddings: Tensor, corpus: Tensor) -> Tensor:
        codes = quantize_embeddings(embeddings, precision, calibration_embeddings=corpus.numpy(force=True))
        if precision == "ubinary":
            codes = 2 * np.unpackbits(codes, axis=1).astype(np.int8) - 1
        return torch.from_numpy(codes).float()

    return lambda queries, corpus: cos_sim(stored(queries, corpus), stored(corpus, corpus))


def load_data(args: ScriptArguments) -> DatasetDict:
    """The splits `train` and `test`."""
    if args.dataset_name is None:
        from offline import glosses

        dataset = glosses()
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
        for column in (args.anchor_column, args.positive_column):
            if column not in rows.column_names:
                raise ValueError(f"the {part} data has no column {column!r}; it has {', '.join(rows.column_names)}")
            if rows.data.column(column).null_count:
                raise ValueError(f"the {part} data has rows without a {column!r} (--train_split, --test_split)")
    for column in (args.anchor_column, args.positive_column):
        if dataset["train"].features[column] not in (Value("string"), Value("large_string")):
            raise ValueError(f"the column {column!r} has no texts: it is {dataset['train'].features[column]}")
    if args.anchor_column == args.positive_column:
        raise ValueError(f"what is looked up and what is to be found are one column, {args.anchor_column!r}")
    if "test" not in dataset:
        dataset = dataset["train"].train_test_split(0.1, seed=0)
    dataset = dataset.select_columns([args.anchor_column, args.positive_column])  # in this order
    limits = {"train": args.max_train_samples, "test": args.max_eval_samples}
    return DatasetDict({name: rows.take(min(limits[name] or len(rows), len(rows))) for name, rows in dataset.items()})


def build_trainer(
    args: ScriptArguments, training_args: SentenceTransformerTrainingArguments, config: hf_mhe.MHEConfig
):
    set_seed(training_args.seed)
    with training_args.main_process_first():
        dataset = load_data(args)
    if args.model_name_or_path is None:
        from offline import minilm

        args.model_name_or_path = minilm()
    # Else it looks for the last two names of a folder's path on the Hub at every save, however long that takes.
    model = SentenceTransformer(args.model_name_or_path, local_files_only=Path(args.model_name_or_path).is_dir())
    if isinstance(tokenizer := model.tokenizer, PreTrainedTokenizerBase) and (
        tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}  # what transformers makes without files
    ):
        name = args.model_name_or_path
        raise ValueError(f"{name} has no tokenizer with words: its files are missing, such as tokenizer.json")
    loss = MultipleNegativesRankingLoss(model, gather_across_devices=True)
    if args.arm == "energy":
        loss = EnergyRegularizedLoss(loss, args.arm_weight)
    elif args.arm == "gor":
        loss = OrthogonallyRegularizedLoss(loss, args.arm_weight)
    relevant: dict[str, set[str]] = {}
    for row in dataset["test"]:
        relevant.setdefault(row[args.anchor_column], set()).add(row[args.positive_column])
    texts = dict.fromkeys(dataset["test"][args.positive_column])
    evaluator = InformationRetrievalEvaluator(
        queries={text: text for text in relevant},
        corpus={text: text for text in texts},
        relevant_docs=relevant,
        batch_size=training_args.per_device_eval_batch_size,
        accuracy_at_k=[1],
        precision_recall_at_k=[10],
        score_functions={"float32": cos_sim, "int8": quantized("int8"), "binary": quantized("ubinary")},
    )
    return hf_mhe.with_mhe(SentenceTransformerTrainer)(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        loss=loss,
        evaluator=evaluator,
        mhe_config=config,
    )


def dimension(trainer: SentenceTransformerTrainer) -> float:
    """In how many dimensions random directions would be as crowded as the embeddings of the corpus."""
    corpus = trainer.model.encode(trainer.evaluator.corpus, convert_to_tensor=True)
    return hf_mhe.measure(corpus).equivalent_dimension


def check(training_args: SentenceTransformerTrainingArguments) -> None:
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
    parser = HfArgumentParser((ScriptArguments, SentenceTransformerTrainingArguments, hf_mhe.MHEArguments))
    parser.set_defaults(**(QUICK if "--quick" in sys.argv else DEFAULTS))
    try:
        args, training_args, mhe_args = parser.parse_args_into_dataclasses()
        check(training_args)
        trainer = build_trainer(args, training_args, mhe_args.to_config())
        before = hf_mhe.analyze(trainer.model, exclude=VOCABULARY) if trainer.is_world_process_zero() else None
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")

    start = {}
    if trainer.is_world_process_zero():
        start = {**trainer.evaluator(trainer.model), "equivalent_dimension": dimension(trainer)}
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # before anything else can fail
    metrics = trainer.evaluate()
    metrics["eval_equivalent_dimension"] = dimension(trainer)
    trainer.log_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        change = hf_mhe.compare(before, hf_mhe.analyze(training_args.output_dir, exclude=VOCABULARY))
        columns = ["name", "n", "d", "spread_before", "spread_after", "verdict"]
        print(change.to_pandas()[columns].to_string(index=False, float_format="%.3f"))
        print(f"mean spread {change.before.summary.mean_spread:.3f} -> {change.after.summary.mean_spread:.3f}")
        for name in ("float32_ndcg@10", "int8_ndcg@10", "binary_ndcg@10", "equivalent_dimension"):
            print(f"{name} {start[name]:.4g} -> {metrics[f'eval_{name}']:.4g}")
        if training_args.push_to_hub:  # what Trainer has pushed gets its card: energies, figures and metrics
            hf_mhe.push_to_hub(
                training_args.output_dir, trainer.hub_model_id, before=before, after=change.after, metrics=metrics
            )
    trainer.accelerator.wait_for_everyone()  # leaving early may abort, and end the rest (pytorch/pytorch#190489)
    trainer.end()


if __name__ == "__main__":
    main()
