"""Models that begin with copies, a hundred steps with the default MHEConfig and without it.

    python recipes/experiments/copies.py                  # recipes/results/copies.json and copies.png
    python recipes/experiments/copies.py --cases mlp --seeds 0
    python recipes/experiments/copies.py --quick --output FOLDER

Each model is trained a little, then given copies, then trained on twice from there, on the same batches in the same
order: by Trainer and by MHETrainer. Compared are the task's loss on held-out data, and how alike the copies are.

- `gpt2_mean`, `gpt2_equal`: a GPT-2 on the source of Python's standard library, byte by byte; then 500 words of it
  become tokens, by `resize_token_embeddings`, which draws their rows around the mean of the others, all but equal; or
  all are that mean. The embedding gets a tenth of the hidden layers' weight.
- `gqa`: a Llama with 2 key-value heads for 8 query heads, on the same text; then each head gets keys and values of its
  own, copies of what it shared.
- `mlp`: a perceptron on scikit-learn's digits, both hidden layers widened eightfold by copies, so that it computes the
  same.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_mhe import MHEConfig, MHETrainer

RESULTS = Path(__file__).parents[1] / "results"
WORDS, BYTES, LENGTH, FACTOR = 500, 256, 96, 8
Data = list[dict[str, Any]]


def text() -> str:
    """The source of modules of Python's standard library, without what differs from one minor version to the next."""
    import argparse as a
    import difflib as b
    import doctest as c
    import inspect as d
    import optparse as e
    import pdb as f
    import tarfile as g

    return "\n".join(d.getsource(module) for module in (a, b, c, d, e, f, g))


def blocks(tokens: list[int], limit: int | None) -> tuple[Data, Data]:
    """Blocks of `LENGTH` tokens: nine of ten to train on, and the rest."""
    starts = range(0, len(tokens) - LENGTH, LENGTH)
    rows = [{"input_ids": tokens[i : i + LENGTH], "labels": tokens[i : i + LENGTH]} for i in starts][:limit]
    return [row for i, row in enumerate(rows) if i % 10], rows[::10]


def with_words(source: str) -> list[int]:
    """The text as bytes, and as one token each of the most frequent words."""
    pieces = re.findall(r"[A-Za-z_]{3,}|.", source, flags=re.DOTALL)
    frequent = Counter(piece for piece in pieces if len(piece) > 1).most_common(WORDS)
    tokens = {word: BYTES + place for place, (word, _) in enumerate(frequent)}
    return [token for piece in pieces for token in ([tokens[piece]] if piece in tokens else piece.encode())]


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}


def train(model: nn.Module, data: tuple[Data, Data], folder: str, mhe: dict[str, Any] | None, **own: Any) -> Trainer:
    """Train a model in place; with MHE where `mhe` has fields of its config, which may be none."""
    args = TrainingArguments(folder, **{**SETTINGS, **own})
    more: dict[str, Any] = {} if mhe is None else {"mhe_config": MHEConfig(**mhe)}
    trainer = (Trainer if mhe is None else MHETrainer)(
        model, args, train_dataset=data[0], eval_dataset=data[1], **more
    )  # type: ignore[arg-type]
    trainer.train()
    return trainer


def alike(rows: Tensor) -> dict[str, float]:
    """Of groups of copies, `(groups, copies, d)`: how alike the copies of one group are.

    `largest` is the cosine of the most alike two of a group, mean over the groups; `nearest` that of a neuron and the
    nearest of its copies, mean over the neurons; `near_duplicates` the share of pairs with a cosine of 0.95 or more.
    """
    directions = nn.functional.normalize(rows.detach().double(), dim=-1)
    cosines = directions @ directions.mT
    cosines.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
    nearest, copies = cosines.amax(-1), rows.shape[1]
    near = (cosines >= 0.95).sum().item() / (len(rows) * copies * (copies - 1))
    return {"largest": nearest.amax(-1).mean().item(), "nearest": nearest.mean().item(), "near_duplicates": near}


class Case(ABC):
    """A model with copies, the data that it goes on with, and how its copies are found."""

    mhe: ClassVar[dict[str, Any]] = {}
    options: ClassVar[dict[str, Any]] = {"learning_rate": 5e-4}

    model: Any
    data: tuple[Data, Data]

    @abstractmethod
    def __init__(self, seed: int, quick: bool, folder: str) -> None:
        """Make the small model, train it, and give it copies."""

    @abstractmethod
    def copies(self, model: Any) -> Tensor:
        """The neurons that were copies, `(groups, copies, d)`."""


class GPT2(Case):
    mhe: ClassVar = {"embedding_weight": 0.1}  # at 1 the copies part no further, and the loss rises by 1.5 to 2.3 %
    mean_resizing = True

    def __init__(self, seed: int, quick: bool, folder: str) -> None:
        torch.manual_seed(seed)
        dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        size = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=BYTES, **size, **dropouts, bos_token_id=0, eos_token_id=0))
        source = text()
        limit = 80 if quick else None
        train(self.model, blocks(list(source.encode()), limit), folder, None, seed=seed,
              max_steps=2 if quick else 200, learning_rate=1e-3, logging_strategy="no")  # fmt: skip
        self.model.resize_token_embeddings(BYTES + WORDS, mean_resizing=True)
        if not self.mean_resizing:
            with torch.no_grad():
                rows = self.model.get_input_embeddings().weight
                rows[BYTES:] = rows[:BYTES].mean(0)
        self.data = blocks(with_words(source), limit)

    def copies(self, model: Any) -> Tensor:
        return model.get_input_embeddings().weight[None, BYTES:]


