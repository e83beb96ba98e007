"""The token of each row of a vocabulary, from the checkpoint's own tokenizer.json, as text that is fit to be shown."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hf_mhe.analysis.report.tokens import TokenRow
from hf_mhe.errors import MHEError
from hf_mhe.stand_ins import stand_in
from hf_mhe.text import escaped

NO_TOKEN = "(no token)"
BEYOND = "(beyond the tokenizer)"
SPACE = "▁"  # as SentencePiece writes it: a space at the end of a token would not be seen
_LONGEST = 80

# Besides what `escaped` knows: what has no width, or no meaning that a font knows, and spaces other than the space.
_UNSEEN = ("Cf", "Cn", "Co", "Zs")


class Tokens(NamedTuple):
    """The tokens of a vocabulary's rows.

    Attributes:
        names: the token of each row as the tokenizer stores it; None where it has none for a row.
        texts: the same as text to be shown.
        beyond: the first row after the tokenizer's last token; `len(names)` where there are no such rows.
        without_row: how many tokens have a number that no row has.
        in_bytes: whether the names stand for bytes, as in GPT-2.
    """

    names: list[str | None]
    texts: list[str]
    beyond: int
    without_row: int
    in_bytes: bool


def token_row(row: int, texts: Sequence[str] | None) -> TokenRow:
    """A row with its text, if texts are known."""
    return TokenRow(row, None if texts is None else texts[row])


def token_texts(tokenizer_json: str | os.PathLike[str] | bytes, n: int) -> list[str]:
    """The token of each of n rows as text: bytes decoded, spaces as ▁, what is not to be seen as its escape.

    `tokenizer_json` is the path or the content of a tokenizer.json. Rows that the tokenizer has no token for are
    "(no token)", and after its last one "(beyond the tokenizer)". Texts are cut at 80 characters.

    Raises:
        MHEError: the file cannot be read, or is no tokenizer.
    """
    return read_tokens(tokenizer_json, n).texts


def read_tokens(tokenizer_json: str | os.PathLike[str] | bytes, n: int) -> Tokens:
    """The tokens of n rows; see `token_texts`.

    Raises:
        MHEError: the file cannot be read, or is no tokenizer.
    """
    tokenizer = _tokenizer(tokenizer_json)
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    names: list[str | None] = [None] * n
    for name, number in sorted(numbers.items()):
        if number < n:
            names[number] = name
    beyond = 1 + max((number for number in numbers.values() if number < n), default=-1)
    in_bytes = _in_bytes(tokenizer)
    added = tokenizer.get_added_tokens_decoder()  # which are stored as they are read
    texts = [
        (NO_TOKEN if row < beyond else BEYOND) if name is None else _text(name, in_bytes and row not in added)
        for row, name in enumerate(names)
    ]
    return Tokens(names, texts, beyond, sum(number >= n for number in numbers.values()), in_bytes)


def _tokenizer(tokenizer_json: str | os.PathLike[str] | bytes) -> Any:
    from tokenizers import Tokenizer

    what = "tokenizer.json"
    if isinstance(tokenizer_json, bytes):
        raw = tokenizer_json
    else:
        what = os.fspath(tokenizer_json)
        try:
            raw = Path(tokenizer_json).read_bytes()
        except OSError as error:
            raise MHEError(f"{what} cannot be read: {error.strerror or error}") from error
    other = stand_in(raw)
    if other is not None:
        raise MHEError(f"{what} is not a tokenizer: it is {other}")
    try:
        return Tokenizer.from_buffer(raw)
    except ValueError as error:
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise MHEError(f"{what} is not a tokenizer that the tokenizers library reads: {escaped(reason)}") from error


def _in_bytes(tokenizer: Any) -> bool:
    """Whether the tokenizer splits, or puts together, bytes written as characters."""
    return any(
        _holds_byte_level(json.loads(part.__getstate__()))
        for part in (tokenizer.pre_tokenizer, tokenizer.decoder)
        if part is not None
    )


def _holds_byte_level(state: Any) -> bool:
    parts = [*state.get("pretokenizers", ()), *state.get("decoders", ())]
    return state.get("type") == "ByteLevel" or any(map(_holds_byte_level, parts))


def _text(name: str, in_bytes: bool) -> str:
    if in_bytes:
        raw = bytes_of(name)
        # Bytes that are half a character stay bytes.
        name = name if raw is None else raw.decode("utf-8", errors="backslashreplace")
    shown = escaped("".join(map(_shown, name[:_LONGEST]))) or '""'
    return f"{shown}…" if len(name) > _LONGEST else shown


def _shown(character: str) -> str:
    if character == " ":
        return SPACE
    unseen = unicodedata.category(character) in _UNSEEN
    return character.encode("unicode_escape").decode("ascii") if unseen else character


def bytes_of(name: str) -> bytes | None:
    """The bytes that a token of GPT-2's kind stands for; None where a character of it stands for none."""
    try:
        return bytes(_byte_of_character()[character] for character in name)
    except KeyError:
        return None


@cache
def _byte_of_character() -> dict[str, int]:
    # Bytes that are printable in Latin-1 stand for themselves, the others for the characters from 256 on, in order.
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
