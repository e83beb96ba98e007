"""The files of a tokenizer, by the names that its class gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# The `vocab_files_names` of the tokenizers of transformers, those of classes that newer versions no longer have too:
# a folder may be older than the library that publishes it, and its reader's library older still.
_KNOWN = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tekken.json"),
    *("sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "spm_char.model", "bpe.codes", "dict.txt"),
    *("source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "normalizer.json"),
    *("entity_vocab.json", "emoji.json", "byte_maps.json", "prophetnet.tokenizer"),
    *("word_shape.json", "word_pronunciation.json"),
)
_TOKENIZER_CONFIG = "tokenizer_config.json"


def vocabulary_files(names: list[str], contents: Mapping[str, Any]) -> list[str]:
    """Which of a folder's files its tokenizer reads, given what the folder's configs say.

    A tokenizer of custom code names its files in its module, see `read_by_module`.
    """
    config = contents.get(_TOKENIZER_CONFIG)
    config = config if isinstance(config, dict) else {}
    wanted = {*_KNOWN, *_named(config)}
    classes = {config.get("tokenizer_class"), _of_model(contents.get("config.json"))}
    for name in classes:
        if isinstance(name, str):
            wanted |= _of_class(name)
    return [name for name in names if name in wanted]


def _named(config: dict[str, Any]) -> Iterator[str]:
    """Files that a tokenizer's config names itself: `vocab_file`, `merges_file`, `fast_tokenizer_files`, ..."""
    for key, value in config.items():
        if key.endswith("_file") and isinstance(value, str):
            yield value
        elif key.endswith("_files") and isinstance(value, list):
            yield from (name for name in value if isinstance(name, str))


def _of_model(config: Any) -> str | None:
    """The tokenizer class that goes with a model's config, where the tokenizer has none of its own."""
    if not isinstance(config, dict):
        return None
    if isinstance(config.get("tokenizer_class"), str):
        return str(config["tokenizer_class"])
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    found = TOKENIZER_MAPPING_NAMES.get(str(config.get("model_type")))
    return next((name for name in found if name), None) if isinstance(found, tuple) else found


def _of_class(name: str) -> set[str]:
    import transformers

    for candidate in (name, name.removesuffix("Fast")):
        try:
            named = getattr(getattr(transformers, candidate, None), "vocab_files_names", None)
        except ImportError:  # a placeholder for a class whose own package is not installed: its files are _KNOWN ones
            continue
        if isinstance(named, dict):
            return {str(file) for file in named.values()}
    return set()
