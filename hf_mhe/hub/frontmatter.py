"""A README's metadata block, edited as text: a line that needs no other value is not touched.

Note [Text, not values]. Reading the block and writing it again (what `huggingface_hub` does) makes an owner's `no` a
`false`, `1e3` a string and `2024-01-01` a date, and drops comments, quotes, anchors and the order of the lines. So
values are compared here as the text of their scalars, an edit replaces the lines of one key, and what comes out is
read again and must say what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from hf_mhe.errors import MHEError
from hf_mhe.text import one_line

# As `huggingface_hub.repocard.REGEX_YAML_BLOCK`, and an empty block beside it.
_BLOCK = re.compile(
    r"\A(?P<open>\s*---(?:\r\n|\r|\n))(?P<block>(?:[\S\s]*?(?:\r\n|\r|\n))??)(?P<close>---[ \t]*(?:\r\n|\n|\Z))"
)
# What takes up room of its own in a block; the other tokens only structure it.
_CONTENT = (
    yaml.ScalarToken,
    yaml.FlowSequenceEndToken,
    yaml.FlowMappingEndToken,
    yaml.AliasToken,
    yaml.AnchorToken,
    yaml.TagToken,
    yaml.BlockEntryToken,
    yaml.ValueToken,
)


def split(readme: str) -> tuple[str, str, str, str]:
    """A README in four pieces that make it up: opening fence, metadata block, closing fence, text."""
    found = _BLOCK.match(readme)
    if found is None:
        return "", "", "", readme
    return found["open"], found["block"], found["close"], readme[found.end() :]


@dataclass(frozen=True)
class _Entry:
    """The lines of one key: where they begin, where the value does, and where the last of it ends.

    Of a value that refers to another (`*name`) the node is that other one, which lies elsewhere.
    """

    start: int
    value: int
    end: int
    node: Any
    is_alias: bool


class FrontMatter:
    """A metadata block: its keys with the text of their values, and edits of single keys.

    `values` holds nested dicts and lists of strings: `no`, `1e3` and `2024-01-01` are what they look like.
    """

    def __init__(self, text: str, where: str, first_line: int = 1) -> None:
        """Read a block, without its fences.

        Raises:
            MHEError: not YAML, or no mapping; names `where` and the line, counted from `first_line`.
        """
        self.text, self.where, self.first_line = text, where, first_line
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            values = yaml.load(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._unreadable(mark.line if mark else 0, error.problem or error.context or "not YAML") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            raise self._unreadable(line, f"the character U+{error.character:04X}") from error
        except (RecursionError, ValueError, TypeError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise self._unreadable(0, reason) from error
        if self._root is not None and not isinstance(self._root, yaml.MappingNode):
            raise self._unreadable(self._root.start_mark.line, "a mapping of keys to values is needed")
        self.values: dict[str, Any] = {} if self._root is None else values
        self._entries = self._find_entries()

    def set(self, key: str, block: str) -> FrontMatter:
        """The block with a key's lines replaced by `block` (`key: value` and its line break), or added at the end.

        What stands behind the value on its last line, a comment, stays.
        """
        entry = self._entries.get(key)
        if entry is None:
            return self._added(block)
        return self._replaced(entry.start, entry.end, self._indented(block).rstrip("\n").lstrip(" "))

    def set_scalar(self, key: str, source: str) -> FrontMatter:
        """The block with a key's value replaced by another of one line, given as YAML."""
        entry = self._entries.get(key)
        if entry is None or entry.is_alias or not _is_one_line(entry.node):
            return self.set(key, f"{key}: {source}\n")
        before = "" if entry.end > entry.value else " "
        return self._replaced(entry.value, entry.end, before + source)

    def extend(self, key: str, sources: list[str]) -> FrontMatter:
        """The block with items (each one line of YAML) added to a key's list; a single value becomes the first."""
        entry = self._entries.get(key)
        if entry is None or self.values[key] in ("", [], {}):
            return self.set(key, "".join([f"{key}:\n", *(f"- {source}\n" for source in sources)]))
        node, pad = entry.node, " " * self._column
        own = self.sources(key)
        if isinstance(node, yaml.SequenceNode) and not node.flow_style:
            pad = " " * self._first_dash(node).column
            return self._replaced(entry.end, entry.end, "".join(f"\n{pad}- {source}" for source in sources))
        if isinstance(node, yaml.SequenceNode) and node.start_mark.line != node.end_mark.line:
            end = node.value[-1].end_mark.index
            return self._replaced(end, end, "".join(f", {source}" for source in sources))
        lines = "".join(f"\n{pad}- {source}" for source in [*(source for _, source in own), *sources])
        return self._replaced(len(self.text[: entry.value].rstrip(" \t")), entry.end, lines)

    def take(self, key: str, other: FrontMatter) -> FrontMatter:
        """The block with a key's value, or the key, taken over from another block as it is written there."""
        node = other._entries[key].node
        if _is_one_line(node):
            return self.set_scalar(key, other.text[node.start_mark.index : node.end_mark.index])
        return self.set(key, other.source(key))

    def spelled_out(self) -> FrontMatter:
        """The block with what every `*name` refers to in its place, so that one value can be edited alone."""
        places = [
            token for token in yaml.scan(self.text, Loader=yaml.SafeLoader) if isinstance(token, yaml.AliasToken)
        ]
        events = yaml.parse(self.text, Loader=yaml.SafeLoader)
        starts = [
            (event.anchor, event.start_mark.index)
            for event in events
            if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.anchor
        ]
        nodes = {node.start_mark.index: node for node in _nodes(self._root)}
        text = self.text
        for token in reversed(places):
            begins = [start for name, start in starts if name == token.value and start < token.start_mark.index]
            node = nodes[max(begins)]
            text = text[: token.start_mark.index] + _in_one_line(node) + text[token.end_mark.index :]
        return FrontMatter(text, self.where, self.first_line)

    def without(self, key: str, items: list[str] | None = None) -> FrontMatter:
        """The block without a key, or without some items of its list."""
        entry = self._entries[key]
        kept = [] if items is None else [source for text, source in self.sources(key) if text not in items]
        if kept:
            return self.set(key, f"{key}:\n" + "".join(f"- {source}\n" for source in kept))
        rest = re.compile(r"[ \t]*(?:\r\n|\r|\n|\Z)").match(self.text, entry.end)
        return self._replaced(entry.start, entry.end if rest is None else rest.end(), "")

    def sources(self, key: str) -> list[tuple[str, str]]:
        """The items of a key's list (a single value is a list of one): their text, and how they are written.

        Raises:
            MHEError: the list is written elsewhere.
        """
        node = self._entries[key].node
        if self._entries[key].is_alias:
            raise MHEError(f"{key} of the README in {self.where} refers to another value; write it out")
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return [(item.value, self.text[item.start_mark.index : item.end_mark.index]) for item in items]

    def source(self, key: str) -> str:
        """A key's own lines, as they are written."""
        entry = self._entries[key]
        return self.text[entry.start : entry.end] + "\n"

    def results(self) -> list[str]:
        """Each result of a `model-index` as YAML lines of its own, the first of them without its dash."""
        return [
            yaml.serialize(result, Dumper=yaml.SafeDumper, allow_unicode=True, width=1000).rstrip("\n")
            for model in self._entries["model-index"].node.value
            for name, results in model.value
            if name.value == "results"
            for result in results.value
        ]

    def replace_results(self, stale: list[tuple[int, int]], new: list[str]) -> FrontMatter:
        """The block with results of its `model-index` (model, index) replaced, and more put to the first model.

        Raises:
            MHEError: they are not written as lists with one dash a line.
        """
        lists = self._result_lists()
        edits = []
        for position, (model, index) in enumerate(stale):
            start, end = lists[model][index]
            edits.append((start, end, new[position] if position < len(new) else None))
        if new[len(stale) :]:
            start, end = lists[0][-1]
            dash = "\n" + " " * self._column_of(start) + "- "
            edits.append((end, end, "".join(dash + self._hung(text, start) for text in new[len(stale) :])))
        block = self
        for start, end, text in sorted(edits, reverse=True):
            if text is None:
                line = self.text.rfind("\n", 0, start) + 1
                block = block._replaced(line, min(end + 1, len(block.text)), "")
            elif start < end:
                block = block._replaced(start, end, "- " + self._hung(text, start))
            else:
                block = block._replaced(start, end, text)
        return block

    def _result_lists(self) -> list[list[tuple[int, int]]]:
        """Where each result of each model lies, from its dash to its end."""
        entry = self._entries["model-index"]
        found = []
        for (_, end), model in zip(self._items(entry.node, entry.end), entry.node.value, strict=True):
            limits = [name.start_mark.index for name, _ in model.value[1:]] + [end]
            for (name, node), limit in zip(model.value, limits, strict=True):
                if name.value == "results":
                    found.append(self._items(node, self._content_end(name.start_mark.index, limit)))
        return found

    def _column_of(self, index: int) -> int:
        return index - (max(self.text.rfind("\n", 0, index), self.text.rfind("\r", 0, index)) + 1)

    def _hung(self, text: str, start: int) -> str:
        """Lines behind a dash: all but the first indented to stand under it."""
        return text.replace("\n", "\n" + " " * (self._column_of(start) + 2))

    def _first_dash(self, node: Any) -> Any:
        """Where the first item of a block list begins, which is behind the list's own anchor."""
        start = node.start_mark.index
        marks = (token.start_mark for token in self._tokens if isinstance(token, yaml.BlockEntryToken))
        return next((mark for mark in marks if mark.index >= start), node.start_mark)

    def _items(self, node: Any, end: int) -> list[tuple[int, int]]:
        column = self._first_dash(node).column
        dashes = [
            token.start_mark.index
            for token in self._tokens
            if isinstance(token, yaml.BlockEntryToken)
            and token.start_mark.column == column
            and node.start_mark.index <= token.start_mark.index < end
        ]
        if not dashes or len(dashes) != len(node.value):
            raise MHEError(
                f"model-index of the README in {self.where} cannot be added to: write its models and results with a "
                "dash on a line of each"
            )
        limits = [*dashes[1:], end]
        return [(dash, self._content_end(dash, limit)) for dash, limit in zip(dashes, limits, strict=True)]

    def _find_entries(self) -> dict[str, _Entry]:
        if self._root is None:
            return {}
        pairs = self._root.value
        limits = [key.start_mark.index for key, _ in pairs[1:]] + [len(self.text)]
        found = {}
        for (key, node), limit in zip(pairs, limits, strict=True):
            start, colon = key.start_mark.index, key.end_mark.index
            value, end = node.start_mark.index, self._content_end(start, limit)
            is_alias = not colon <= value < max(limit, colon + 1)
            found[str(key.value)] = _Entry(start, end if is_alias else value, end, node, is_alias)
        return found

    def _content_end(self, start: int, limit: int) -> int:
        """The end of the last thing that is written between two places, comments and blank lines left out."""
        ends = [token.end_mark.index for token in self._tokens if start <= token.start_mark.index < limit]
        end = max(ends, default=limit)
        return len(self.text[:end].rstrip()) if self.text[:end].endswith(("\n", "\r")) else end

    @property
    def _tokens(self) -> list[Any]:
        if not hasattr(self, "_content"):
            found = yaml.scan(self.text, Loader=yaml.SafeLoader)
            self._content = [token for token in found if isinstance(token, _CONTENT)]
        return self._content

    @property
    def _column(self) -> int:
        return 0 if self._root is None else int(self._root.start_mark.column)

    @property
    def _break(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def _indented(self, block: str) -> str:
        return "".join(f"{' ' * self._column}{line}\n" for line in block.splitlines())

    def _added(self, block: str) -> FrontMatter:
        """A new key at the end: or, where a block of text is the last value, before it, as its end is the block's."""
        if self._root is not None and self._root.flow_style:
            raise MHEError(
                f"the metadata of the README in {self.where} is one {{...}} (line "
                f"{self.first_line + self._root.start_mark.line}); write one key on each line"
            )
        last = max(self._entries.values(), key=lambda entry: entry.start, default=None)
        if last is not None and isinstance(last.node, yaml.ScalarNode) and not _is_one_line(last.node):
            return self._replaced(last.start, last.start, self._indented(block).lstrip(" ") + " " * self._column)
        joint = "" if not self.text or self.text.endswith(("\n", "\r")) else "\n"
        return self._replaced(len(self.text), len(self.text), joint + self._indented(block))

    def _replaced(self, start: int, end: int, new: str) -> FrontMatter:
        new = new.replace("\n", self._break)
        return FrontMatter(self.text[:start] + new + self.text[end:], self.where, self.first_line)

    def _unreadable(self, line: int, reason: str) -> MHEError:
        return MHEError(
            f"the metadata of the README in {self.where} cannot be read: line {self.first_line + line}: "
            f"{one_line(reason)}"
        )


def _is_one_line(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">")


def _nodes(node: Any) -> Iterator[Any]:
    """A node and all in it."""
    if node is None:
        return
    yield node
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in item if isinstance(item, tuple) else (item,):
            yield from _nodes(part)


def _in_one_line(node: Any) -> str:
    """A value as YAML that can stand anywhere in a line, its scalars as they were written."""

    def flat(part: Any) -> Any:
        if isinstance(part, yaml.ScalarNode):
            return yaml.ScalarNode(part.tag, part.value, style=part.style if _is_one_line(part) else '"')
        if isinstance(part, yaml.SequenceNode):
            return yaml.SequenceNode(part.tag, [flat(item) for item in part.value], flow_style=True)
        pairs = [(flat(key), flat(value)) for key, value in part.value]
        return yaml.MappingNode(part.tag, pairs, flow_style=True)

    text: str = yaml.serialize(flat(node), Dumper=yaml.SafeDumper, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