class GPT2Equal(GPT2):
    mean_resizing = False


class GQA(Case):
    heads, shared = 8, 2

    def __init__(self, seed: int, quick: bool, folder: str) -> None:
        torch.manual_seed(seed)
        size = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "vocab_size": BYTES,
                "num_attention_heads": self.heads, "max_position_embeddings": LENGTH}  # fmt: skip
        few = LlamaForCausalLM(LlamaConfig(num_key_value_heads=self.shared, **size))
        self.data = blocks(list(text().encode()), 80 if quick else None)
        train(few, self.data, folder, None, seed=seed, max_steps=2 if quick else 200, learning_rate=1e-3,
              logging_strategy="no")  # fmt: skip
        self.model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=self.heads, **size))
        state = few.state_dict()
        for name, weight in state.items():
            if ".k_proj." in name or ".v_proj." in name:
                heads = weight.unflatten(0, (self.shared, -1))
                state[name] = heads.repeat_interleave(self.heads // self.shared, dim=0).flatten(0, 1)
        self.model.load_state_dict(state)

    def copies(self, model: Any) -> Tensor:
        found = []
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                heads = projection.weight.unflatten(0, (self.shared, self.heads // self.shared, -1))
                found.append(heads.transpose(1, 2).flatten(0, 1))
        return torch.cat(found)


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.layers(pixels))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class MLP(Case):
    mhe: ClassVar = {"output": "head"}
    options: ClassVar = {
        "learning_rate": 0.05,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "per_device_train_batch_size": 64,
    }

    def __init__(self, seed: int, quick: bool, folder: str) -> None:
        from sklearn.datasets import load_digits

        torch.manual_seed(seed)
        digits = load_digits()
        rows = [{"pixels": torch.tensor(image, dtype=torch.float32) / 16, "labels": int(label)}
                for image, label in zip(digits.data, digits.target, strict=True)]  # fmt: skip
        self.data = [row for i, row in enumerate(rows) if i % 5], rows[::5]
        small, self.model = Perceptron(8), Perceptron(8 * FACTOR)
        train(small, self.data, folder, None, seed=seed, max_steps=2 if quick else 100,
              logging_strategy="no", **self.options)  # fmt: skip
        state = small.state_dict()
        for name, value in state.items():
            rows_of = value if name.startswith("head") else value.repeat_interleave(FACTOR, dim=0)
            from_pixels = name == "layers.0.weight" or name.endswith("bias")
            state[name] = rows_of if from_pixels else rows_of.repeat_interleave(FACTOR, dim=1) / FACTOR
        self.model.load_state_dict(state)

    def copies(self, model: Any) -> Tensor:
        return model.layers[0].weight.unflatten(0, (-1, FACTOR))


CASES: dict[str, Callable[[int, bool, str], Case]] = {
    "gpt2_mean": GPT2,
    "gpt2_equal": GPT2Equal,
    "gqa": GQA,
    "mlp": MLP,
}


def compare(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """One case with one seed, trained on without MHE and with it."""
    with tempfile.TemporaryDirectory() as folder:
        case = CASES[name](seed, quick, folder)
        state = {key: value.clone() for key, value in case.model.state_dict().items()}
        found: dict[str, Any] = {"case": name, "seed": seed, "before": alike(case.copies(case.model))}
        for arm, mhe in (("plain", None), ("mhe", case.mhe)):
            case.model.load_state_dict(state)
            steps = 3 if quick else 100
            trainer = train(case.model, case.data, folder, mhe, seed=seed, max_steps=steps, **case.options)
            found[arm] = {
                "losses": [round(record["loss"], 5) for record in trainer.state.log_history if "loss" in record],
                "held_out": trainer.evaluate()["eval_loss"],
                "copies": alike(case.copies(trainer.model)),
            }
    found["loss_ratio"] = found["mhe"]["held_out"] / found["plain"]["held_out"]
    print(f"{name}, seed {seed}: held-out loss with MHE {found['loss_ratio'] - 1:+.1%}", file=sys.stderr)
    for arm in ("plain", "mhe"):
        numbers = {key: round(value, 3) for key, value in found[arm]["copies"].items()}
        print(f"  {arm}: {found[arm]['held_out']:.4f}, copies {numbers}", file=sys.stderr)
    return found


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """The learning curves, one panel a case, means over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(found["case"] for found in results))
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        of_case = [found for found in results if found["case"] == name]
        for arm, label, color in (("plain", "without MHE", "#0072B2"), ("mhe", "with MHE", "#D55E00")):
            curves = torch.tensor([found[arm]["losses"] for found in of_case])
            alike = sum(found[arm]["copies"]["near_duplicates"] for found in of_case) / len(of_case)
            said = f"{label}: {alike:.1%} of pairs alike"
            axis.plot(range(1, curves.shape[1] + 1), curves.mean(0), color=color, label=said)
        axis.set(title=name, xlabel="step", ylabel="task loss")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    results = [compare(name, seed, args.quick) for name in args.cases for seed in args.seeds]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "copies.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    draw(results, args.output / "copies.png")


if __name__ == "__main__":
    main()
