"""What becomes of a model after the regularizer was bound to it: followed, or refused with the remedy."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer, analyze
from tests.training.cases import (
    CLASSES,
    FEATURES,
    LENGTH,
    VOCABULARY,
    gpt2_data,
    gpt2_terms,
    make_tiny,
    relative_difference,
    slow_penalty,
    tiny_data,
    tiny_terms,
)
from tests.training.loops import forget_accelerate

HIDDEN, OUTPUT, LEARNING_RATE = 0.7, 0.3, 0.1
CONFIG = MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def make_untied(seed: int = 0) -> GPT2LMHeadModel:
    """GPT-2 with an output layer of its own, which grows with the vocabulary."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def terms_of(model: Any) -> list[tuple[Tensor, float, str]]:
    if hasattr(model, "transformer"):
        return [*gpt2_terms(model, HIDDEN, OUTPUT), (model.lm_head.weight, OUTPUT, "full")]
    return tiny_terms(model, HIDDEN, OUTPUT)


def formula(model: Any) -> dict[str, Tensor]:
    """The gradient of the slow formula of the weights that the model computes with, by parameter."""
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(
        slow_penalty(terms_of(model)), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return {key: value.double() for key, value in zip(parameters, gradients, strict=True)}


def gradient(model: nn.Module, regularizer: MHERegularizer) -> dict[str, Tensor]:
    """What a backward pass of the loss with the penalty leaves in the parameters, of a loss that leaves nothing."""
    model.zero_grad(set_to_none=False)
    dtype = next(model.parameters()).dtype
    regularizer(torch.zeros((), dtype=dtype)).backward()
    return {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}


def replace_parameter(model: Any) -> None:
    model.middle.weight = nn.Parameter(torch.randn_like(model.middle.weight))


def replace_layer(model: Any) -> None:
    model.middle = nn.Linear(9, 7, dtype=model.body.weight.dtype)


def compile_layer(model: Any) -> None:
    model.middle = torch.compile(model.middle, backend="eager")


FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "parameter replaced": replace_parameter,
    "layer replaced": replace_layer,
    "values set": lambda model: model.body.weight.data.mul_(torch.rand(9, 1) + 0.5).add_(0.1),
    "other dtype": lambda model: model.float(),
    "to and fro": lambda model: model.to(torch.bfloat16).to(torch.float64),
    "moved to the same device": lambda model: model.to("cpu"),
    "layer compiled": compile_layer,
    "model compiled in place": lambda model: model.compile(backend="eager"),
    "layer checkpointed": lambda model: setattr(model, "middle", checkpoint_wrapper(model.middle)),
    "eval and back": lambda model: model.eval().train(),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("change", FOLLOWED)
def test_followed(change: str) -> None:
    """The penalty would pull at tensors that the model no longer computes with, and nothing would say so."""
    model = make_tiny().double().train()
    regularizer = MHERegularizer(model, CONFIG)
    regularizer.penalty()
    FOLLOWED[change](model)
    expected = formula(model)
    assert relative_difference(gradient(model, regularizer), expected) < (1e-4 if "dtype" in change else 1e-9)
    assert relative_difference(gradient(model, MHERegularizer(model, CONFIG)), expected) < 1e-4


def test_frozen_in_part_and_whole() -> None:
    """A layer frozen in the middle of the training would go on moving, or take the others with it."""
    model = make_tiny().double().train()
    regularizer = MHERegularizer(model, CONFIG)
    model.body.requires_grad_(False)
    found = gradient(model, regularizer)
    assert not found["body.weight"].any()
    expected = {key: value for key, value in formula_of_trained(model).items() if key != "body.weight"}
    assert relative_difference({key: found[key] for key in expected}, expected) < 1e-9
    model.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"all 3 groups with a weight above 0 are frozen .*requires_grad_\(True\)"):
        regularizer(torch.zeros(()))


def formula_of_trained(model: nn.Module) -> dict[str, Tensor]:
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    found = formula(model)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return found


