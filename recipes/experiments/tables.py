"""Rebuild every table and figure of recipes/EVIDENCE.md from the JSON lines, or check that they agree.

python recipes/experiments/tables.py            # rebuild
python recipes/experiments/tables.py --check    # exit status 1, and what differs, where they do not
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from harness.document import block, blocks, replaced  # noqa: E402
from harness.experiment import ExperimentError, declared, find  # noqa: E402
from harness.figures import digest, digest_of, draw, has_content, numbers  # noqa: E402
from harness.store import RESULTS, Store  # noqa: E402
from harness.summary import summarize  # noqa: E402

EVIDENCE = Path(__file__).parents[1] / "EVIDENCE.md"


def main() -> int:
    """Returns the exit status: 0 done, 1 the check failed, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--document", type=Path, default=EVIDENCE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        wrong = check(options.document, options.results) if options.check else build(options.document, options.results)
    except (ExperimentError, ValueError, OSError) as error:
        print(f"tables.py: {error}", file=sys.stderr)
        return 2
    for each in wrong:
        print(f"tables.py: {each}", file=sys.stderr)
    return 1 if wrong else 0


def build(document: Path, results: Path) -> list[str]:
    """Write the tables into the document and the figures into the folder of the results."""
    text = document.read_text(encoding="utf-8")
    for name in named(text):
        summary = summarize(find(name), Store(name, results).records())
        text = replaced(text, name, block(summary))
        if has_content(summary):
            draw(summary, results / f"{name}.png")
    document.write_text(text, encoding="utf-8")
    return []


def check(document: Path, results: Path) -> list[str]:
    """What does not agree with the JSON lines, a line each; a broken line of them is named too."""
    text, wrong = document.read_text(encoding="utf-8"), []
    for name in named(text):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            records = Store(name, results).records()
        wrong += [str(each.message) for each in said]
        summary = summarize(find(name), records)
        if replaced(text, name, block(summary)) != text:
            wrong.append(f"{document.name}: the part {name} is not what the JSON lines say: run tables.py")
        if has_content(summary) and digest_of(results / f"{name}.png") != digest(numbers(summary)):
            wrong.append(f"{name}.png does not show what the JSON lines say: run tables.py")
    return wrong


def named(text: str) -> list[str]:
    """The experiments that the document reports; those with results have to be among them.

    Raises:
        ExperimentError: one is not declared, or one with a declaration has no place in the document.
    """
    there = blocks(text)
    missing = sorted(set(declared()) - set(there))
    if missing:
        raise ExperimentError(f"the document has no place for {', '.join(missing)}")
    return there


if __name__ == "__main__":
    sys.exit(main())
