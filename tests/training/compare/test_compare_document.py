"""Files of a report, beyond what a comparison puts there."""

import re
from pathlib import Path

from training.compare.document import Block, Heading, Image, Paragraph, to_html, write_document


def test_pictures_of_one_text_are_files_of_their_own(tmp_path: Path) -> None:
    pictures = [
        Image("Differences of AUC", b"one"),
        Image("differences of AUC", b"two"),
        Image("other", b"three", "own"),
    ]
    page = write_document(tmp_path, "title", [Heading(1, "title"), *pictures])
    links = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "results.md").read_text(encoding="utf-8"))
    assert [(tmp_path / link).read_bytes() for link in links] == [b"one", b"two", b"three"]
    assert page.read_text(encoding="utf-8").count("<img") == 3


def test_the_page_lists_its_headings_and_each_link_has_a_target() -> None:
    blocks: list[Block] = [
        Heading(1, "title"),
        Heading(2, "Dataset a & b"),
        Heading(3, "Verdicts"),
        Paragraph("x"),
        Heading(3, "Costs"),
    ]
    page = to_html("title", blocks)
    links = re.findall(r'<li class="level(\d)"><a href="#(\w+)">(.*?)</a>', page)
    assert [(level, text) for level, _, text in links] == [
        ("2", "Dataset a &amp; b"),
        ("3", "Verdicts"),
        ("3", "Costs"),
    ]
    for level, target, text in links:
        assert f'<h{level} id="{target}">{text}</h{level}>' in page
    assert page.index("<nav>") < page.index("<h2")
