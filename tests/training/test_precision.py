"""Mixed precision, gradient scalers, checkpointing and compiled graphs: the penalty's part stays the formula's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader

from hf_mhe import MHEConfig, MHEError, MHERegularizer
from tests.training.cases import (
    ALL_CASES,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    make_tiny,
    relative_difference,
    slow_penalty,
    starting_gradient,
    tiny_data,
    tiny_terms,
)
from tests.training.loops import forget_accelerate
from tests.training.trainers import by_formula, config_of, contribution, difference

CONFIG = config_of("tiny")
BFLOAT16 = 2.0**-8  # half a unit in the last place, relative


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Accelerate's state and the compiler's are one for the process: start and end without any."""
    forget_accelerate()
    torch._dynamo.reset()
    yield
    forget_accelerate()
    torch._dynamo.reset()


def batch(count: int = 8, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    rows = tiny_data(count)
    features = torch.stack([row["features"] for row in rows]).to(dtype)
    return {"features": features, "labels": torch.tensor([row["labels"] for row in rows])}


@pytest.mark.story
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", ["gpt2", "bert", "tiny"])
def test_trainer_in_bfloat16(name: str, accumulation: int, tmp_path: Path) -> None:
    """Autocast would round the energies, or the penalty would be lost beside a rounded loss."""
    found = contribution(
        name,
        tmp_path,
        dtype=torch.float32,
        bf16=True,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    assert relative_difference(found, by_formula(name)) < 1e-5


@pytest.mark.parametrize("penalty", [False, True])
def test_accelerate_in_bfloat16(penalty: bool) -> None:
    """A hand-written loop under accelerate's autocast would have a penalty in half precision."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model: Any = make_tiny()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loader: Any = DataLoader(tiny_data(8), batch_size=4)  # type: ignore[arg-type]
    regularizer = MHERegularizer(model, CONFIG)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    gradients = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs).loss
            added = regularizer(loss) - loss if penalty else 0 * loss
            accelerator.backward(added)
    gradients = {
        key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in model.named_parameters()
    }
    if penalty:
        assert relative_difference(gradients, starting_gradient("tiny", HIDDEN, OUTPUT)) < 1e-5
    else:
        assert not any(value.any() for value in gradients.values())


def scaled_steps(penalty: bool, scale: float, steps: int, clip: float | None = None) -> tuple[nn.Module, Any, Any]:
    """A loop in float16 with a gradient scaler, each step on the same batch: model, regularizer, scaler."""
    model = make_tiny().train()
    regularizer = MHERegularizer(model, CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(**batch()).loss
            if penalty:
                loss = regularizer(loss)
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model, regularizer, scaler


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_float16_with_a_gradient_scaler(scale: float) -> None:
    """The penalty would be multiplied by the loss scale, or by nothing where the task is."""
    plain, regularized = (scaled_steps(penalty, scale, 1)[0] for penalty in (False, True))
    assert relative_difference(difference(plain, regularized), by_formula("tiny")) < 1e-5


@pytest.mark.story
def test_an_overflow_skips_cleanly() -> None:
    """A step that the scaler skips would leave something of the penalty behind, or spoil what is logged."""
    model, regularizer, scaler = scaled_steps(True, 2.0**40, 1)
    for key, value in model.named_parameters():
        assert torch.equal(value, make_tiny().get_parameter(key)), key
    assert scaler.get_scale() == 2.0**39
    record = regularizer.logs()
    assert "mhe_gradient_ratio" not in record  # there is none of gradients that overflowed
    expected = slow_penalty(tiny_terms(make_tiny(), HIDDEN, OUTPUT)).item()
    assert record["mhe_loss"] == pytest.approx(expected, rel=1e-5)
    # the scale falls until a step is taken, which is the first that moves the weights, and by the whole penalty
    skipped = 0
    while scaled_steps(True, 2.0**40, skipped + 1)[2].get_scale() == 2.0 ** (39 - skipped):
        skipped += 1
    plain, regularized = (scaled_steps(penalty, 2.0**40, skipped + 1) for penalty in (False, True))
    assert skipped > 0
    assert plain[2].get_scale() == regularized[2].get_scale() == 2.0 ** (40 - skipped)
    assert relative_difference(difference(plain[0], regularized[0]), by_formula("tiny")) < 1e-5
    # Steps are counted as Trainer counts them, the skipped ones too: see the note in hf_mhe.training.schedule.
    assert regularized[1].step == skipped + 1


def test_clipping_of_unscaled_gradients_sees_the_penalty() -> None:
    """With a scaler, the norm would be clipped without the penalty, or of scaled gradients."""
    limit = 0.01
    for scale in (1.0, 2.0**10):
        model, _, _ = scaled_steps(True, scale, 1, clip=limit)
        moved = difference(make_tiny(), model)
        norm = torch.stack([value.norm() for value in moved.values()]).norm().item()
        assert norm == pytest.approx(LEARNING_RATE * limit, rel=1e-3)


def rounded_gradient(dtype: torch.dtype) -> dict[str, Tensor]:
    """The gradient of the slow formula at weights that were rounded to a dtype."""
    return ALL_CASES["tiny"].penalty_gradient(make_tiny().to(dtype).double(), HIDDEN, OUTPUT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype: torch.dtype) -> None:
    """The energy of a model in bfloat16 would be summed in bfloat16, of which three digits are left."""
    model = make_tiny().to(dtype).train()
    penalty = MHERegularizer(model, CONFIG).penalty()
    assert penalty.dtype == torch.float32
    rounded = slow_penalty(tiny_terms(make_tiny().to(dtype).double(), HIDDEN, OUTPUT))
    assert penalty.item() == pytest.approx(rounded.item(), rel=1e-6)
    penalty.backward()
    found = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    assert all(value.dtype == dtype for value in found.values())
    assert relative_difference(found, rounded_gradient(dtype)) < BFLOAT16


def test_master_weights_in_float32() -> None:
    """What is added to the float32 copies would be another step than the model's own gradient says."""
    ends = []
    for penalty in (False, True):
        model = make_tiny().to(torch.bfloat16).train()
        masters = {key: value.detach().float().clone() for key, value in model.named_parameters()}
        optimizer = torch.optim.SGD(masters.values(), lr=LEARNING_RATE)
        loss = model(**batch(dtype=torch.bfloat16)).loss
        (MHERegularizer(model, CONFIG)(loss) if penalty else loss).backward()
        for key, value in model.named_parameters():
            masters[key].grad = value.grad.float()  # type: ignore[union-attr]
        optimizer.step()
        ends.append(masters)
    found = {key: ends[1][key] - ends[0][key] for key in ends[0]}
    expected = {key: -LEARNING_RATE * value for key, value in rounded_gradient(torch.bfloat16).items()}
    # the task's gradient is rounded too, alone in the one training and with the penalty's in the other
    assert relative_difference(found, expected) < 4 * BFLOAT16


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_gradient_checkpointing(name: str, reentrant: bool, tmp_path: Path) -> None:
    """Blocks that are computed twice would have the penalty twice, or lose it with their graph."""
    found = contribution(
        name,
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert relative_difference(found, by_formula(name)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.engines), "tiny"])
def test_trainer_compiles_the_model(name: str, tmp_path: Path) -> None:
    """The penalty would pull at other tensors than the compiled model holds."""
    found = contribution(
        name,
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    assert relative_difference(found, by_formula(name)) < 1e-9


Step = Callable[[dict[str, Tensor]], None]


def whole_step(config: MHEConfig, bound_to_compiled: bool = False) -> tuple[nn.Module, MHERegularizer, Step]:
    """A step as one function: forward pass, penalty, backward pass, clipping and optimizer."""
    model: Any = make_tiny().double().train()
    regularizer = MHERegularizer(torch.compile(model) if bound_to_compiled else model, config)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step(inputs: dict[str, Tensor]) -> None:
        regularizer(model(**inputs).loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return model, regularizer, step


@pytest.mark.story
@pytest.mark.parametrize(
    ("changes", "bound_to_compiled"),
    [({}, False), ({"warmup_steps": 3, "every_n_steps": 2}, True)],
    ids=["constant", "scheduled, bound to a compiled model"],
)
def test_the_whole_step_is_compiled(changes: dict[str, Any], bound_to_compiled: bool) -> None:
    """A compiled step would do something else, or be compiled again at each step of the schedule."""
    config, inputs = config_of("tiny", **changes), batch(dtype=torch.float64)
    eager, counted, step = whole_step(config)
    model, regularizer, same = whole_step(config, bound_to_compiled)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(same, backend=counter)
    graphs = []
    for _ in range(9):
        step(inputs)
        compiled(inputs)
        graphs.append(counter.frame_count)
    assert graphs[0] > 0
    # The first steps differ: without gradients to begin with, and with and without a penalty where it has a schedule.
    assert graphs[-1] == graphs[3]
    assert regularizer.step == counted.step == 9
    ends = {key: value.detach() for key, value in model.named_parameters()}
    assert relative_difference(ends, {key: value.detach() for key, value in eager.named_parameters()}) < 1e-12
    found, expected = regularizer.logs(), counted.logs()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.story
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "gpt2", pytest.param("bert", marks=pytest.mark.engines), "plain"])
def test_the_penalty_is_one_graph(name: str) -> None:
    """A step compiled with fullgraph=True could not have a penalty at all."""
    model = ALL_CASES[name].make().double().train()
    regularizer = MHERegularizer(model, config_of(name))
    penalty: Any = torch.compile(lambda factor: factor * regularizer.penalty(), fullgraph=True, backend="aot_eager")
    for factor in (1.0, 0.25):
        model.zero_grad()
        value = penalty(torch.tensor(factor, dtype=torch.float64))
        assert value.item() == pytest.approx(factor * regularizer.penalty().item(), rel=1e-12)
        value.backward()
        found = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
        expected = {key: factor * value for key, value in starting_gradient(name, HIDDEN, OUTPUT).items()}
        assert relative_difference(found, expected) < 1e-9


@pytest.mark.slow
def test_a_compiled_penalty_is_checked() -> None:
    """In a compiled graph an infinite energy, or a NaN in the weights, would go on into every parameter."""
    model = make_tiny().double().train()
    regularizer = MHERegularizer(model, replace(CONFIG, softening=0))
    penalty = torch.compile(regularizer.penalty, fullgraph=True, backend="aot_eager")
    penalty()
    with torch.no_grad():
        model.middle.weight[3] = 2 * model.middle.weight[5]
    with pytest.raises(MHEError, match=r"'middle' is inf.*leave softening at its default"):
        penalty()
    with torch.no_grad():
        model.middle.weight[3, 0] = float("nan")
    with pytest.raises(MHEError, match="not finite"):
        penalty()


@pytest.mark.engines
@pytest.mark.parametrize("name", ["gpt2", "bert", "tiny"])
def test_inductor(name: str, tmp_path: Path) -> None:
    """What holds for the graphs would not hold for the code that is generated from them."""
    found = contribution(
        name, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, torch_compile=True
    )
    assert relative_difference(found, by_formula(name)) < 1e-9
    model = ALL_CASES[name].make().double().train()
    regularizer = MHERegularizer(model, config_of(name))
    torch.compile(regularizer.penalty, fullgraph=True)().backward()
    gradients = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    assert relative_difference(gradients, starting_gradient(name, HIDDEN, OUTPUT)) < 1e-9


@pytest.mark.parametrize("space", ["full", "half"])
def test_channels_that_lie_last_in_memory_change_nothing(space: str) -> None:
    """A convolution in the layout that is fast on many machines would have other neurons, or another gradient."""
    torch.manual_seed(0)
    first = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2), nn.Conv3d(2, 5, 3), nn.ConvTranspose2d(4, 6, 3)
    )
    last = copy.deepcopy(first)
    for layer in last:
        layer.to(memory_format=torch.channels_last_3d if layer.weight.ndim == 5 else torch.channels_last)
        assert not layer.weight.is_contiguous()
    penalties = [MHERegularizer(model, MHEConfig(space=space)).penalty() for model in (first, last)]
    assert torch.equal(*penalties)
    for penalty in penalties:
        penalty.backward()
    for one, other in zip(first, last, strict=True):
        assert one.weight.grad.abs().max() > 0
        assert torch.equal(one.weight.grad, other.weight.grad)
