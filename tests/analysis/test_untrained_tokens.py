"""Tokens that were never trained, in models that were trained without them, and in MiniLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_mhe.analysis.vocabulary.texts import Tokens, read_tokens
from hf_mhe.analysis.vocabulary.untrained_tokens import Reference, indicators, reference_rows, untrained_tokens

NAMES = ("norm", "distance", "cosine", "centered_cosine", "cosine_without_first_component")


def published(matrix: np.ndarray, unused: list[int]) -> dict[str, np.ndarray]:
    """The indicators as the paper and its code define them, with scikit-learn's way to a component: an SVD."""

    def cosine_distance(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
        return 1 - rows @ vector / np.maximum(lengths, 1e-6)

    centred = matrix - matrix.mean(0)
    component = np.linalg.svd(centred, full_matrices=False)[2][0]
    without = matrix - np.outer(matrix @ component, component)
    return {
        "norm": np.linalg.norm(matrix, axis=1),
        "distance": np.linalg.norm(matrix - matrix[unused].mean(0), axis=1),
        "cosine": cosine_distance(matrix, matrix[unused].mean(0)),
        "centered_cosine": cosine_distance(centred, centred[unused].mean(0)),
        "cosine_without_first_component": cosine_distance(without, without[unused].mean(0)),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_indicators_are_the_published_ones(dtype: torch.dtype) -> None:
    """Else the numbers could not be compared with those of the paper."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(1, 3, 24)
    matrix = (torch.randn(700, 24, generator=generator) * spread + 0.5).to(dtype)
    matrix[13] = 0
    unused = [3, 5, 8, 400, 699]
    found = indicators(matrix, torch.tensor(unused), NAMES)
    for name, expected in published(matrix.double().numpy(), unused).items():
        assert np.allclose(found[name].numpy(), expected, atol=1e-6, rtol=1e-6), name


def language_model(tied: bool) -> tuple[Any, list[int], list[int]]:
    """A small model trained on sequences that leave 40 of 300 tokens out: 20 that are known to be unused, 20 not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    order = torch.randperm(300)
    known, hidden, used = order[:20], order[20:40], order[40:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    for _ in range(150):
        places = torch.randint(0, len(used), (16, 1))
        for _ in range(23):
            # One of four after each: all are as frequent.
            follows = (7 * places[:, -1:] + torch.randint(0, 4, (16, 1))) % len(used)
            places = torch.cat((places, follows), dim=1)
        tokens = used[places]
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, sorted(known.tolist()), sorted(hidden.tolist())


@pytest.mark.slow
def test_tokens_that_a_model_never_saw_are_found() -> None:
    """Else the indicators would name what was trained, or miss what was not."""
    for tied in (True, False):
        model, known, hidden = language_model(tied)
        output = untrained_tokens(model.lm_head.weight.detach(), Reference("placeholders", known), tied=True, most=300)
        entry = model.get_input_embeddings().weight.detach()
        input_ = untrained_tokens(entry, Reference("placeholders", known), tied=tied, most=300)
        for found in (output, input_):
            assert found is not None
            assert found.separates
            rows = {row.row for row, _ in found.rows}
            assert len(rows & set(hidden)) >= 18
            assert len(rows - set(hidden)) <= 4
            assert found.count == len(rows)
        assert output is not None
        assert input_ is not None
        assert (output.indicator, input_.indicator) == ("cosine", "cosine" if tied else "norm")


def reachable(minilm_path: Path) -> np.ndarray:
    """Which tokens the tokenizer gives for their own text: what it never gives, no model was trained on."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_path / "tokenizer.json"))
    names = [tokenizer.id_to_token(row) for row in range(tokenizer.get_vocab_size())]
    texts = [f"zq{name[2:]}" if name.startswith("##") else name for name in names]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.array([row in each.ids for row, each in enumerate(encoded)])


@pytest.mark.slow
def test_the_unused_tokens_of_minilm(minilm_path: Path) -> None:
    """Else what is known of a real vocabulary would not be found: its [unused...] tokens, and few others."""
    from safetensors import safe_open

    with safe_open(minilm_path / "model.safetensors", framework="pt") as file:
        matrix = file.get_tensor("embeddings.word_embeddings.weight")
    tokens = read_tokens(minilm_path / "tokenizer.json", len(matrix))
    reference = reference_rows(tokens)
    assert reference is not None
    assert reference.kind == "placeholders"
    assert len(reference.rows) == 994
    assert all(tokens.names[row].startswith("[unused") for row in reference.rows)  # type: ignore[union-attr]

    found = untrained_tokens(matrix, reference, tied=True, texts=tokens.texts, most=10**6)
    assert found is not None
    assert found.references_found > 0.99 * 994
    assert found.count < 0.02 * len(matrix)
    others = [row.row for row, _ in found.rows]
    # BERT sets Chinese characters apart, so that none of them ever continues a word: most others are such tokens.
    assert reachable(minilm_path)[others].mean() < 0.5 < reachable(minilm_path).mean()
    assert not {tokens.names[row] for row in others} & {"the", "[CLS]", "[SEP]", "[MASK]", "##s", "house"}

    half = Reference("placeholders", reference.rows[::2])
    again = untrained_tokens(matrix, half, tied=True, most=10**6)
    assert again is not None
    assert len({row.row for row, _ in again.rows} & set(reference.rows[1::2])) > 0.99 * 497


def placed(generator: torch.Generator, n: int = 400, unused: int = 30) -> Tensor:
    matrix = torch.randn(n, 32, generator=generator)
    matrix[:unused] = torch.randn(32, generator=generator) + 0.1 * matrix[:unused]
    return matrix


@pytest.mark.parametrize("tied", [True, False])
def test_order_and_scale_do_not_matter(tied: bool) -> None:
    """Else a token would be untrained by its place in the vocabulary, or by the units of its model."""
    generator = torch.Generator().manual_seed(1)
    matrix = placed(generator)
    matrix[:30] *= 0.1
    reference = Reference("placeholders", list(range(10)))
    found = untrained_tokens(matrix, reference, tied=tied, most=400)
    assert found is not None
    assert {row.row for row, _ in found.rows} == set(range(10, 30))
    order = torch.randperm(400, generator=generator)
    moved = untrained_tokens(
        matrix[order] * 1e-3, Reference("placeholders", order.argsort()[:10].tolist()), tied=tied, most=400
    )
    assert moved is not None
    assert {int(order[row.row]) for row, _ in moved.rows} == set(range(10, 30))
    values = [value for _, value in moved.rows]
    assert values == sorted(values)
    assert len(untrained_tokens(matrix, reference, tied=tied, most=3).rows) == 3  # type: ignore[union-attr]


def test_a_few_trained_placeholders_do_not_decide() -> None:
    """Else one placeholder that was put to use would make half a vocabulary untrained."""
    generator = torch.Generator().manual_seed(2)
    matrix = placed(generator)
    matrix[:3] = torch.randn(3, 32, generator=generator)
    found = untrained_tokens(matrix, Reference("placeholders", list(range(15))), tied=True, most=400)
    assert found is not None
    assert {row.row for row, _ in found.rows} == set(range(15, 30))
    assert (found.references, found.references_found) == (15, 12)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_was_not_trained_is_said_to_tell_nothing(tied: bool) -> None:
    """Else all of a fresh vocabulary would be listed as a finding."""
    matrix = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    found = untrained_tokens(matrix, Reference("placeholders", list(range(100))), tied=tied)
    assert found is not None
    assert not found.separates


def test_rows_of_zeros_are_no_reference() -> None:
    """Else a vocabulary padded with zeros would have every token at the same distance from nothing."""
    matrix = placed(torch.Generator().manual_seed(3))
    matrix[:20] = 0
    found = untrained_tokens(matrix, Reference("placeholders", list(range(28))), tied=True, most=400)
    assert found is not None
    assert found.references == 8
    assert {row.row for row, _ in found.rows} == {28, 29}
    assert untrained_tokens(matrix, Reference("placeholders", list(range(21))), tied=True) is None


def table(names: list[str | None], in_bytes: bool = False) -> Tokens:
    beyond = 1 + max(row for row, name in enumerate(names) if name is not None)
    return Tokens(names, [str(name) for name in names], beyond, 0, in_bytes)


@pytest.mark.parametrize(
    "form",
    [
        *("[unused{}]", "<unused{}>", "<|unused_token_{}|>", "<|reserved_special_token_{}|>", "<|reserved_{}|>"),
        *("<|placeholder{}|>", "<|dummy_{}|>", "<madeupword{}>", "<SPECIAL_{}>", "[control_{}]", "<|extra_{}|>"),
    ],
)
def test_placeholders_are_known_by_name(form: str) -> None:
    """Else the models that say which tokens are unused would have no reference."""
    names: list[str | None] = [
        "<s>",
        "</s>",
        "unused",
        "[unused]x",
        *(form.format(row) for row in range(9)),
        "a",
        "reserved 1",
    ]
    assert reference_rows(table(names)) == Reference("placeholders", list(range(4, 13)))


def test_special_tokens_are_no_reference() -> None:
    """Else tokens that every text has, or that T5's pretraining is made of, would stand for the untrained ones."""
    names: list[str | None] = [
        *(f"<extra_id_{row}>" for row in range(100)),
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "<s>",
        "</s>",
        "<unk>",
    ]
    assert reference_rows(table(names)) is None


def test_bytes_that_no_text_has() -> None:
    """Else GPT-2's kind of vocabulary, which has no placeholders, would have no reference."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    reference = reference_rows(table([*alphabet, "Ġthe"], in_bytes=True))
    assert reference is not None
    never = {byte for byte in range(256) if not any(byte in chr(code).encode("utf-8") for code in every_character())}
    assert len(never) == 13
    found = {alphabet[row] for row in reference.rows}
    # Those from 0xA1 to 0xFF stand for themselves.
    assert (reference.kind, found) == ("bytes", {chr(byte) for byte in never})


def every_character() -> list[int]:
    """One character of each form that UTF-8 has, and all first bytes: every 64th, surrogates left out."""
    codes = [*range(0x800), *range(0x800, 0x110000, 61)]
    return [code for code in codes if not 0xD800 <= code < 0xE000]


def test_bytes_that_are_tokens_of_their_own_as_well() -> None:
    """Else Llama's <0x41>, which is only met where there is no A, would not be known to be unused."""
    names: list[str | None] = [*(f"<0x{byte:02X}>" for byte in range(256)), *"ABCDEFGHIJ", "é"]
    reference = reference_rows(table(names))
    assert reference is not None
    assert list(reference.rows) == [*range(0x41, 0x4B), 0xC0, 0xC1, *range(0xF5, 0x100)]


def test_rows_after_the_last_token() -> None:
    """Else a vocabulary padded to a round number would have no reference."""
    assert reference_rows(table([*"abcdef", None, *[None] * 8])) == Reference(
        "beyond the tokenizer", list(range(6, 15))
    )
    assert reference_rows(table([*"abc", *[None] * 7])) is None