def old_weight_norm(model: Any) -> None:
    nn.utils.weight_norm(model.body)


def square(model: Any) -> None:
    """The same shape the other way round: a neuron is a column."""
    model.square = Conv1D(5, 5)


def add_adapter(model: Any) -> None:
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["body"], init_lora_weights=False))


def save_a_copy(model: Any) -> None:
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["body"], modules_to_save=["classifier"]))


def delete(model: Any) -> None:
    del model.classifier


def other_shape(model: Any) -> None:
    model.classifier = nn.Linear(7, 5)


# what is done to the model, and what is said
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weight norm": (lambda m: parametrizations.weight_norm(m.body), "'weight' of module 'body'.*no parameter of it"),
    "spectral norm": (lambda m: parametrizations.spectral_norm(m.body), "'weight' of module 'body'.*no parameter"),
    "orthogonal": (lambda m: parametrizations.orthogonal(m.body), "'weight' of module 'body'.*no parameter"),
    "old weight norm": (old_weight_norm, "'weight' of module 'body'.*no parameter of it"),
    "old spectral norm": (lambda m: nn.utils.spectral_norm(m.body), "'weight' of module 'body'.*no parameter of it"),
    "pruned": (lambda m: prune.l1_unstructured(m.body, "weight", 0.3), "'weight' of module 'body'.*no parameter"),
    "other class": (square, r"'square' is a transformers\S+Conv1D and was a torch\S+Linear when"),
    "other shape": (other_shape, r"'classifier': weight has shape \(5, 7\), expected \(3, 7\)"),
    "adapter": (add_adapter, r"'body' is a peft\S+Linear and was a torch\S+Linear when"),
    "copy of an adapter": (save_a_copy, r"'body' is a peft\S+Linear and was a torch\S+Linear when"),
    "deleted": (delete, "'classifier': the model no longer has 'weight' in module 'classifier'"),
    "vocabulary": (lambda m: m.resize_token_embeddings(40), r"'lm_head': weight has shape \(40, 8\), expected"),
}


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("change", REFUSED)
def test_refused_with_the_remedy(change: str) -> None:
    """A layer would be left out, or the penalty pull at values that are computed from others, without a word."""
    apply, message = REFUSED[change]
    model: Any = (make_untied() if change == "vocabulary" else make_tiny()).double().train()
    if change == "other class":
        model.square = nn.Linear(5, 5, dtype=torch.float64)
    regularizer = MHERegularizer(model, CONFIG)
    regularizer(torch.zeros(()))
    apply(model)
    model.double().train()
    for ask in (regularizer.penalty, regularizer.energies, lambda: regularizer(torch.zeros(()))):
        with pytest.raises(MHEError, match=f"({message}).*in training a new MHERegularizer"):
            ask()
    if change == "deleted":
        return
    again = MHERegularizer(model, replace(CONFIG, softening=0))  # a report is of the exact energy
    found = again.energies()
    again(torch.zeros(())).backward()
    assert {group.name for group in again.groups} == set(found)
    by_report = {group.name: group.energy for group in analyze(model, space="half").groups if group.role == "hidden"}
    for group in again.groups:
        if group.role == "hidden":
            assert found[group.name] == pytest.approx(by_report[group.name], rel=1e-9)


def make_sparse(model: Any) -> None:
    model.body.weight = nn.Parameter(model.body.weight.detach().to_sparse())


def make_lazy(model: Any) -> None:
    model.body = nn.LazyLinear(9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_sparse, r"parameter body.weight is stored as torch.sparse_coo.*make it dense"),
        (make_lazy, "parameter body.weight: uninitialized lazy parameter"),
        (lambda model: model.to("meta"), "'body' is on the meta device.*load the weights"),
        (lambda model: model.body.weight.data.fill_(torch.nan), r"'body': .*not finite \(nan in row 0; 9 of 9 rows\)"),
    ],
    ids=["sparse", "lazy", "meta", "nan"],
)
def test_weights_without_directions(change: Callable[[Any], Any], message: str) -> None:
    """The training would end in an error from deep inside torch, which names no layer."""
    model = make_tiny().train()
    regularizer = MHERegularizer(model, CONFIG)
    change(model)
    for ask in (regularizer.penalty, regularizer.energies, lambda: regularizer(torch.zeros(()))):
        with pytest.raises(MHEError, match=message):
            ask()


