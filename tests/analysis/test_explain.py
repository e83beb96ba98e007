"""What is said of a layer: the planted cause, its numbers, its rows by name, and nothing that a browser would run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import hf_mhe
from hf_mhe.analysis.report.explain import explain
from hf_mhe.analysis.report.tokens import TokenRow, TokenRows, UntrainedTokens, Vocabulary


def random(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def said_of(weight: Tensor, **options: object) -> str:
    return "\n".join(explain(hf_mhe.measure(weight, **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (random(200, 32) + 1.0, "lean to one side: the mean of their directions has a length of 0.7"),
        (random(200, 8) @ random(8, 64, 1), "fill few of the 64 dimensions"),
        (torch.cat([random(90, 32), random(90, 32)[:10]]), "20 neurons are in 10 clusters of near-duplicates"),
        (torch.linalg.qr(random(64, 64))[0], "more evenly spread than random"),
        (random(200, 32), "no more crowded than random directions"),
    ],
)
def test_the_cause_is_said_in_two_sentences(weight: Tensor, sentence: str) -> None:
    """If this fails, a user reads a number and not what it means or what could be done."""
    said = said_of(weight)
    assert sentence in said
    cause = next(line for line in said.splitlines() if sentence in line)
    assert cause.count(". ") == 1, "what it means, and what could be done"


def test_the_numbers_are_the_rows_own() -> None:
    """If this fails, the words of an explanation are of another layer than its numbers."""
    group = hf_mhe.measure(random(300, 48) + 0.4)
    first = explain(group)[0]
    assert (
        f"300 neurons of dimension 48 are as crowded as independent random directions in "
        f"{group.equivalent_dimension:.1f} dimensions: a spread of {group.spread:.3f}" in first
    )


def test_rows_go_by_their_names_and_names_are_escaped() -> None:
    """If this fails, a terminal obeys the name of a class or a token."""
    weight = torch.cat([random(40, 16), random(40, 16)[:3]])
    names = [f"word {row}" for row in range(42)] + ["a\x1b[31m\u202eb\n"]
    said = said_of(weight, names=names)
    assert r"2 (word 2) and 42 (a\x1b[31m\u202eb\n) at 1.0000" in said
    assert "Clusters: [0 (word 0), 40 (word 40)]" in said
    assert "\x1b" not in said


def test_long_lists_are_cut_and_counted() -> None:
    """If this fails, a collapsed layer prints a thousand lines, or hides how many there are."""
    lines = explain(hf_mhe.measure(random(100, 32).repeat(3, 1)))
    assert any(line.startswith("Clusters: [0, 100, 200], ") and line.endswith("and 95 more.") for line in lines)
    assert any(line.startswith("Closest rows: ") and line.endswith("and 295 more.") for line in lines)


def test_a_group_apart_says_why() -> None:
    """If this fails, whoever sees a depthwise layer of copies prunes what cannot be pruned."""
    group = dataclasses.replace(hf_mhe.measure(random(20, 9)), apart="different inputs")
    assert "do not compete (different inputs)" in explain(group)[1]


def test_a_row_from_an_old_report_says_what_to_do() -> None:
    """If this fails, an old report ends in a traceback when it is explained."""
    group = dataclasses.replace(hf_mhe.measure(random(20, 9)), spread=None, verdict=None)
    assert explain(group) == [
        "The report has no spread, because an earlier version wrote it: analyze the model again with this version."
    ]


def test_a_vocabulary_is_described_by_its_tokens() -> None:
    """If this fails, rows that a resize added, or that no text reaches, are numbers that nobody looks up."""
    none = TokenRows(0, ())
    vocabulary = Vocabulary(
        rows=20,
        distinct=18,
        pairs=(),
        clusters=(),
        equal=(TokenRows(3, (TokenRow(4, "a"), TokenRow(5, "b"), TokenRow(6, "c"))),),
        at_mean=TokenRows(2, (TokenRow(18, "<new>"), TokenRow(19, None))),
        near_mean=none,
        zero=none,
        beyond=1,
        without_row=0,
        untrained=UntrainedTokens("cosine", "placeholders", 9, 0.1, 9, 1, ((TokenRow(7, "[rare]"), 0.01),), True),
    )
    said = "\n".join(explain(dataclasses.replace(hf_mhe.measure(random(20, 9)), vocabulary=vocabulary)))
    assert "3 rows are equal number for number: a, b, c." in said
    assert "2 rows at the mean of all rows, where a resized vocabulary begins: <new>, 19." in said
    assert "1 row after the tokenizer's last token" in said
    assert "1 token besides 9 unused rows (placeholders) look never trained: [rare]." in said
