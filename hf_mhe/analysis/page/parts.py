"""The pieces that the HTML pages are put together from: every text that comes in is escaped here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis.page.plots import INK, figure_bytes
from hf_mhe.errors import MHEError
from hf_mhe.text import number as number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Beside holding no link to anything, the page forbids the browser to load anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class PageColumn:
    """One column of a sortable table: its head, what it shows of a row, and by what it is sorted."""

    head: str
    value: Callable[[Any], float | int | str | None]
    digits: int | None = None
    is_text: bool = False
    title: str = ""
    css: Callable[[Any], str] | None = None
    more: Callable[[Any], Iterable[str]] | None = None
    """Paragraphs that unfold below the value, for whoever asks for them."""


def page(title: str, lede: str, sections: Iterable[str], footer: str) -> str:
    """A whole HTML document; `sections` are HTML already, the other texts are not."""
    style = files("hf_mhe.analysis.page").joinpath("page.css").read_text(encoding="utf-8")
    script = files("hf_mhe.analysis.page").joinpath("page.js").read_text(encoding="utf-8")
    body = "\n".join(section for section in sections if section)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lede">{escape(lede)}</p>
</header>
<main>
{body}
</main>
<footer>{escape(footer)}</footer>
<script>
{script}</script>
</body>
</html>
"""


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """The summary: (label, value, one more line) each."""
    drawn = (
        f'<dl class="tile"><dt>{escape(label)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="more">{_breakable(more)}</dd></dl>'
        for label, value, more in entries
    )
    return '<div class="tiles">\n' + "\n".join(drawn) + "\n</div>"


def _breakable(text: str) -> str:
    """Escaped text whose dotted names may go on in the next line after a dot."""
    return escape(text).replace(".", ".<wbr>")


def paragraphs(texts: Iterable[str], css: str) -> str:
    """Lines of plain text in a marked block; nothing where there is no line."""
    drawn = "\n".join(f"<p>{escape(text)}</p>" for text in texts)
    return f'<section class="{css}">\n{drawn}\n</section>' if drawn else ""


def table(
    name: str, title: str, columns: Sequence[PageColumn], rows: Iterable[Any], sorted_by: str, remark: str = ""
) -> str:
    """A sortable, searchable table, lowest value of the column `sorted_by` first; `name` is its id in the page."""
    head = "".join(_head(column, sorted_by) for column in columns)
    said = f'\n<p class="lede">{escape(remark)}</p>' if remark else ""
    body = "\n".join("<tr>" + "".join(_cell(column, row) for column in columns) + "</tr>" for row in rows)
    return f"""<section>
<div class="bar"><h2>{escape(title)}</h2>
<input type="search" data-table="{escape(name)}" placeholder="Filter by name" aria-label="Filter the table">
</div>{said}
<div class="scroll"><table class="sortable" id="{escape(name)}">
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
</section>"""


def _head(column: PageColumn, sorted_by: str) -> str:
    css = ' class="text"' if column.is_text else ""
    order = ' aria-sort="ascending"' if column.head == sorted_by else ""
    title = f' title="{escape(column.title)}"' if column.title else ""
    return f'<th scope="col"{css}{order}{title}><button type="button">{escape(column.head)}</button></th>'


def _cell(column: PageColumn, row: Any) -> str:
    value = column.value(row)
    css = " ".join(filter(None, ["text" if column.is_text else "", column.css(row) if column.css else ""]))
    sort_by = "" if value is None else repr(value) if isinstance(value, float) else str(value)
    # JavaScript reads numbers, and Python writes an infinity in its own way.
    sort_by = {"inf": "Infinity", "-inf": "-Infinity", "nan": ""}.get(sort_by, sort_by)
    shown = escape(number(None) if value is None else str(value) if column.is_text else number(value, column.digits))
    if column.more is not None:
        said = "".join(f"<p>{escape(line)}</p>" for line in column.more(row))
        shown = f"<details><summary>{shown}</summary><div>{said}</div></details>"
    return f'<td class="{css}" data-value="{escape(sort_by)}">{shown}</td>'


def number(value: float | int | str | None, digits: int | None = None) -> str:
    """A number for people, thousands apart; a dash where undefined; a text as it is."""
    if isinstance(value, str):
        return value
    return number_text(value, 4 if digits is None else digits, thousands=True)


def definitions(summary: str, entries: Mapping[str, str], heads: tuple[str, str]) -> str:
    """A folded two-column table; nothing where there is no entry."""
    if not entries:
        return ""
    rows = "\n".join(
        f'<tr><td class="text name">{escape(key)}</td><td class="text">{escape(value)}</td></tr>'
        for key, value in sorted(entries.items())
    )
    head = "".join(f'<th class="text" scope="col">{escape(name)}</th>' for name in heads)
    return f"""<details><summary>{escape(summary)}</summary>
<div class="scroll"><table><thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div></details>"""


def figure(draw: Callable[[], Figure], title: str, caption: str) -> str:
    """A figure as inline SVG that takes the page's colours; where there is nothing to draw, the reason in words."""
    try:
        content = inline_svg(draw())
    except MHEError as error:
        return f'<section><h2>{escape(title)}</h2>\n<p class="lede">{escape(str(error))}</p></section>'
    return f"""<section><h2>{escape(title)}</h2>
<figure>{content}
<figcaption>{escape(caption)}</figcaption></figure></section>"""


def inline_svg(drawing: Figure) -> str:
    """The figure as an <svg> element without a prologue, its ink and paper those of the page."""
    drawing.patch.set_visible(False)
    text = figure_bytes(drawing, ".svg").decode("utf-8")
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg)
    # In an HTML document the name spaces are known, and `href` is `xlink:href`.
    svg = svg.replace("xlink:href=", "href=")
    return svg.replace(INK, "currentColor").replace("#ffffff", "var(--page)").strip()
