"""Options that several commands share, so that one keyword means one thing everywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional, get_args

import typer

from hf_mhe import choices


class Distance(str, Enum):
    """Distances between two neurons on the sphere."""

    _ignore_ = "name"
    for name in get_args(choices.Distance):
        locals()[name] = name


class Space(str, Enum):
    """Whether a neuron also repels the mirror images of the others (half)."""

    _ignore_ = "name"
    for name in get_args(choices.Space):
        locals()[name] = name


EUCLIDEAN, FULL = Distance("euclidean"), Space("full")


# typer reads these annotations at run time, on Python 3.10 too: Optional, not `| None`.
Revision = Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a Hub repository.")]  # noqa: UP045
Token = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Access token of the Hub; by default HF_TOKEN or the saved login.", show_default=False),
]
CacheDir = Annotated[Optional[Path], typer.Option(help="Folder of the Hub cache.", show_default=False)]  # noqa: UP045
Include = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Only layers whose name matches this pattern (glob, or 're:' and a regex); repeatable."),
]
Exclude = Annotated[Optional[list[str]], typer.Option(help="Leave out layers that match; repeatable.")]  # noqa: UP045
Csv = Annotated[Optional[Path], typer.Option(metavar="FILE", help="Write the table as CSV.")]  # noqa: UP045
Html = Annotated[Optional[Path], typer.Option(metavar="FILE", help="Write one self-contained page.")]  # noqa: UP045
