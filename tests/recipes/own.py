"""Rows of a user's own, and a recipe's refusal of what it is given; no test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.recipes.scripts import in_this_process

WORDS = [f"{'good' if i % 2 else 'poor'} number {i}" for i in range(40)]
# Which arguments name the columns with texts, of the recipes that read them.
TEXTS = {
    "text_classification": ["--text_columns"], "data_selection": ["--text_column"],
    "causal_lm": ["--dataset_text_field"], "upcycle": ["--dataset_text_field"],
    "seq2seq": ["--source_column", "--target_column"], "sentence_embeddings": ["--anchor_column", "--positive_column"],
}  # fmt: skip
LABELS = ["text_classification", "data_selection", "accelerate_loop"]
IMAGES = ["image_classification", "class_prototypes", "watch_training"]


def json_lines(file: Path, **columns: Any) -> Path:
    """A file of one object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def refused(capsys: Any, script: str, *arguments: object) -> str:
    """The line with which a recipe refuses its arguments."""
    capsys.readouterr()
    assert in_this_process(script, "--quick", *arguments) == 2
    last: str = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    return last
