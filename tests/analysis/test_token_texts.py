"""The text of each row's token, from real tokenizers and from ones that mean harm."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from hf_mhe.analysis.vocabulary.texts import BEYOND, NO_TOKEN, SPACE, read_tokens, token_texts
from hf_mhe.errors import MHEError

TEXT = [
    "the cat sat on the mat\n",
    "a naïve café, “quoted” — 東京 и мир",
    "x = y  +\tz",
    "日本語日本語 emoji 🙂🙂",
] * 20


def trained(kind: str) -> Any:
    """A tokenizer of one of the kinds that models have, trained on a few lines."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    elif kind == "pieces":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("two words"), AddedToken("Ġcafé")])
    return tokenizer


def content(tokenizer: Any) -> bytes:
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
def test_every_row_has_the_token_that_the_tokenizer_has_there(kind: str) -> None:
    """Else the tokens of a report would be those of other rows, or could not be read."""
    tokenizer = trained(kind)
    n = tokenizer.get_vocab_size()
    texts = token_texts(content(tokenizer), n)
    assert len(texts) == n
    for row, text in enumerate(texts):
        name = tokenizer.id_to_token(row)
        added = row in tokenizer.get_added_tokens_decoder()
        decoded = tokenizer.decode([row], skip_special_tokens=False) if kind == "bytes" and not added else name
        if "�" in decoded:  # half a character
            assert "\\x" in text
        elif all(unicodedata.category(each)[0] not in "CZ" for each in decoded.replace(" ", "")):
            assert text == decoded.replace(" ", SPACE)
    assert "two▁words" in texts
    assert "Ġcafé" in texts  # an added token is stored as it is read
    if kind == "bytes":
        assert "▁the" in texts
        assert "\\n" in texts
        assert "\\xff" in texts
        assert "Ġthe" not in texts


def test_minilm_has_the_tokens_of_its_own_list(minilm_path: Path) -> None:
    """Else real rows would be named after other tokens; vocab.txt is another program's list of them."""
    lines = (minilm_path / "vocab.txt").read_text(encoding="utf-8").split("\n")
    texts = token_texts(minilm_path / "tokenizer.json", 30522)
    assert texts == token_texts(str(minilm_path / "tokenizer.json"), 30522)
    assert sum(text == line for text, line in zip(texts, lines, strict=False)) > 30500
    assert (texts[101], texts[2003], texts[30303]) == ("[CLS]", "is", "##劉")


def word_level(names: dict[str, int]) -> bytes:
    model = {"type": "WordLevel", "vocab": names, "unk_token": next(iter(names))}
    return json.dumps({"version": "1.0", "model": model}).encode()


HARMFUL = [
    *(
        "\x1b[2J\x1b]0;owned\x07",
        "a\nb",
        "a\r\nb",
        "\u202egnp.exe",
        "\u2066x",
        "\u061cy",
        "\u200f",
        "\u200b",
        "\ufeff",
    ),
    *("\u2028", "\x00", "\x85", "\x9b31m", "\U000e0041", "\u00a0", "\u3000", "\ue000", "\u00ad", "\t"),
]


@pytest.mark.parametrize("name", HARMFUL)
def test_a_token_that_means_harm_is_shown_by_its_escapes(name: str) -> None:
    """Else a token could clear a terminal, reverse a line, break a table in two, or not be seen."""
    (text,) = token_texts(word_level({name: 0}), 1)
    assert text == "".join(
        each if each.isascii() and each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )
    assert text.isascii()
    assert text.isprintable()


def test_tokens_that_are_text_stay_text() -> None:
    """Else what is to be read would be hidden among escapes, or a token of no letters left out."""
    names = ["<img src=x onerror=alert(1)>", "日本", "e\u0301", "🙂", "", "a b", "\\n", '"']
    texts = token_texts(word_level({name: row for row, name in enumerate(names)}), len(names))
    assert texts == ["<img▁src=x▁onerror=alert(1)>", "日本", "e\u0301", "🙂", '""', "a▁b", "\\n", '"']


def test_a_long_token_is_cut() -> None:
    """Else one token of a megabyte would be the page."""
    texts = token_texts(word_level({"a" * 10**6: 0, " " * 128: 1, "b" * 80: 2}), 3)
    assert texts == ["a" * 80 + "…", SPACE * 80 + "…", "b" * 80]


def test_rows_without_a_token_are_said_to_be() -> None:
    """Else the padding of a vocabulary would be taken for tokens, or shift the names of the others."""
    tokens = read_tokens(word_level({"a": 0, "b": 2, "c": 3, "d": 9}), 6)
    assert tokens.texts == ["a", NO_TOKEN, "b", "c", BEYOND, BEYOND]
    assert tokens.names == ["a", None, "b", "c", None, None]
    assert (tokens.beyond, tokens.without_row) == (4, 1)
    assert read_tokens(word_level({"d": 9}), 2)[:4] == ([None, None], [BEYOND, BEYOND], 0, 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not a tokenizer that the tokenizers library reads: EOF"),
        (b"{}", "Model missing"),
        (b"[]", "invalid type: sequence"),
        (b"\xff\xfe\x00", "is not a tokenizer"),
        (b"[" * 10**5, "is not a tokenizer"),
        (b'{"model":' * 10**5, "recursion limit"),
        (word_level({"a": 0})[:-9], "is not a tokenizer"),
        (word_level({"a": -1}), "invalid value: integer `-1`"),
        (word_level({"a": 2**40}), "invalid value"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"model":{"type":"BPE","vocab":{"a":0},"merges":["a \\u001b[2J"]}}', r"out of vocabulary"),
    ],
)
def test_what_is_no_tokenizer_is_one_clear_error(raw: bytes, message: str, tmp_path: Path) -> None:
    """Else a damaged file would end in a library's traceback, or its text give orders to the terminal."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    for given, name in ((raw, "tokenizer.json"), (path, str(path))):
        with pytest.raises(MHEError) as caught:
            token_texts(given, 3)
        assert message in str(caught.value)
        assert str(caught.value).startswith(name)
        assert str(caught.value).isprintable()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Else the reader would not know which file is meant."""
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(MHEError, match=f"{path} cannot be read: "):
            token_texts(path, 3)
