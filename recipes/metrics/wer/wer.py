"""Word error rate for `evaluate` without a network; `evaluate.load("wer")` fetches the same from the Hub."""

import datasets
import evaluate


class WordErrorRate(evaluate.Metric):
    """Insertions, deletions and substitutions that turn the predictions into the references, per word of these."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> float:
        pairs = [(a.split(), b.split()) for a, b in zip(predictions, references, strict=True)]
        return sum(distance(*pair) for pair in pairs) / sum(len(reference) for _, reference in pairs)


def distance(ours: list[str], theirs: list[str]) -> int:
    """The Levenshtein distance of two lists of words."""
    row = list(range(len(theirs) + 1))
    for i, word in enumerate(ours, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(theirs, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]
