"""Which of a folder's files are the model's weights, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hf_mhe.errors import MHEError
from hf_mhe.text import listed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
# transformers, timm and sentence-transformers write the first, diffusers the second.
_STEMS = ("model", "diffusion_pytorch_model")
_INDEX = re.compile(r"^(?P<stem>.+)\.safetensors\.index(\.(?P<variant>\w+))?\.json$")
_VARIANT = re.compile(r"^(?P<stem>[^.]+)\.(?P<variant>\w+)\.safetensors$")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<variant>\.\w+)?\.safetensors$")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Files that torch.save writes beside a checkpoint and that hold no weights of the model.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt")


def is_index(name: str) -> bool:
    """Whether a file name is that of an index of shards."""
    return _INDEX.match(name) is not None


def is_pickle(name: str) -> bool:
    """Whether a file name is that of pickled weights (and not of a trainer's own state)."""
    return name.lower().endswith(_PICKLES) and name not in _NOT_WEIGHTS and not name.startswith("rng_state")


def pickle_refusal(what: str) -> str:
    """Why a pickled checkpoint is not read, and what to do instead, in one line."""
    return (
        f"{what} is a pickle, and loading a pickle runs whatever code it holds, so hf_mhe reads safetensors only; "
        "convert it once, where you trust it: "
        "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), or "
        'safetensors.torch.save_model(model, "model.safetensors")'
    )


def weight_files(names: Iterable[str], where: str) -> list[str]:
    """The files to read of a folder that holds `names`: one index, one file, or a full set of shards; or none.

    Weights in full come before a variant (`model.fp16.safetensors`), a model before an adapter that lies beside it.

    Raises:
        MHEError: shards are missing from a set, or nothing says which of several files is the model.
    """
    names = sorted(names)
    for plain in (f"{stem}{ending}" for stem in _STEMS for ending in (".safetensors", ".safetensors.index.json")):
        if plain in names:
            return [plain]
    variants: dict[str, str] = {}
    for name in names:
        match = _INDEX.match(name) or _VARIANT.match(name)
        if match and match["variant"] and match["stem"] in _STEMS:
            variants.setdefault(match["variant"], name)
    if len(variants) > 1:
        raise MHEError(
            f"{where} has no weights in full, only the variants {listed(variants)}, and nothing says which of them "
            f"is meant: give one of the files, {listed(variants.values())}"
        )
    if variants:
        return list(variants.values())
    indices = [name for name in names if is_index(name)]
    if len(indices) == 1:
        return indices
    weights = [name for name in names if name.endswith(".safetensors")]
    return _unindexed([name for name in weights if name != ADAPTER] or weights, where)


def _unindexed(names: list[str], where: str) -> list[str]:
    """Which of several .safetensors files without an index make up the model: one file, or one full set of shards."""
    matches = [_SHARD.match(name) for name in names]
    shards = [match for match in matches if match]
    sets = {(match["stem"], match["parts"], match["variant"] or "") for match in shards}
    if shards and len(shards) == len(names) and len(sets) == 1:
        ((stem, parts, variant),) = sets
        wanted = [f"{stem}-{part:05d}-of-{parts}{variant}.safetensors" for part in range(1, int(parts) + 1)]
        missing = sorted(set(wanted) - set(names))
        if missing:
            raise MHEError(f"{where} is incomplete: of {int(parts)} shards {listed(missing)} is missing")
        return wanted
    if len(names) <= 1:
        return names
    raise MHEError(
        f"{where} has {len(names)} safetensors files and no index that says which is the model: "
        f"give one of them, {listed(names)}"
    )
