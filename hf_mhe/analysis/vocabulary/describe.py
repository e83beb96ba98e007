"""What a vocabulary is made of: tokens that are alike, rows that were never set or never trained, and their texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_mhe.analysis.checkpoint.location import Location
from hf_mhe.analysis.checkpoint.reader import CheckpointReader
from hf_mhe.analysis.report.tokens import TokenRows, Vocabulary
from hf_mhe.analysis.vocabulary.special_rows import equal_rows, rows_at_mean
from hf_mhe.analysis.vocabulary.texts import Tokens, read_tokens, token_row
from hf_mhe.analysis.vocabulary.untrained_tokens import reference_rows, untrained_tokens
from hf_mhe.energy import PairStatistics
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json_object

_MOST = 20
_TOKENIZER = "tokenizer.json"
_SIZES = (
    *("vocab_size", "output_vocab_size", "encoder_vocab_size", "decoder_vocab_size"),
    *("src_vocab_size", "tgt_vocab_size"),
)
_WITHOUT_ROW, _BEYOND = 0.1, 0.5  # shares of a vocabulary from which on the tokenizer is another one's


def describe_vocabulary(
    matrix: Tensor, texts: Sequence[str] | None, statistics: PairStatistics, *, most: int = _MOST
) -> Vocabulary:
    """What a vocabulary `(n, d)` is made of: tokens that are alike, equal rows, rows at the mean, rows of zeros.

    Args:
        matrix: one token a row, any real floating dtype.
        texts: the token of each row, as `token_texts` gives them; None where they are not known.
        statistics: what `pair_statistics` says of the matrix.
        most: how many clusters and sets to list, and how many rows of each.

    Raises:
        MHEError: there is not one text a row.
    """
    if texts is not None and len(texts) != len(matrix):
        raise MHEError(f"a vocabulary of {len(matrix)} rows needs one text for each; got {len(texts)}")

    def rows(found: Sequence[int]) -> TokenRows:
        return TokenRows(len(found), tuple(token_row(row, texts) for row in found[:most]))

    exactly, nearly = rows_at_mean(matrix)
    return Vocabulary(
        rows=len(matrix),
        distinct=statistics.distinct,
        pairs=tuple((token_row(i, texts), token_row(j, texts), cosine) for i, j, cosine in statistics.duplicate_pairs),
        clusters=tuple(rows(cluster) for cluster in statistics.clusters[:most]),
        equal=tuple(rows(equal) for equal in equal_rows(matrix, statistics.clusters)[:most]),
        at_mean=rows(exactly),
        near_mean=rows(nearly),
        zero=rows(statistics.dead),
    )


def vocabulary_of(
    role: str, matrix: Tensor, statistics: PairStatistics, source: CheckpointReader | str | os.PathLike[str]
) -> Vocabulary | None:
    """The description of one group of a checkpoint, or None where the group is no vocabulary.

    It is one if it embeds or is an output, and has as many rows as config.json or tokenizer.json has entries. A
    tokenizer.json that cannot be read leaves the rows without texts, and the reason in `note`.

    Args:
        role: the group's role: "embedding", "output" or "hidden".
        matrix: its neurons `(n, d)`.
        statistics: what `pair_statistics` says of them.
        source: the checkpoint, or its folder, in which tokenizer.json and config.json are looked for.

    Raises:
        MHEError: config.json cannot be read.
    """
    if role not in ("embedding", "output"):
        return None
    for part in _parts(source):
        tokens, note = _tokens(part, len(matrix))
        sizes = {size for config in _configs(part.config) for size in _sizes(config)}
        if len(matrix) in sizes or (tokens is not None and len(matrix) == tokens.beyond and not tokens.without_row):
            return _described(role, matrix, statistics, part, tokens, note)
    return None


def _described(
    role: str, matrix: Tensor, statistics: PairStatistics, part: Location, tokens: Tokens | None, note: str
) -> Vocabulary:
    if tokens is None:
        return replace(describe_vocabulary(matrix, None, statistics), note=note)
    untrained = None
    if (reference := reference_rows(tokens)) is not None:
        tied = role == "output" or _is_tied(part.config, len(matrix))
        untrained = untrained_tokens(matrix, reference, tied=tied, texts=tokens.texts, most=_MOST)
    return replace(
        describe_vocabulary(matrix, tokens.texts, statistics),
        beyond=len(matrix) - tokens.beyond,
        without_row=tokens.without_row,
        untrained=untrained,
    )


def _parts(source: CheckpointReader | str | os.PathLike[str]) -> list[Location]:
    """The models of a checkpoint, each with its folder and its config."""
    if isinstance(source, CheckpointReader):
        return [source.location, *source.location.components.values()]
    folder = Path(source).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    config = folder / "config.json"
    return [Location(str(source), (folder / _TOKENIZER,), read_json_object(config) if config.is_file() else None)]


def _tokens(part: Location, n: int) -> tuple[Tokens | None, str]:
    """The tokens of the tokenizer that goes with a model's n rows; or none, and why if it cannot be read."""
    path = part.beside(_TOKENIZER)
    if path is None and part.folder.startswith("text_encoder"):  # in diffusers a component beside the tokenizer's
        path = part.beside(_TOKENIZER, part.folder.replace("text_encoder", "tokenizer", 1))
    if path is None:
        return None, ""
    try:
        tokens = read_tokens(path, n)
    except MHEError as error:
        return None, str(error)
    another = tokens.without_row > _WITHOUT_ROW * n or n - tokens.beyond > _BEYOND * n
    return (None if another else tokens), ""


def _configs(config: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A config and those in it, the inner ones first."""
    for inner in (config or {}).values():
        if isinstance(inner, dict):
            yield from _configs(inner)
    if config is not None:
        yield config


def _sizes(config: Mapping[str, Any]) -> set[int]:
    return {size for size in map(config.get, _SIZES) if type(size) is int}


def _is_tied(config: Mapping[str, Any] | None, n: int) -> bool:
    """Whether an embedding of n tokens gives the output too, as configs say, or their classes where they do not."""
    of_text = [each for each in _configs(config) if n in _sizes(each)]  # not those of pictures and sound beside it
    configs = [*of_text, config or {}]
    stated = [each["tie_word_embeddings"] for each in configs if "tie_word_embeddings" in each]
    if stated:
        return bool(stated[0])
    from transformers import CONFIG_MAPPING

    # The class alone: a few cannot be made without arguments.
    known = [kind for each in configs if isinstance(kind := each.get("model_type"), str) and kind in CONFIG_MAPPING]
    return not known or bool(getattr(CONFIG_MAPPING[known[0]], "tie_word_embeddings", True))
