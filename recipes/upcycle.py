# Upcycle a dense checkpoint to a mixture of experts, which begin as copies of its MLP, and train it with the penalty
# that pushes whole experts apart (--mhe_across experts), and without, to compare. As it stands: a small Llama, trained
# for a short time on the source of Python's standard library, becomes a Mixtral, which is trained on.
#
#   python recipes/upcycle.py                              # in an environment with pip install -e ".[recipes]"
#   accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/upcycle.py \
#       --model_name_or_path HuggingFaceTB/SmolLM2-360M --dataset_name trl-lib/Capybara --num_experts 8 \
#       --learning_rate 2e-5 --mhe_budget 0.05 --compare False
#   python recipes/upcycle.py --model_name_or_path HuggingFaceTB/SmolLM2-360M --dataset_name my_texts.csv
#
# --quick tries whether all of it runs.
from __future__ import annotations

import copy
import dataclasses
import math
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import ModelConfig, SFTConfig, SFTTrainer

import hf_mhe

DEFAULTS = {
    "output_dir": "upcycle", "learning_rate": 2e-3, "max_steps": 40, "max_length": 256, "packing": True,
    "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "lr_scheduler_type": "cosine", "bf16": False,
    "dense_steps": 60, "max_train_samples": 200, "max_eval_samples": 10, "mhe_across": ["experts"],
    "mhe_across_weight": 0.1,
}  # fmt: skip
VOCABULARY = "re:embed|wte|wpe|shared$"  # not in the table: its rows take longer to compare than all other layers
QUICK = DEFAULTS | {
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "dense_steps": 2, "max_train_samples": 16,
    "max_eval_samples": 4,
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
    num_experts: int = field(default=4, metadata={"help": "Experts of a layer."})
    num_experts_per_tok: int = field(default=2, metadata={"help": "How many of them each token goes to."})
    dense_steps: int = field(default=100, metadata={"help": "Steps that train the dense model of the default."})
    compare: bool = field(default=True, metadata={"help": "Also train without the penalty across experts."})
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


def beside(training_args: SFTConfig, **changes) -> SFTConfig:
    """The arguments of a training beside the one that is asked for: without checkpoints, and not published."""
    training_args = copy.deepcopy(training_args)
    for name, value in {"save_strategy": "no", "push_to_hub": False, **changes}.items():
        setattr(training_args, name, value)
    return training_args


def build_trainer(
    model: torch.nn.Module,
    dataset: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    training_args: SFTConfig,
    config: hf_mhe.MHEConfig,
):
    set_seed(training_args.seed)
    return hf_mhe.with_mhe(SFTTrainer)(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        mhe_config=config,
    )


def upcycle(dense: torch.nn.Module, args: ScriptArguments) -> MixtralForCausalLM:
    """The mixture that computes what a dense model does: each expert is its MLP, and the router is random."""
    weights, config = dense.state_dict(), dense.config.to_dict()
    if config["model_type"] not in ("llama", "mistral") or any(name.endswith("bias") for name in weights):
        raise ValueError(f"a Llama or Mistral without biases can become a Mixtral; got a {config['model_type']}")
    if not 1 <= args.num_experts_per_tok <= args.num_experts:
        raise ValueError(f"{args.num_experts_per_tok} experts for a token cannot be chosen among {args.num_experts}")
    own = {"model_type", "architectures", "transformers_version"}
    shared = {name: config[name] for name in MixtralConfig().to_dict().keys() & config.keys() - own}
    experts = {"num_local_experts": args.num_experts, "num_experts_per_tok": args.num_experts_per_tok}
    model = MixtralForCausalLM(MixtralConfig(**shared, **experts)).to(dense.dtype)
    for name in [name for name in weights if ".mlp.down_proj." in name]:
        mlp = name.removesuffix("down_proj.weight")
        gate, up, down = (weights.pop(f"{mlp}{which}_proj.weight") for which in ("gate", "up", "down"))
        weights[f"{mlp}experts.gate_up_proj"] = torch.cat([gate, up]).expand(args.num_experts, -1, -1)
        weights[f"{mlp}experts.down_proj"] = down.expand(args.num_experts, -1, -1)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or not all(name.endswith("mlp.gate.weight") for name in missing):  # the routers are new
        raise ValueError(f"{type(dense).__name__} has other weights than a Mixtral: {unexpected or missing}")
    return model


@torch.no_grad()
def cosines(model: MixtralForCausalLM) -> list[float]:
    """In each layer, the mean cosine of two experts: the mean over those of their matrices, as the penalty has it."""
    found = []
    for layer in model.model.layers:
        experts = layer.mlp.experts
        matrices = [*experts.gate_up_proj.chunk(2, dim=1), experts.down_proj]
        directions = [torch.nn.functional.normalize(matrix.flatten(1).float()) for matrix in matrices]
        cosine = sum(rows @ rows.t() for rows in directions) / len(directions)
        k = len(cosine)
        found.append(float((cosine.sum() - cosine.trace()) / (k * (k - 1))))
    return found


def load_tokenizer(model: str, **version: Any) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where its files are missing, transformers makes one without words, or fails."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **version)
    except Exception as error:  # of the kind that each class of tokenizers has
        raise ValueError(f"{model} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}:
        raise ValueError(f"{model} has no tokenizer with words: its files are missing, such as tokenizer.json")
    return tokenizer


def build(args: ScriptArguments, training_args: SFTConfig, model_args: ModelConfig):
    """The data, the tokenizer, and the mixture before it is trained."""
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError("experts are trained in full, and not with --use_peft or --load_in_4bit")
    set_seed(training_args.seed)
    with training_args.main_process_first():
        dataset = load_data(args, training_args.dataset_text_field)
    version = {"revision": model_args.model_revision}
    if model_args.model_name_or_path is None:
        from offline import byte_pairs

        if (text := training_args.dataset_text_field) not in dataset["train"].column_names:
            raise ValueError(f"the default model reads a column {text!r}; others need --model_name_or_path")
        tokenizer = byte_pairs(dataset["train"][text])
    else:
        tokenizer = load_tokenizer(model_args.model_name_or_path, **version)
    if training_args.resume_from_checkpoint:
        # Trainer would miss what from_pretrained renames (huggingface/transformers#43701).
        model = MixtralForCausalLM.from_pretrained(training_args.resume_from_checkpoint, dtype=model_args.dtype)
        return dataset, tokenizer, model
    if model_args.model_name_or_path is None:
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
        dense = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=len(tokenizer)))
        folder = os.path.join(training_args.output_dir, "dense")
        own = beside(training_args, output_dir=folder, max_steps=args.dense_steps)
        without_mhe = hf_mhe.MHEConfig(hidden_weight=0, output_weight=0)
        trainer = build_trainer(dense, dataset, tokenizer, own, without_mhe)
        trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        model_args.model_name_or_path = folder
    dense = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        **version,
    )
    return dataset, tokenizer, upcycle(dense, args)