@pytest.mark.parametrize("change", ["merged", "unloaded", "deleted", "disabled"])
def test_an_adapter_that_is_merged_or_taken_off(change: str) -> None:
    """The penalty would count the adapter's part twice, or pull at an adapter that the layer no longer has."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["body"], modules_to_save=["classifier"], init_lora_weights=False)
    model: Any = peft.get_peft_model(make_tiny(), config).double().train()
    regularizer = MHERegularizer(model, CONFIG)
    before = regularizer.penalty()
    changes: dict[str, Callable[[], Any]] = {
        "merged": model.merge_adapter,
        "unloaded": model.merge_and_unload,
        "deleted": lambda: model.delete_adapter("default"),
        "disabled": model.base_model.disable_adapter_layers,
    }
    changes[change]()
    for ask in (regularizer.penalty, lambda: regularizer(torch.zeros(()))):
        with pytest.raises(MHEError, match=r"neuron group '(body|classifier)': .*in training a new MHERegularizer"):
            ask()
    if change == "merged":
        model.unmerge_adapter()
        torch.testing.assert_close(regularizer.penalty(), before)


def more_labels(model: Any) -> None:
    model.config.num_labels = CLASSES + 2  # by which the output layer is known
    model.classifier = nn.Linear(7, CLASSES + 2, dtype=torch.float64)


# --- changed between the construction of a Trainer and its training


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1, optim="sgd",
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip


TRAINED: dict[str, Callable[[Any], Any]] = {
    "weight norm": lambda m: parametrizations.weight_norm(m.body),
    "pruned": lambda m: prune.l1_unstructured(m.body, "weight", 0.3),
    "other labels": more_labels,
    "vocabulary": lambda m: m.resize_token_embeddings(40, mean_resizing=False),
    "other dtype": lambda m: m.float(),
}


@pytest.mark.story
@pytest.mark.slow
@pytest.mark.parametrize("change", TRAINED)
def test_a_trainer_whose_model_was_changed_before_training(change: str, tmp_path: Path) -> None:
    """A script that resizes the vocabulary of `trainer.model` would have to be rewritten, or train something else."""
    make, data = (make_untied, gpt2_data) if change == "vocabulary" else (make_tiny, tiny_data)
    ends = []
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": CONFIG})):
        trainer = cls(make().double(), arguments(tmp_path), train_dataset=data(8), **mhe)
        torch.manual_seed(5)
        TRAINED[change](trainer.model)
        start = formula(trainer.model)
        trainer.train()
        ends.append({key: value.detach().clone() for key, value in trainer.model.named_parameters()})
    found = {key: ends[1][key] - ends[0][key] for key in start}
    expected = {key: -LEARNING_RATE * value for key, value in start.items()}
    assert relative_difference(found, expected) < (1e-3 if change == "other dtype" else 1e-9)


@pytest.mark.slow
def test_a_dropped_regularizer_leaves_nothing_on_the_model() -> None:
    """After a new regularizer took its place, the old one's hooks would stop the training or slow it down."""
    model = make_tiny().train()
    before = [len(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks)]
    regularizer = MHERegularizer(model, MHEConfig(budget=0.5))
    assert [len(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks)] != before
    regularizer(model(torch.ones(2, FEATURES), torch.tensor([0, 1])).loss).backward()
    idle = MHERegularizer(model, MHEConfig(budget=0.5))
    del regularizer, idle
    gc.collect()
    assert [len(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks)] == before
