"""Folders as training and saving leave them, each made by its own library, and loaded by it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "spread", "out", "on", "the", "sphere", "##s"]
TEXT = "spread out on the spheres"

# What engines (DeepSpeed, FSDP, accelerate, Megatron, Lightning), loggers and people leave beside a model.
TRAINING_STATE = (
    *("global_step500/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step500/mp_rank_00_model_states.pt"),
    *("global_step500/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest", "zero_to_fp32.py"),
    *("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp"),
    *("optimizer.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"),
    *("dl_state_dict.bin", "pytorch_model.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state_3.pth"),
    *("iter_0000500/mp_rank_00/model_optim_rng.pt", "latest_checkpointed_iteration.txt", "epoch=3-step=9.ckpt"),
    *("checkpoint-9/model.safetensors", "checkpoint-9/config.json", "trainer_state.json", "training_args.bin"),
    *("runs/Nov29/events.out.tfevents.1", "wandb/latest-run/files/config.yaml", "mlruns/0/meta.yaml", "train.log"),
    *("ds_config.json", "accelerate_config.yaml", "hparams.yaml", "emissions.csv", "all_results.json", "nohup.out"),
    *(".env", ".netrc", ".git/config", ".cache/huggingface/token", "token", "id_rsa", "secrets.json", "notes.txt"),
    *("__pycache__/modeling.cpython-311.pyc", "train.py", "data/train.jsonl", "predictions.npy", "old/config.json"),
    *("old/model.safetensors", "backup.safetensors", "flax_model.msgpack", "model.onnx", ".hidden/config.json"),
)


def tokenizer() -> Any:
    """A word-piece tokenizer with a vocabulary of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", pad_token="[PAD]")


def bert(kind: str = "BertForSequenceClassification") -> Any:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(
        transformers.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=16)
    )


def trainer_checkpoint(folder: Path) -> None:
    """`checkpoint-2` of a Trainer, with everything in it that the engines may leave there besides."""
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder.parent / "run"), max_steps=2, save_steps=2, report_to="none", use_cpu=True,
        per_device_train_batch_size=2, disable_tqdm=True,
    )  # fmt: skip
    Trainer(bert(), arguments, train_dataset=data, processing_class=tokenizer()).train()
    (folder.parent / "run" / "checkpoint-2").rename(folder)
    litter(folder)


def litter(folder: Path) -> None:
    """Put a training's state beside a model."""
    for name in TRAINING_STATE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).write_bytes(b"state")


def classifier(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return tensors(model), AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]


def sentences(folder: Path) -> None:
    """A SentenceTransformer of transformer, pooling and a dense layer, with a folder for each."""
    from sentence_transformers import SentenceTransformer, models

    bert("BertModel").save_pretrained(folder.parent / "bert")
    tokenizer().save_pretrained(folder.parent / "bert")
    torch.manual_seed(0)
    word = models.Transformer(str(folder.parent / "bert"))
    SentenceTransformer(modules=[word, models.Pooling(16), models.Dense(16, 8)], device="cpu").save(str(folder))
    litter(folder)


def load_sentences(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode([TEXT]).tolist()


def pipeline(folder: Path) -> None:
    """A diffusers pipeline of a small U-Net and a scheduler."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    widths = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    DDPMPipeline(
        UNet2DModel(sample_size=8, **widths, down_block_types=down, up_block_types=up), DDPMScheduler(37)
    ).save_pretrained(folder)
    litter(folder)
    (folder / "unet" / "optimizer.pt").write_bytes(b"state")


def load_pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    loaded = DiffusionPipeline.from_pretrained(folder)
    return tensors(loaded.unet), loaded.scheduler.config.num_train_timesteps


CODE = {
    "configuration_mine.py": """
from transformers import PretrainedConfig
class MineConfig(PretrainedConfig):
    model_type = "mine"
    def __init__(self, width=12, **kwargs):
        self.width = width
        super().__init__(**kwargs)
""",
    "parts_mine.py": """
from torch import nn
from .sizes_mine import DEPTH
class Block(nn.Linear):
    depth = DEPTH
""",
    "sizes_mine.py": "DEPTH = 2\n",
    "modeling_mine.py": """
from torch import nn
from transformers import PreTrainedModel
from .configuration_mine import MineConfig
from .parts_mine import Block
class MineModel(PreTrainedModel):
    config_class = MineConfig
    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config.width, config.width) for _ in range(Block.depth))
        self.post_init()
