"""What a vocabulary is made of: tokens that are alike, rows that were never set or never trained, and their texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_mhe.analysis.checkpoint.location import Location
from hf_mhe.analysis.checkpoint.reader import CheckpointReader
from hf_mhe.analysis.token_texts import TokenRow, Tokens, read_tokens, token_row, token_texts
from hf_mhe.analysis.untrained_tokens import UntrainedTokens, reference_rows, untrained_tokens
from hf_mhe.analysis.vocabulary_rows import equal_rows, rows_at_mean
from hf_mhe.energy import PairStatistics
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json_object

__all__ = ["TokenRow", "TokenRows", "Vocabulary", "describe_vocabulary", "token_texts", "vocabulary_of"]

_MOST = 20
_TOKENIZER = "tokenizer.json"
_SIZES = (
    *("vocab_size", "output_vocab_size", "encoder_vocab_size", "decoder_vocab_size"),
    *("src_vocab_size", "tgt_vocab_size"),
)
_WITHOUT_ROW, _BEYOND = 0.1, 0.5  # shares of a vocabulary from which on the tokenizer is another one's


@dataclass(frozen=True)
class TokenRows:
    """How many rows something is true of, and the first few of them."""

    count: int
    first: tuple[TokenRow, ...]


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary is made of; texts are fit to be shown.

    Attributes:
        rows: rows of the matrix.
        distinct: rows that are not zero, if each cluster counts once.
        pairs: the closest near-duplicates with their cosine.
        clusters: the largest clusters of near-duplicates.
        equal: the largest sets of rows that are equal number for number; rows of zeros are not among them.
        at_mean: rows that are the mean of all rows, as far as their dtype tells.
        near_mean: rows that nearly are, the former not counted.
        zero: rows of zeros.
        beyond: rows after the tokenizer's last token; None where there is no tokenizer.
        without_row: tokens of the tokenizer that have no row; None where there is no tokenizer.
        untrained: rows that look as unused ones do, where some are known to be unused.
        note: why there are no texts, where there is a tokenizer.json that cannot be read.
    """

    rows: int
    distinct: int
    pairs: tuple[tuple[TokenRow, TokenRow, float], ...]
    clusters: tuple[TokenRows, ...]
    equal: tuple[TokenRows, ...]
    at_mean: TokenRows
    near_mean: TokenRows
    zero: TokenRows
    beyond: int | None = None
    without_row: int | None = None
    untrained: UntrainedTokens | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON types."""
        return dict(_plain(self))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Vocabulary:
        """The description of which `to_dict` made `content`.

        Raises:
            MHEError: a part is missing, or of a wrong type.
        """
        try:
            untrained = content.get("untrained")
            return cls(
                rows=int(content["rows"]),
                distinct=int(content["distinct"]),
                pairs=tuple((_row(first), _row(second), float(cosine)) for first, second, cosine in content["pairs"]),
                clusters=tuple(_rows(part) for part in content["clusters"]),
                equal=tuple(_rows(part) for part in content["equal"]),
                at_mean=_rows(content["at_mean"]),
                near_mean=_rows(content["near_mean"]),
                zero=_rows(content["zero"]),
                beyond=None if content.get("beyond") is None else int(content["beyond"]),
                without_row=None if content.get("without_row") is None else int(content["without_row"]),
                untrained=None if untrained is None else _untrained(untrained),
                note=str(content.get("note", "")),
            )
        except KeyError as error:
            raise MHEError(f"the description of a vocabulary has no {error.args[0]!r}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise MHEError(f"the description of a vocabulary is malformed: {error}") from error


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


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, (Vocabulary, TokenRows, UntrainedTokens)):
        return {name: _plain(each) for name, each in vars(value).items()}
    return value


def _row(content: Sequence[Any]) -> TokenRow:
    row, text = content
    return TokenRow(int(row), None if text is None else str(text))


def _rows(content: Mapping[str, Any]) -> TokenRows:
    return TokenRows(int(content["count"]), tuple(_row(each) for each in content["first"]))


def _untrained(content: Mapping[str, Any]) -> UntrainedTokens:
    return UntrainedTokens(
        indicator=content["indicator"],
        reference=str(content["reference"]),
        references=int(content["references"]),
        threshold=float(content["threshold"]),
        references_found=int(content["references_found"]),
        count=int(content["count"]),
        rows=tuple((_row(row), float(value)) for row, value in content["rows"]),
        separates=bool(content["separates"]),
    )
