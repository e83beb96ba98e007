"""What a report says of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hf_mhe.analysis.report.json_values import read_fields, to_json
from hf_mhe.errors import MHEError

Indicator = Literal["norm", "cosine", "centered_cosine", "cosine_without_first_component", "distance"]
"""Of a row: its length; its cosine distance to the mean of the reference, as it is, after the mean of all rows is
taken off, or without the first principal component; its distance to the mean of the reference. The first is published
for an input embedding of its own, the others for an output embedding or one that is both."""


class TokenRow(NamedTuple):
    """A row of a vocabulary, with the text of its token where that is known."""

    row: int
    text: str | None


@dataclass(frozen=True)
class UntrainedTokens:
    """Which tokens of a vocabulary look as those do that are known to be unused.

    Attributes:
        indicator: the name of the indicator.
        reference: the kind of the reference.
        references: how many rows it has.
        threshold: the indicator up to which a row counts as untrained.
        references_found: how many rows of the reference are at or below the threshold.
        count: how many other rows are.
        rows: those other rows with their text and indicator, the lowest first; at most as many as were asked for.
        separates: whether the threshold tells the reference from most other rows. Where it does not, nothing has been
            trained yet, or the reference has been trained as well, and `count` says nothing.
    """

    indicator: Indicator
    reference: str
    references: int
    threshold: float
    references_found: int
    count: int
    rows: tuple[tuple[TokenRow, float], ...]
    separates: bool


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

    def texts(self) -> dict[int, str]:
        """The tokens of the rows that are listed, by row."""
        listed = [row for first, second, _ in self.pairs for row in (first, second)]
        for part in (*self.clusters, *self.equal, self.at_mean, self.near_mean, self.zero):
            listed += part.first
        return {row: text for row, text in sorted(listed) if text is not None}

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON types."""
        content: dict[str, Any] = to_json(self)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Vocabulary:
        """The description of which `to_dict` made `content`.

        Raises:
            MHEError: a part is missing, or of a wrong type.
        """
        if not isinstance(content, Mapping):
            raise MHEError(f"the description of a vocabulary is a {type(content).__name__}, not an object")
        found: Vocabulary = read_fields(cls, content, "the description of a vocabulary")
        return found
