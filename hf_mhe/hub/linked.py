"""What a model card shows to its readers, and how it says to load parts of the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

_LINKS = re.compile(
    r"""\]\(\s*<?(?P<inline>[^)>\s]+)"""  # [text](target), ![image](target "title")
    r"""|^\s*\[[^\]\n]+\]:\s*<?(?P<reference>[^>\s]+)"""  # [text]: target
    r"""|\b(?:src|href)\s*=\s*["'](?P<html>[^"']+)"""
    r"""|^\W*(?:thumbnail|license_link|src)\s*:\s*["']?(?P<metadata>[^"'\s]+)"""
    r"""|\bsubfolder\s*=\s*["'](?P<subfolder>[^"']+)""",
    re.MULTILINE,
)
# A file of a repository on the Hub, by its address there.
_ON_THE_HUB = re.compile(r"^https?://[^/]+/[^/]+/[^/]+/(?:resolve|blob|raw)/[^/]+/(?P<path>.+)$")


def links(readme: str) -> Iterator[str]:
    """The relative paths that a README links to, or names as a `subfolder` to load; not whether they are there."""
    for match in _LINKS.finditer(readme):
        target = next(group for group in match.groups() if group is not None)
        if on_the_hub := _ON_THE_HUB.match(target):
            target = on_the_hub["path"]
        target = unquote(re.split(r"[?#]", target, maxsplit=1)[0])
        while target.startswith("./"):
            target = target[2:]
        if target and ":" not in target:
            yield target
