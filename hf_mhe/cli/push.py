"""`hf-mhe push`: publish a folder in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hf_mhe.cli import options
from hf_mhe.cli.console import emit_line


def push_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with a saved model, as quickstart writes one.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository, as 'namespace/name'.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Branch to commit to, made if there is none; by default main.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; ask the Hub nothing.")] = False,
    token: options.Token = None,
    commit_message: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="First line of the commit's message.", show_default=False),
    ] = None,
) -> None:
    """Publish a folder on the Hub in one commit, its energies measured anew and its model card brought up to date."""
    from hf_mhe.hub import plan_push, push_to_hub

    if dry_run:
        files = plan_push(folder, repo_id, revision=revision, create_pr=create_pr)
        for file in files:
            emit_line(f"{file.size:>12} {file.path}")
        emit_line(f"{sum(file.size for file in files):>12} bytes in {len(files)} files; nothing was sent")
        return
    commit = push_to_hub(
        folder,
        repo_id,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        token=token,
        commit_message=commit_message,
    )
    emit_line(f"{commit.pr_url or commit.commit_url}")
