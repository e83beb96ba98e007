"""The Trainers of transformers and trl with MHE: what a step adds to the parameters is the formula's gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from hf_mhe import MHEConfig, with_mhe
from tests.training.cases import dense_penalty, relative_difference
from tests.training.test_accelerate_loop import forget_accelerate

HIDDEN, OUTPUT, LEARNING_RATE = 0.7, 0.3, 0.1
CONFIG = MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT)
WORDS = [
    "[PAD]",
    "[BOS]",
    "[EOS]",
    "[UNK]",
    "the",
    "dog",
    "cat",
    "runs",
    "sleeps",
    "over",
    "under",
    "hill",
    "and",
    "a",
]


def whole(*values: Any) -> Any:
    """A case that is left to the run of everything."""
    return pytest.param(*values, marks=pytest.mark.engines)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )


def make_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS), d_model=8, d_kv=4, num_heads=2, d_ff=12, num_layers=1, num_decoder_layers=1,
            dropout_rate=0.0, initializer_factor=0.3, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
        )
    ).double()  # fmt: skip


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, tie_word_embeddings=False,
        )
    ).double()  # fmt: skip


LAYERS = {"q", "k", "v", "o", "wi", "wo", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def effective(layer: Any) -> Tensor:
    """What a linear layer multiplies with, with LoRA or without."""
    if not hasattr(layer, "lora_A"):
        return layer.weight
    scaling, a, b = layer.scaling["default"], layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return layer.base_layer.weight + scaling * b @ a


def terms(model: nn.Module) -> list[tuple[Tensor, float, str]]:
    """What the penalty is a sum over, by the names that the two architectures give their layers; only what trains.

    A head that is the input embedding too has the embedding's weight, 0.
    """
    found = []
    embedding: Any = model.get_input_embeddings()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in LAYERS or last == "lm_head":
            rows = effective(module)
            if rows.requires_grad and rows is not embedding.weight:
                found.append((rows, OUTPUT, "full") if last == "lm_head" else (rows, HIDDEN, "half"))
    return found


def formula(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of the dense formula, by parameter: of those that train."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(
        dense_penalty(terms(model)), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def settings(folder: Path, accumulation: int, **changes: Any) -> dict[str, Any]:
    own = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return {**own, **changes}


def check_a_step(base: type[Trainer], make: Callable[[type[Trainer], dict[str, Any]], Trainer], count: int) -> Trainer:
    """Train with and without MHE: the parameters differ by the formula's gradient, and nothing frozen moved.

    `count` is the number of matrices that the penalty should be a sum over.
    """
    plain = make(base, {})
    plain.train()
    trainer = make(with_mhe(base), {"mhe_config": CONFIG})
    assert isinstance(trainer, base)
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    gradient = formula(trainer.model)
    assert len(terms(trainer.model)) == count == len(trainer.mhe_regularizer.groups)
    trainer.train()
    ends = [dict(each.model.named_parameters()) for each in (plain, trainer)]
    for name, value in start.items():
        if name not in gradient:
            assert torch.equal(ends[1][name], value), name
    found = {name: (ends[1][name] - ends[0][name]).detach() for name in gradient}
    assert relative_difference(found, {name: -LEARNING_RATE * value for name, value in gradient.items()}) < 1e-9
    logged = [[record["loss"] for record in each.state.log_history if "loss" in record] for each in (plain, trainer)]
    assert logged[0] == logged[1]
    return trainer


# --- Seq2SeqTrainer


def sentences(count: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(4, len(WORDS), (5,), generator=generator).tolist(),
            "labels": torch.randint(4, len(WORDS), (3 + index % 2,), generator=generator).tolist(),
        }
        for index in range(count)
    ]


def seq2seq(folder: Path, accumulation: int, **changes: Any) -> Callable[[type[Trainer], dict[str, Any]], Trainer]:
    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        model = make_t5()
        args = Seq2SeqTrainingArguments(
            **settings(folder, accumulation, predict_with_generate=True, generation_max_length=6, **changes)
        )
        return cls(
            model,
            args,
            train_dataset=sentences(8),
            eval_dataset=sentences(4),
            data_collator=DataCollatorForSeq2Seq(make_tokenizer(), model=model),
            **mhe,
        )

    return make


@pytest.mark.parametrize("accumulation", [4, whole(1)])
def test_seq2seq_trainer(accumulation: int, tmp_path: Path) -> None:
    """An encoder and decoder would be regularized by halves, or by another lambda."""
    check_a_step(Seq2SeqTrainer, seq2seq(tmp_path, accumulation), count=16)


def test_generated_predictions_do_not_see_the_penalty(tmp_path: Path) -> None:
    """A score of generated text, taken in the middle of a training with MHE, would be of another model."""
    make = seq2seq(tmp_path, 2, eval_strategy="steps", eval_steps=1, max_steps=2, label_smoothing_factor=0.1)
    trainer = make(with_mhe(Seq2SeqTrainer), {"mhe_config": CONFIG})
    trainer.train()
    steps = trainer.mhe_regularizer.step
    plain = make(Seq2SeqTrainer, {})
    plain.model.load_state_dict(trainer.model.state_dict())
    ours, theirs = trainer.predict(sentences(4)), plain.predict(sentences(4))
    assert (ours.predictions == theirs.predictions).all()
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"] == plain.evaluate(sentences(4))["eval_loss"]
    evaluations = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert len(evaluations) == 2
    assert evaluations[-1]["eval_loss"] == plain.evaluate()["eval_loss"]
    assert not any("mhe" in key for record in evaluations for key in record)
    assert steps == trainer.mhe_regularizer.step == 2


# --- trl


def sft(folder: Path, accumulation: int, rank: int, **changes: Any) -> Callable[[Any, dict[str, Any]], Trainer]:
    import trl
    from datasets import Dataset

    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        args = trl.SFTConfig(**settings(folder, accumulation, bf16=False, max_length=12, **changes))
        texts = [
            {"text": " ".join(WORDS[4 + (3 * row + 5 * place) % 10] for place in range(4 + row % 4))}
            for row in range(8)
        ]
        torch.manual_seed(2)
        return cls(
            make_llama(),
            args,
            train_dataset=Dataset.from_list(texts),
            processing_class=make_tokenizer(),
            peft_config=lora(rank),
            **mhe,
        )

    return make


def lora(rank: int) -> Any:
    if not rank:
        return None
    peft = pytest.importorskip("peft")
    # B is not zero at the start: A would have no gradient there
    return peft.LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["q_proj", "up_proj"], init_lora_weights=False)


@pytest.mark.integrations
@pytest.mark.parametrize(("accumulation", "rank"), [(4, 0), (4, 2), whole(1, 0), whole(1, 2)])
def test_sft_trainer(accumulation: int, rank: int, tmp_path: Path) -> None:
    """trl counts tokens in its own way, wraps the model itself, and freezes what an adapter does not train."""
    trl = pytest.importorskip("trl")
    trainer = check_a_step(trl.SFTTrainer, sft(tmp_path, accumulation, rank), count=2 if rank else 8)
    assert "mean_token_accuracy" in trainer.state.log_history[0]
    assert "mhe_loss" in trainer.state.log_history[0]


PREFERENCES = [
    {
        "prompt": "the dog",
        "chosen": " ".join(WORDS[4 + (3 * row + 5 * place) % 10] for place in range(2 + row % 3)),
        "rejected": " ".join(WORDS[4 + (5 * row + 7 * place) % 10] for place in range(4 - row % 3)),
    }
    for row in range(8)
]


def dpo(folder: Path, accumulation: int, reference: str) -> Callable[[Any, dict[str, Any]], Trainer]:
    import trl
    from datasets import Dataset

    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        args = trl.DPOConfig(**settings(folder, accumulation, bf16=False, max_length=16))
        model: Any = make_llama()
        torch.manual_seed(2)
        own: dict[str, Any] = {}
        if reference == "another model":
            own = {"ref_model": copy.deepcopy(model)}
        elif reference == "adapter disabled":
            own = {"peft_config": lora(2)}
        else:
            model = pytest.importorskip("peft").get_peft_model(model, lora(2))
        return cls(
            model,
            args=args,
            train_dataset=Dataset.from_list(PREFERENCES),
            processing_class=make_tokenizer(),
            **own,
            **mhe,
        )

    return make


@pytest.mark.integrations
@pytest.mark.parametrize(
    ("reference", "accumulation"),
    [
        ("adapter disabled", 4),
        ("adapter copied", 4),
        whole("another model", 4),
        *(whole(reference, 1) for reference in ("another model", "adapter disabled", "adapter copied")),
    ],
)
def test_dpo_trainer(reference: str, accumulation: int, tmp_path: Path) -> None:
    """A step in which trl switches adapters, or runs a second model, would be refused or regularize the wrong one."""
    trl = pytest.importorskip("trl")
    count = 8 if reference == "another model" else 2
    trainer = check_a_step(trl.DPOTrainer, dpo(tmp_path, accumulation, reference), count)
    assert "rewards/chosen" in trainer.state.log_history[0]
    assert "mhe_loss" in trainer.state.log_history[0]


def grpo(folder: Path) -> Callable[[Any, dict[str, Any]], Trainer]:
    import trl
    from datasets import Dataset

    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        args = trl.GRPOConfig(**settings(folder, 4, bf16=False, num_generations=2, max_completion_length=4, seed=3))
        return cls(
            make_llama(),
            reward_funcs=lambda completions, **_: [float(len(each)) for each in completions],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": "the dog"}] * 8),
            processing_class=make_tokenizer(),
            **mhe,
        )

    return make


def reward(folder: Path) -> Callable[[Any, dict[str, Any]], Trainer]:
    import trl
    from datasets import Dataset

    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        config = make_llama().config
        config.num_labels = 1  # a score is one neuron, which has no energy
        return cls(
            LlamaForSequenceClassification(config).double(),
            args=trl.RewardConfig(**settings(folder, 4, bf16=False, max_length=16, seed=3)),
            train_dataset=Dataset.from_list(PREFERENCES),
            processing_class=make_tokenizer(),
            **mhe,
        )

    return make


@pytest.mark.integrations
@pytest.mark.engines
@pytest.mark.parametrize(("name", "count"), [("GRPOTrainer", 8), ("RewardTrainer", 7)])
def test_other_trainers_of_trl(name: str, count: int, tmp_path: Path) -> None:
    """A Trainer that generates in its steps, or has a loss of its own, would have another lambda."""
    trl = pytest.importorskip("trl")
    make = {"GRPOTrainer": grpo, "RewardTrainer": reward}[name]
    check_a_step(getattr(trl, name), make(tmp_path), count)