""",
    "tokenization_mine.py": """
from transformers import PreTrainedTokenizer
NAMES = {"vocab_file": "pieces.mine"}
class MineTokenizer(PreTrainedTokenizer):
    vocab_files_names = NAMES
    def __init__(self, vocab_file, **kwargs):
        self.words = open(vocab_file).read().split()
        super().__init__(unk_token="[UNK]", **kwargs)
    vocab_size = property(lambda self: len(self.words))
    def get_vocab(self): return {word: i for i, word in enumerate(self.words)}
    def _tokenize(self, text): return text.split()
    def _convert_token_to_id(self, token): return self.words.index(token) if token in self.words else 1
    def _convert_id_to_token(self, index): return self.words[index]
""",
}


def custom_code(folder: Path) -> None:
    """A model and a tokenizer of custom code: modules that import each other, a vocabulary that only they name."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for name, text in CODE.items():
        (folder / name).write_text(text)
    (folder / "pieces.mine").write_text(" ".join(WORDS))
    maps = {"AutoConfig": "configuration_mine.MineConfig", "AutoModel": "modeling_mine.MineModel"}
    config = {"model_type": "mine", "architectures": ["MineModel"], "width": 12, "auto_map": maps}
    (folder / "config.json").write_text(json.dumps(config))
    own = {"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MineTokenizer", "auto_map": own}))
    torch.manual_seed(0)
    layers = {f"blocks.{i}.{name}": torch.randn(12, *more) for i in (0, 1) for name, more in PARTS.items()}
    save_file(layers, folder / "model.safetensors", metadata={"format": "pt"})
    litter(folder)


PARTS: dict[str, tuple[int, ...]] = {"weight": (12,), "bias": ()}


def load_custom_code(folder: Path) -> Any:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    words = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return tensors(model), words(TEXT)["input_ids"]


def vision(folder: Path) -> None:
    """A ViT with its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=1, image_size=8, patch_size=4)).save_pretrained(
        folder
    )
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    litter(folder)


def load_vision(folder: Path) -> Any:
    import numpy
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    image = numpy.arange(12 * 12 * 3, dtype="uint8").reshape(12, 12, 3)
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    return tensors(AutoModelForImageClassification.from_pretrained(folder)), pixels.tolist()


def speech(folder: Path) -> None:
    """A wav2vec2 with a processor of feature extractor and character tokenizer."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    torch.manual_seed(0)
    convolutions = {"conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (2,), "num_conv_pos_embeddings": 4}
    config = Wav2Vec2Config(**SIZES, **convolutions, num_hidden_layers=1, num_conv_pos_embedding_groups=2)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    vocabulary = folder.parent / "vocab.json"
    vocabulary.write_text(
        json.dumps({word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ehops"])})
    )
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(folder)
    litter(folder)


def load_speech(folder: Path) -> Any:
    from transformers import AutoModelForCTC, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    found = processor.tokenizer("hope she")["input_ids"], processor.feature_extractor.sampling_rate
    return tensors(AutoModelForCTC.from_pretrained(folder)), found


def sentencepiece(folder: Path) -> None:
    """A T5 whose tokenizer has its vocabulary twice: for newer readers, and for older ones as a spiece.model."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=40, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "T5Tokenizer"}))
    (folder / "spiece.model").write_bytes(bytes(range(256)))  # opaque here: the package that reads it is optional
    litter(folder)


def load_sentencepiece(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast.from_pretrained(folder)(TEXT).input_ids
    vocabulary = (folder / "spiece.model").read_bytes()
    return tensors(AutoModelForSeq2SeqLM.from_pretrained(folder)), words, vocabulary


def tensors(model: Any) -> dict[str, Any]:
    """A model's state as plain numbers."""
    return {name: value.tolist() for name, value in model.state_dict().items()}


FOLDERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "trainer": (trainer_checkpoint, classifier),
    "custom-code": (custom_code, load_custom_code),
    "vision": (vision, load_vision),
    "speech": (speech, load_speech),
    "sentencepiece": (sentencepiece, load_sentencepiece),
}
"""Each kind of folder: how it is made in an empty place, and what loads from it."""
INTEGRATION_FOLDERS = {
    "sentence_transformers": ("sentences", sentences, load_sentences),
    "diffusers": ("pipeline", pipeline, load_pipeline),
}
"""The same of packages that a newcomer need not have: name, how it is made, what loads from it."""
