"""`python -m deploy.runbook_page`: docs/runbook.md as a page that Prometheus serves beside the alerts that link to it.

In: the runbook. Out: deploy/prometheus/pages/runbook.html, which is not edited by hand. `--web.user-assets` names its
folder to Prometheus, which then has it under /user/. Headings have the ids that links within the runbook use. Links to
other files of the repository, which Prometheus does not serve, become their paths.
"""

import itertools
import posixpath
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "runbook.md"
TARGET = Path(__file__).parent / "prometheus" / "pages" / "runbook.html"
_HEAD = """<!DOCTYPE html>
<!-- Made by `make manifests` from docs/runbook.md; change it there. -->
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>feedrank: runbook</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto 50vh; padding: 0 1rem }
  pre { overflow-x: auto; background: #f4f4f4; padding: .5rem }
  td, th { text-align: left; vertical-align: top; padding: .2rem .5rem; border-bottom: 1px solid #ddd }
  :target { background: #fff3b0 }
</style>
"""


def page() -> str:
    """The page."""
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(SOURCE.read_text(encoding="utf-8"))
    for opening, content in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor(content.content))
    for token in tokens:
        if token.children:
            token.children = _without_files(token.children)
    return _HEAD + str(markdown.renderer.render(tokens, markdown.options, {}))


def anchor(heading: str) -> str:
    """The id of a heading, by the rule of the links within the runbook."""
    return heading.lower().replace(" ", "-")


def _without_files(tokens: list[Token]) -> list[Token]:
    """Inline tokens whose links to files of the repository are their text and the file's path."""
    kept: list[Token] = []
    file: str | None = None
    for token in tokens:
        target = str(token.attrGet("href") or "")
        if token.type == "link_open" and not target.startswith(("#", "http")):
            file = posixpath.normpath(f"docs/{target.partition('#')[0]}")
        elif token.type == "link_close" and file is not None:
            kept.append(Token("text", "", 0, content=f" ({file})"))
            file = None
        else:
            kept.append(token)
    return kept


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(TARGET.relative_to(Path.cwd()) if TARGET.is_relative_to(Path.cwd()) else TARGET)
