"""Training in float8 and int8: layers multiply in low precision, and weights are walked as the optimizer has them.

torchao's own layers, on a CPU: float8 products are emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import AORecipeKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hf_mhe
from hf_mhe import MHEConfig, MHERegularizer
from tests.training.cases import dense_penalty, relative_difference
from tests.training.loops import forget_accelerate

pytest.importorskip("torchao")
pytestmark = pytest.mark.integrations

Parameters = dict[str, Tensor]
RATE, CONFIG = 0.5, MHEConfig(hidden_weight=0.7, output_weight=0.3, output="head")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.body(x))))).square().mean()


def make() -> Model:
    torch.manual_seed(0)
    return Model().train()


def float8(gathered: bool) -> Callable[[nn.Module], None]:
    """Of float8 layers; with `gathered` as accelerate makes them where nobody says otherwise, for FSDP2."""

    def convert(model: nn.Module) -> None:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        options = Float8LinearConfig(emulate=True, enable_fsdp_float8_all_gather=gathered)
        convert_to_float8_training(model, config=options, module_filter_fn=lambda _, name: name != "head")

    return convert


def int8(model: nn.Module) -> None:
    from torchao.prototype.quantized_training import int8_mixed_precision_training
    from torchao.quantization import quantize_

    quantize_(model, int8_mixed_precision_training(), lambda module, name: name in ("body", "middle"))


CONVERSIONS = {"float8": float8(False), "float8, gathered in float8": float8(True), "int8": int8}


def plain(parameter: Any) -> Tensor:
    """The values that the optimizer updates."""
    inside = getattr(parameter, "_tensor", getattr(parameter, "_data", None))
    return (parameter if inside is None else inside).detach().clone()


def formula() -> tuple[float, Parameters]:
    """The penalty at the start, and what a step adds to the parameters for it."""
    model = make().double()
    terms = [(model.body.weight, 0.7, "half"), (model.middle.weight, 0.7, "half"), (model.head.weight, 0.3, "full")]
    value, parameters = dense_penalty(terms), dict(model.named_parameters())
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return value.item(), {key: -RATE * gradient for key, gradient in zip(parameters, gradients, strict=True)}


def examples() -> Tensor:
    return torch.randn(48, 32, generator=torch.Generator().manual_seed(1))


def check(plain: Parameters, regularized: Parameters, logged: float) -> None:
    value, expected = formula()
    found = {key: regularized[key] - plain[key] for key in expected}
    assert relative_difference(found, expected) < 1e-4  # of float32 weights that moved by both gradients
    assert logged == pytest.approx(value, rel=1e-6)


def stepped(
    convert: Callable[[nn.Module], None], bind: str, penalty: bool, parts: int
) -> tuple[Parameters, MHERegularizer]:
    """Parameters after one step of SGD, in `parts` micro-batches."""
    model = make()
    regularizer = MHERegularizer(model, CONFIG) if bind == "before" else None
    convert(model)
    regularizer = regularizer or MHERegularizer(model, CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for part, inputs in enumerate(examples().chunk(parts)):
        loss = model(inputs) / parts
        (regularizer(loss, sync=part == parts - 1) if penalty else loss).backward()
    optimizer.step()
    return {name: plain(parameter).double() for name, parameter in model.named_parameters()}, regularizer


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("bind", ["before", "after"])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_step_adds_the_gradient_of_the_weights_in_full(name: str, bind: str, parts: int) -> None:
    """Layers that train in float8 would have no penalty, or one of rounded weights."""
    (without, _), (regularized, regularizer) = (stepped(CONVERSIONS[name], bind, p, parts) for p in (False, True))
    check(without, regularized, regularizer.logs()["mhe_loss"])


@pytest.fixture
def afresh() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("bind", ["before", "after"])
def test_accelerate_in_float8(bind: str, accumulation: int) -> None:
    """`mixed_precision="fp8"` would take the penalty from the layers that accelerate makes float8 layers of."""
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear

    ends = []
    for penalty in (False, True):
        forget_accelerate()
        recipe = AORecipeKwargs(config=Float8LinearConfig(emulate=True))
        accelerator = Accelerator(
            cpu=True, mixed_precision="fp8", kwargs_handlers=[recipe], gradient_accumulation_steps=accumulation
        )
        model: Any = make()
        regularizer = MHERegularizer(model, CONFIG) if bind == "before" else None
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=RATE)
        loader: Any = DataLoader(examples(), batch_size=48 // accumulation)  # type: ignore[arg-type]
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        assert isinstance(model.middle, Float8Linear)
        regularizer = regularizer or MHERegularizer(model, CONFIG)
        for inputs in loader:
            with accelerator.accumulate(model):
                loss = model(inputs)
                accelerator.backward(regularizer(loss) if penalty else loss)
                optimizer.step()
                optimizer.zero_grad()
        ends.append({name: plain(parameter).double() for name, parameter in model.named_parameters()})
    check(*ends, regularizer.logs()["mhe_loss"])


@pytest.mark.parametrize("name", CONVERSIONS)
def test_its_report_is_that_of_the_plain_model(name: str) -> None:
    """A report in the middle of such a training would leave these layers out, or measure rounded weights."""
    model, same = make(), make()
    CONVERSIONS[name](model)
    assert not hf_mhe.coverage(model).skipped
    found, expected = (hf_mhe.analyze(each).to_dict()["groups"] for each in (model, same))
    assert [group["name"] for group in found] == ["body", "middle", "head"]
    assert [group["energy"] for group in found] == [group["energy"] for group in expected]
