"""What TensorBoard has on its disk after a training with MHE, written by Trainer's own callback and by accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_mhe import MHEConfig, MHERegularizer, MHETrainer
from tests.training.cases import make_tiny, slow_energy, slow_penalty, tiny_data, tiny_terms
from tests.training.loops import forget_accelerate
from tests.training.trackers import close, scalars
from tests.training.trainers import logged_arguments

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.integrations

CONFIG = MHEConfig(hidden_weight=0.07, output_weight=0.03, log_groups=True, warmup_steps=2)
GROUPS = {"body": "half", "middle": "half", "classifier": "full"}


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.mark.slow
def test_trainers_own_callback(tmp_path: Path) -> None:
    """The curves would be missing, under evaluation, or the task's loss not be the one without MHE."""
    changes: dict[str, Any] = {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 2}
    data = {"train_dataset": tiny_data(32), "eval_dataset": tiny_data(8, seed=2)}
    trainer = MHETrainer(make_tiny(), logged_arguments(tmp_path / "mhe", **changes), mhe_config=CONFIG, **data)
    trainer.train()
    Trainer(make_tiny(), logged_arguments(tmp_path / "plain", **changes), **data).train()
    ours, plain = scalars(tmp_path / "mhe"), scalars(tmp_path / "plain")
    added = {"spread", "loss", "mean_energy", "score", "factor", "gradient_ratio"}
    added |= {f"{kind}/{name}" for kind in ("energy", "spread") for name in GROUPS}
    assert ours.keys() - plain.keys() == {f"train/mhe_{name}" for name in added}
    assert plain.keys() <= ours.keys()
    for key in (key for key in ours if key.startswith("train/mhe_")):
        logged = [(r["step"], r[key[6:]]) for r in trainer.state.log_history if key[6:] in r]
        assert close(ours[key], logged), key
    assert close(ours["train/loss"][:2], plain["train/loss"][:2])  # the first penalty moves the third step's weights
    # the warm-up's first step has no penalty: the second is at the weights of one step without, and half of it
    assert [step for step, _ in ours["train/mhe_loss"]] == [2, 3, 4]
    assert [value for _, value in ours["train/mhe_factor"]] == [0.0, 0.5, 1.0, 1.0]
    assert [step for step, _ in ours["eval/loss"]] == [2, 4]
    assert not any("mhe" in key for key in ours if not key.startswith("train/mhe_"))


def test_accelerates_tracker(tmp_path: Path) -> None:
    """A hand-written loop would have to take the numbers apart before a tracker accepts them."""
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path, gradient_accumulation_steps=2)
    accelerator.init_trackers("run", config={k: v for k, v in CONFIG.to_dict().items() if isinstance(v, (int, str))})
    model: Any = make_tiny()
    regularizer = MHERegularizer(model, CONFIG)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    loader: Any = DataLoader(tiny_data(24), batch_size=4)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    expected: dict[str, list[tuple[int, float]]] = {}
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs).loss
            accelerator.backward(regularizer(loss))
            if accelerator.sync_gradients and regularizer.step > 1:
                penalty = slow_penalty(tiny_terms(model, 0.07, 0.03)).item()
                factor = {2: 0.5, 3: 1.0}[regularizer.step]
                expected.setdefault("mhe_loss", []).append((regularizer.step, factor * penalty))
                for name, space in GROUPS.items():
                    energy = slow_energy(model.get_parameter(f"{name}.weight").detach(), space=space).item()
                    expected.setdefault(f"mhe_energy/{name}", []).append((regularizer.step, energy))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.log({"loss": loss.item(), **regularizer.logs()}, step=regularizer.step)
    accelerator.end_training()
    found = scalars(tmp_path)
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [step for step, _ in found["mhe_loss"]] == [2, 3]
    for key, curve in expected.items():
        assert close(found[key], curve), key
