"""A report as blocks, written as Markdown and as one self-contained HTML page.

In: headings, paragraphs, tables, images (PNG bytes). Out: text. The page carries its style and its images itself: it
can be mailed, and loads nothing from another host. Markdown names its images as files beside it.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from training.files import replace_file
from training.run.run import write_text

MARKDOWN = "results.md"
REPORT = "report.html"
PICTURES = "pictures"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; margin-top: 1.6em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
td:first-child, th:first-child, .words { text-align: left; }
.words { white-space: normal; }
.scroll { overflow-x: auto; }
nav ul { list-style: none; padding: 0; }
.level3 { margin-left: 1.2em; }
img { max-width: 100%; }
"""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1, 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, the head first. A table of words is not aligned as numbers are."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_words: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """A PNG. `text` says what it shows. `name` is its file's where the text is not one."""

    text: str
    png: bytes
    name: str = ""

    @property
    def file(self) -> str:
        """The file's name beside a Markdown report."""
        return f"{PICTURES}/{self.name or re.sub(r'[^a-z0-9_]+', '-', self.text.lower()).strip('-')}.png"


Block = Heading | Paragraph | Table | Image


def write_document(folder: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Writes results.md with its pictures and report.html into `folder`. Returns the page's path."""
    (folder / PICTURES).mkdir(exist_ok=True)
    blocks = _with_distinct_files(blocks)
    for block in blocks:
        if isinstance(block, Image):
            replace_file(folder / block.file, (block.png,))
    write_text(folder / MARKDOWN, to_markdown(blocks))
    write_text(folder / REPORT, to_html(title, blocks))
    return folder / REPORT


def _with_distinct_files(blocks: Sequence[Block]) -> list[Block]:
    """Two pictures of one text, those of two datasets say, are two files."""
    used: set[str] = set()
    distinct: list[Block] = []
    for block in blocks:
        if isinstance(block, Image):
            stem, number = Path(block.file).stem, 1
            while block.file in used:
                number += 1
                block = replace(block, name=f"{stem}-{number}")
            used.add(block.file)
        distinct.append(block)
    return distinct


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown. Images are links to their `file`."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {text}")
            case Paragraph(text):
                parts.append(text)
            case Table(head, rows, is_words):
                lines = (head, ["---", *["---" if is_words else "---:"] * (len(head) - 1)], *rows)
                parts.append("\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines))
            case Image(text) as image:
                parts.append(f"![{text}]({image.file})")
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One HTML page, with a list of its headings below the first."""
    parts = [_html(block, number) for number, block in enumerate(blocks)]
    parts.insert(1 if blocks and isinstance(blocks[0], Heading) else 0, _contents(blocks))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _contents(blocks: Sequence[Block]) -> str:
    lines = [
        f'<li class="level{block.level}"><a href="#s{number}">{escape(block.text)}</a></li>'
        for number, block in enumerate(blocks)
        if isinstance(block, Heading) and block.level > 1
    ]
    return "\n".join(["<nav><ul>", *lines, "</ul></nav>"]) if lines else ""


def _html(block: Block, number: int) -> str:
    """A block of the page. A heading is named by its `number` among the blocks."""
    match block:
        case Heading(level, text):
            return f'<h{level} id="s{number}">{escape(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Image(text, png):
            data = base64.b64encode(png).decode("ascii")
            return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        case Table(head, rows, is_words):
            kind = ' class="words"' if is_words else ""
            cells = "".join(f"<th{kind}>{escape(cell)}</th>" for cell in head)
            lines = "\n".join(
                "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
            )
            return f'<div class="scroll"><table>\n<tr>{cells}</tr>\n{lines}\n</table></div>'
