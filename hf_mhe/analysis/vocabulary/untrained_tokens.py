"""Tokens that were never trained, by the published indicators of embeddings alone.

Source: Land and Bartolo, "Fishing for Magikarp: Automatically Detecting Under-trained Tokens in Large Language
Models", EMNLP 2024, arXiv:2405.05417, and its code, cohere-ai/magikarp (`magikarp/utils.py`, `magikarp/model.py`).

What a model never saw is told from what it did by rows that are known to be unused, the reference. In an output
embedding, which pushes down each token that is not the next one, unused tokens are all pushed the same way: they are
close to the mean of the reference. In an input embedding of its own they only decay: they are short. So the indicator
is the length of the row in an input embedding that is not tied to the output, and else the cosine distance to the mean
of the reference; low means untrained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_mhe.analysis.report.tokens import Indicator, UntrainedTokens
from hf_mhe.analysis.vocabulary.texts import Tokens, bytes_of, token_row

# Note [Reference]
# The published code has a list of unused tokens for each model that its authors looked at: placeholders by name, bytes
# that no text in UTF-8 has or that are tokens of their own as well, and rows after the tokenizer's last token. Here
# the first of these kinds with enough rows is taken. Rejected: special tokens such as [CLS], which are trained; T5's
# <extra_id_0>, which its pretraining is made of; all kinds together, for rows added later are not like those that
# were there from the start, and a mean of the two is like neither.
_PLACEHOLDER = re.compile(
    r"[\[<]\|?(?!extra_id)(unused|reserved|placeholder|dummy|madeupword|special|control|extra)[a-z_]*\d+\|?[\]>]",
    re.IGNORECASE,
)
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_ENOUGH = 8

# Note [Threshold of untrained tokens]
# The published threshold is the lowest 2% of the tokens, which are then put to the model in prompts: it is a budget
# for that, and finds 2% in any model. Without prompts the reference itself says how far from its mean a token may be:
# the median of its rows and three deviations, each row measured against the mean of the others, so that a small
# reference is not closer to its mean than what it stands for. Median and median deviation, because a few placeholders
# of most models have been put to use after all. Rejected: the largest value of the reference, which one such row
# decides; its 95th percentile, which leaves one in twenty out by definition.
_DEVIATIONS = 3.0
_NORMAL = 1.4826  # the standard deviation of a normal distribution whose median deviation is 1
_ROUNDING = 1e-6
_SEPARATES = 0.5

_ELEMENTS_AT_A_TIME = 1 << 21  # 16 MiB of float64


class Reference(NamedTuple):
    """Rows that are known to be unused, and what kind they are: "placeholders", "bytes", "beyond the tokenizer"."""

    kind: str
    rows: Sequence[int]


def reference_rows(tokens: Tokens) -> Reference | None:
    """The rows of a vocabulary that are known to be unused; None where there are too few. See Note [Reference]."""
    kinds = {
        "placeholders": _placeholders(tokens),
        "bytes": _unused_bytes(tokens),
        "beyond the tokenizer": list(range(tokens.beyond, len(tokens.names))) if tokens.beyond else [],
    }
    return next((Reference(kind, rows) for kind, rows in kinds.items() if len(rows) >= _ENOUGH), None)


def _placeholders(tokens: Tokens) -> list[int]:
    return [row for row, name in enumerate(tokens.names) if name is not None and _PLACEHOLDER.fullmatch(name)]


def _unused_bytes(tokens: Tokens) -> list[int]:
    found = []
    known = {name for name in tokens.names if name is not None}
    for row, name in enumerate(tokens.names):
        if name is None:
            continue
        if tokens.in_bytes:
            raw = bytes_of(name)
            if raw is not None and len(raw) == 1 and raw[0] in _NEVER_IN_UTF8:
                found.append(row)
        elif (match := _FALLBACK.fullmatch(name)) is not None:
            byte = int(match[1], 16)
            if byte in _NEVER_IN_UTF8 or (byte < 0x80 and chr(byte) in known):
                found.append(row)
    return found


def untrained_tokens(
    matrix: Tensor, reference: Reference, *, tied: bool, texts: Sequence[str] | None = None, most: int = 20
) -> UntrainedTokens | None:
    """The rows of a vocabulary `(n, d)` that look untrained, the reference left out.

    Args:
        matrix: one token a row, any real floating dtype.
        reference: rows that are known to be unused.
        tied: whether the rows give the output too, alone or as the input's; False for an input embedding of its own.
        texts: the token of each row.
        most: how many rows to list.

    Returns None where fewer than two rows of the reference are other than zero.

    Source: Land and Bartolo 2024, arXiv:2405.05417; the threshold is Note [Threshold of untrained tokens].
    """
    rows = torch.tensor(reference.rows, device=matrix.device)
    rows = rows[(matrix[rows] != 0).any(1)]
    if len(rows) < 2:
        return None
    indicator: Indicator = "cosine" if tied else "norm"
    values = indicators(matrix, rows, (indicator,))[indicator]
    of_reference = _against_the_others(matrix[rows].double()) if tied else values[rows.cpu()]
    threshold = _threshold(of_reference.numpy(), unit=1.0 if tied else float(of_reference.max()))
    low = (values <= threshold).numpy()
    is_reference = np.zeros(len(matrix), dtype=bool)
    is_reference[rows.cpu().numpy()] = True
    others = np.flatnonzero(low & ~is_reference)
    order = others[np.argsort(values.numpy()[others], kind="stable")][:most]
    return UntrainedTokens(
        indicator=indicator,
        reference=reference.kind,
        references=len(rows),
        threshold=threshold,
        references_found=int((low & is_reference).sum()),
        count=len(others),
        rows=tuple((token_row(row, texts), float(values[row])) for row in order.tolist()),
        separates=len(others) <= _SEPARATES * (len(matrix) - len(rows)),
    )


def _threshold(values: np.ndarray, unit: float) -> float:
    median = float(np.median(values))
    return median + _DEVIATIONS * _NORMAL * float(np.median(np.abs(values - median))) + _ROUNDING * unit


def _against_the_others(rows: Tensor) -> Tensor:
    """The cosine distance of each row to the mean of the other rows."""
    return _cosine_distance(rows, (rows.sum(0) - rows) / (len(rows) - 1)).cpu()


def indicators(matrix: Tensor, reference: Tensor, wanted: Sequence[Indicator]) -> dict[str, Tensor]:
    """The indicators of every row of a vocabulary `(n, d)`, `(n,)` float64 on the CPU each.

    Args:
        matrix: one token a row, any real floating dtype.
        reference: int64, the rows that are known to be unused.
        wanted: names of indicators.
    """
    mean = matrix[reference].double().mean(0)
    centre = torch.stack([rows.sum(0) for rows in _chunks(matrix)]).sum(0) / len(matrix)
    first = _first_component(matrix, centre) if "cosine_without_first_component" in wanted else centre
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for rows in _chunks(matrix):
        for name in wanted:
            found[name].append(_indicator(name, rows, mean, centre, first).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _indicator(name: Indicator, rows: Tensor, mean: Tensor, centre: Tensor, first: Tensor) -> Tensor:
    if name == "norm":
        return torch.linalg.vector_norm(rows, dim=1)
    if name == "distance":
        return torch.linalg.vector_norm(rows - mean, dim=1)
    if name == "centered_cosine":
        return _cosine_distance(rows - centre, mean - centre)
    if name == "cosine_without_first_component":
        return _cosine_distance(rows - torch.outer(rows @ first, first), mean - (mean @ first) * first)
    return _cosine_distance(rows, mean)


def _cosine_distance(rows: Tensor, other: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(rows, dim=-1) * torch.linalg.vector_norm(other, dim=-1)
    # Rows of zeros are at 1, as published; the published bound on the lengths would take short rows for them.
    return 1 - (rows * other).sum(-1) / lengths.masked_fill(lengths == 0, 1)


def _first_component(matrix: Tensor, centre: Tensor) -> Tensor:
    """The direction of the largest variance, by Lanczos' method: the covariance itself would cost n d² operations."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def covariance(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(vector.reshape(-1)).to(centre)
        centred = (rows - centre for rows in _chunks(matrix))
        return torch.stack([rows.t() @ (rows @ direction) for rows in centred]).sum(0).cpu().numpy()

    d = len(centre)
    if d == 1:
        return torch.ones_like(centre)
    operator = LinearOperator((d, d), matvec=covariance, dtype=np.float64)
    _, vectors = eigsh(operator, k=1, v0=np.ones(d))
    return torch.from_numpy(vectors[:, 0]).to(centre)


def _chunks(matrix: Tensor) -> Iterator[Tensor]:
    for rows in matrix.split(max(1, _ELEMENTS_AT_A_TIME // matrix.shape[1])):
        yield rows.double()
