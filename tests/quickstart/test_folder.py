"""The output folder: nothing of the user's is lost, and nothing half done is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_mhe.errors import MHEError
from hf_mhe.quickstart.output_folder import MANIFEST, check_folder, filled


def fill(folder: Path, **files: str) -> None:
    """Write a folder the way quickstart does."""
    with filled(folder, {"seed": 0}) as staging:
        for name, text in files.items():
            (staging / "sub").mkdir(exist_ok=True)
            (staging / "sub" / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """All files but the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_a_second_run_replaces_its_own_files(tmp_path: Path) -> None:
    """Else quickstart could be run once per folder, or would leave the figures of an older version beside new ones."""
    folder = tmp_path / "deep" / "out"
    fill(folder, a="1", old="1")
    check_folder(folder, overwrite=False)
    fill(folder, a="2")
    assert contents(folder) == {"sub/a": "2"}
    check_folder(folder, overwrite=False)
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["sub/a", "notes.txt"])
def test_files_of_the_user_are_not_touched(tmp_path: Path, name: str) -> None:
    """Else a model card that somebody had written into, or any file beside it, would be gone without a question."""
    folder = tmp_path / "out"
    fill(folder, a="1")
    (folder / name).write_text("mine")
    with pytest.raises(MHEError, match=name):
        check_folder(folder, overwrite=False)
    check_folder(folder, overwrite=True)
    fill(folder, a="2")
    assert contents(folder) == {"sub/a": "2", **({"notes.txt": "mine"} if name == "notes.txt" else {})}


def test_an_empty_folder_is_free_and_a_file_is_not(tmp_path: Path) -> None:
    """Else `mkdir out; hf-mhe quickstart --output-dir out` would be refused, or a file replaced by a folder."""
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", overwrite=False)
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(MHEError, match="is a file"):
            check_folder(tmp_path / "file", overwrite)


def test_a_failure_changes_nothing(tmp_path: Path) -> None:
    """Else an interrupted run would leave a folder of two runs' files."""
    folder = tmp_path / "out"
    fill(folder, a="1")

    def interrupted() -> None:
        with filled(folder, {}) as staging:
            (staging / "a").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(folder) == {"sub/a": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