def save_and_evaluate(trainer: SFTTrainer) -> dict[str, float]:
    trainer.aux_loss_enabled = trainer.model.config.output_router_logits = False  # perplexity is of the tokens alone
    trainer.save_model()  # before anything else can fail
    metrics = trainer.evaluate()
    metrics["eval_perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    return metrics


def check(training_args: SFTConfig) -> None:
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
    parser = HfArgumentParser((ScriptArguments, SFTConfig, ModelConfig, hf_mhe.MHEArguments))
    parser.set_defaults(**(QUICK if "--quick" in sys.argv else DEFAULTS))
    try:
        args, training_args, model_args, mhe_args = parser.parse_args_into_dataclasses()
        check(training_args)
        config = mhe_args.to_config()
        dataset, tokenizer, model = build(args, training_args, model_args)
        start = copy.deepcopy(model) if args.compare else None
        trainer = build_trainer(model, dataset, tokenizer, training_args, config)
        before = hf_mhe.analyze(trainer.model, exclude=VOCABULARY) if trainer.is_world_process_zero() else None
    except (hf_mhe.MHEError, DatasetsError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = f"{error}: {error.__cause__}" if isinstance(error, DatasetGenerationError) else error
        parser.exit(2, f"{parser.prog}: error: {' '.join(f'{reason} (arguments: {sys.argv[1:]})'.split())}\n")

    table = {"before": cosines(model)}
    perplexity = {}
    if args.compare:
        folder, alone = os.path.join(training_args.output_dir, "without"), dataclasses.replace(config, across=None)
        without = build_trainer(start, dataset, tokenizer, beside(training_args, output_dir=folder), alone)
        without.train()
        perplexity["without"] = save_and_evaluate(without)["eval_perplexity"]
        without.accelerator.wait_for_everyone()
        table["without"] = cosines(MixtralForCausalLM.from_pretrained(folder))
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics = save_and_evaluate(trainer)
    if trainer.is_world_process_zero():
        perplexity["with"] = metrics["eval_perplexity"]
        table["with"] = cosines(MixtralForCausalLM.from_pretrained(training_args.output_dir))
        change = hf_mhe.compare(before, hf_mhe.analyze(training_args.output_dir, exclude=VOCABULARY))
        columns = ["name", "n", "d", "spread_before", "spread_after", "verdict"]
        print(change.to_pandas()[columns].to_string(index=False, float_format="%.3f"))
        print(f"mean spread {change.before.summary.mean_spread:.3f} -> {change.after.summary.mean_spread:.3f}")
        for name, values in table.items():
            said = f", perplexity {perplexity[name]:.2f}" if name in perplexity else ""
            print(f"cosine of experts by layer, {name}: {' '.join(f'{value:.4f}' for value in values)}{said}")
        if training_args.push_to_hub:  # what Trainer has pushed gets its card: energies, figures and metrics
            hf_mhe.push_to_hub(
                training_args.output_dir, trainer.hub_model_id, before=before, after=change.after, metrics=metrics
            )
    trainer.accelerator.wait_for_everyone()  # leaving early may abort, and end the rest (pytorch/pytorch#190489)
    trainer.end()


if __name__ == "__main__":
    main()
