"""Rows of a vocabulary that were never set to anything of their own: equal to each other, or to the mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_ELEMENTS_AT_A_TIME = 1 << 21  # 16 MiB of float64

# Note [Rows at the mean]
# A vocabulary that is resized gets rows at the mean of those it had: exactly, or drawn around it with a thousand
# millionth of their variance (transformers, `mean_resizing`), which is 3e-5 of the distance that a row has from the
# mean. The mean of all rows is then that mean still. Exactly means as far as the stored dtype and a mean taken in
# float32 can tell; a row counts as nearly there up to a hundredth of that distance, which no trained token is at.
# Rejected: the cosine to the mean, which all rare tokens have in common where the vocabulary has a shared direction.
_EXACTLY, _NEARLY = 3e-6, 1e-2


def rows_at_mean(matrix: Tensor) -> tuple[list[int], list[int]]:
    """The rows of `(n, d)` that are the mean of all rows, and those that nearly are; see Note [Rows at the mean]."""
    mean = torch.stack([part.sum(0) for part in _chunks(matrix)]).sum(0) / len(matrix)
    away = torch.cat([torch.linalg.vector_norm(part - mean, dim=1) for part in _chunks(matrix)])
    usual = away.square().mean().sqrt()
    exactly = away <= 0.5 * torch.finfo(matrix.dtype).eps * torch.linalg.vector_norm(mean) + _EXACTLY * usual
    nearly = ~exactly & (away <= _NEARLY * usual)
    return exactly.nonzero().flatten().tolist(), nearly.nonzero().flatten().tolist()


def equal_rows(matrix: Tensor, among: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The sets of rows of `(n, d)` that are equal number for number, the largest first, then by the first row.

    Rows are compared within each of the sets of `among`: equal rows have one direction, so they are in one cluster of
    near-duplicates.
    """
    found: list[tuple[int, ...]] = []
    step = max(1, _ELEMENTS_AT_A_TIME // matrix.shape[1])
    for cluster in among:
        by_content: dict[bytes, list[int]] = {}
        for start in range(0, len(cluster), step):
            rows = cluster[start : start + step]
            content = (matrix[torch.tensor(rows)] + 0.0).cpu().contiguous()  # which makes -0 a 0
            for row, each in zip(rows, content.view(torch.uint8).numpy(), strict=True):
                by_content.setdefault(hashlib.blake2b(each.data, digest_size=16).digest(), []).append(row)
        found += [tuple(rows) for rows in by_content.values() if len(rows) > 1]
    return sorted(found, key=lambda rows: (-len(rows), rows[0]))


def _chunks(matrix: Tensor) -> Iterator[Tensor]:
    for rows in matrix.split(max(1, _ELEMENTS_AT_A_TIME // matrix.shape[1])):
        yield rows.double()
