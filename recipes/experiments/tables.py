"""Rebuild every table and figure of the documents from the JSON lines, or check that they agree.

python recipes/experiments/tables.py            # rebuild
python recipes/experiments/tables.py --check    # exit status 1, and what differs, where they do not

The documents are recipes/results/TABLES.md (everything, one experiment at a time), recipes/EVIDENCE.md (claim by
claim) and README.md (the experiments that say most). What stands between two markers in them is written here, the
rest by hand; the markers name the experiments, in the order of the lines between them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from harness.plan.experiment import ExperimentError, declared, find  # noqa: E402
from harness.report import evidence, figures  # noqa: E402
from harness.report.document import block  # noqa: E402
from harness.report.markdown import places, replaced  # noqa: E402
from harness.runs.store import Store  # noqa: E402
from harness.statistics.summary import Summary, summarize  # noqa: E402

ROOT = Path(__file__).parents[2]
RESULTS = Path("recipes", "results")
EVIDENCE, README = Path("recipes", "EVIDENCE.md"), Path("README.md")
# What each document says of the experiments of a place.
DOCUMENTS: Mapping[Path, Callable[[Sequence[Summary]], str]] = {
    RESULTS / "TABLES.md": lambda summaries: "\n\n".join(map(block, summaries)),
    EVIDENCE: evidence.of_claim,
    README: evidence.overview,
}


def main() -> int:
    """Returns the exit status: 0 done, 1 the check failed, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT, help="where README.md and recipes/ are")
    options = parser.parse_args()
    try:
        wrong = check(options.root) if options.check else build(options.root)
    except (ExperimentError, ValueError, OSError) as error:
        print(f"tables.py: {error}", file=sys.stderr)
        return 2
    for each in wrong:
        print(f"tables.py: {each}", file=sys.stderr)
    return 1 if wrong else 0


def build(root: Path) -> list[str]:
    """Write the tables into the documents and the figures into the folder of the results."""
    texts = {path: (root / path).read_text(encoding="utf-8") for path in DOCUMENTS}
    summaries = [summarize(find(name), Store(name, root / RESULTS).records()) for name in in_order(texts)]
    written = {path: rewritten(path, text, summaries) for path, text in texts.items()}
    for file, content, draw in drawings(summaries):
        if figures.digest_of(root / RESULTS / file) != figures.digest(content):
            draw(content, root / RESULTS / file)
    for path, text in written.items():
        (root / path).write_text(text, encoding="utf-8")
    return []


def check(root: Path) -> list[str]:
    """What does not agree with the JSON lines, a line each; a broken line of them is named too."""
    texts, wrong, summaries = {path: (root / path).read_text(encoding="utf-8") for path in DOCUMENTS}, [], []
    for name in in_order(texts):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            summaries.append(summarize(find(name), Store(name, root / RESULTS).records()))
        wrong += [str(each.message) for each in said]
    for path, text in texts.items():
        for place in places(text):
            if rewritten(path, text, summaries, [place]) != text:
                wrong.append(f"{path}: the part {place} is not what the JSON lines say: run tables.py")
    for file, content, _ in drawings(summaries):
        if figures.digest_of(root / RESULTS / file) != figures.digest(content):
            wrong.append(f"{file} does not show what the JSON lines say: run tables.py")
    return wrong


def in_order(texts: Mapping[Path, str]) -> list[str]:
    """The experiments in the order of the evidence.

    Raises:
        ExperimentError: a document has no place for an experiment that is declared, or README.md for any.
    """
    for path, text in texts.items():
        there = " ".join(places(text)).split()
        missing = sorted(set(declared()) - set(there))
        if missing and not (path == README and there):
            raise ExperimentError(f"{path} has no place for {', '.join(missing)}")
    return list(dict.fromkeys(" ".join(places(texts[EVIDENCE])).split()))


def rewritten(path: Path, text: str, summaries: Sequence[Summary], chosen: Sequence[str] | None = None) -> str:
    """The text of a document with what the summaries say in these of its places, all if none are named."""
    by_name = {summary.experiment.name: summary for summary in summaries}
    for place in places(text) if chosen is None else chosen:
        unknown = [name for name in place.split() if name not in by_name]
        if unknown:
            raise ExperimentError(f"{path} has a place for {', '.join(unknown)}, which the evidence does not report")
        text = replaced(text, place, DOCUMENTS[path]([by_name[name] for name in place.split()]))
    return text


def drawings(summaries: list[Summary]) -> list[tuple[str, figures.Numbers, Callable[[figures.Numbers, Path], None]]]:
    """The figures: the file, the numbers in it, and what draws them."""
    found = [
        (f"{summary.experiment.name}.png", content, figures.draw)
        for summary in summaries
        if figures.has_content(content := figures.numbers(summary))
    ]
    content = figures.of_all(summaries)
    return [*found, ("overview.png", content, figures.draw_all)] if content["rows"] else found


if __name__ == "__main__":
    sys.exit(main())
