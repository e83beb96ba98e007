"""What lies in place of a file that was meant: a pointer to it, a web page, a file of another format; and the remedy.

A clone without Git LFS leaves pointers, a download by hand leaves the page that the browser showed, a proxy or a
storage leaves its error. The first bytes show which.
"""

from __future__ import annotations

_FETCH = "fetch the file itself"
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "`git lfs pull` in its folder"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer", "`git lfs pull` in its folder"),
    (b"# xet version", "a Git Xet pointer", "`git xet` or `git lfs pull` in its folder"),
    (b"/annex/objects/", "a git-annex pointer", "`git annex get` on it"),
)
_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes"),
    (b"GGUF", "a GGUF file, as llama.cpp reads"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x93NUMPY", "a NumPy array"),
)


def stand_in(start: bytes) -> str | None:
    """What a file is instead, with the remedy, from its first bytes (some hundreds are enough); None where it may be
    the file that was meant.
    """
    text = start[:512].removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, what, remedy in _POINTERS:
        if text.startswith(mark):
            return f"{what} and not the file that it points to: {_FETCH} with {remedy}, or with `hf download`"
    lowered = text.lower()
    if lowered.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return f"a web page (HTML) and not a file of a model: {_FETCH}, by `hf download` or the page's download link"
    if lowered.startswith((b"<?xml", b"<error")):
        return f"an XML message, as a storage answers with when it refuses, and not a file of a model: {_FETCH} again"
    return None


def other_format(start: bytes) -> str | None:
    """Which other format a file of weights is in, from its first bytes; None where they are of none that is known."""
    return next((what for mark, what in _FORMATS if start.startswith(mark)), None)
