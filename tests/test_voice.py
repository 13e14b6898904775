"""Plain English of the pages: short sentences, few semicolons, and one word for one thing (docs/words.md)."""

import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results/README.md"
WORDS = ROOT / "docs/words.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "requirements/README.md",
    RESULTS,
    *sorted((ROOT / "docs").rglob("*.md")),
]
MEDIAN, LONG, SEMICOLONS = 14, 24, 2


def _prose(text: str) -> str:
    """Without code, tables, headings and comments; code in a line is one word, an item of a list a paragraph."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *```.*?^ *```$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?:\||#).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^ *(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    return text.replace("**", "")


def _lengths(prose: str) -> list[int]:
    """Words of each sentence."""
    sentences = [
        sentence
        for paragraph in re.split(r"\n\s*\n", prose)
        for sentence in re.split(r"(?<=[.!?])[)\"]?\s+", " ".join(paragraph.split()))
    ]
    return sorted(length for sentence in sentences if (length := len(re.findall(r"[A-Za-z0-9][\w'.,%/+-]*", sentence))))


def test_a_sentence_is_counted_as_a_reader_counts_it() -> None:
    text = "# Head\nOne two `a b c` four. Five\nsix [seven](x.md)!\n\n* eight: nine\n* ten\n"
    text += "```\nno. no.\n```\n| no | no |\n"
    assert _lengths(_prose(text)) == [1, 2, 3, 4]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_sentences_are_short(page: Path) -> None:
    lengths = _lengths(_prose(page.read_text(encoding="utf-8")))
    tenth = lengths[int(0.9 * (len(lengths) - 1) + 0.5)]
    assert (statistics.median(lengths) <= MEDIAN, tenth <= LONG) == (True, True), (statistics.median(lengths), tenth)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_semicolons_are_rare(page: Path) -> None:
    prose = _prose(page.read_text(encoding="utf-8"))
    assert prose.count(";") <= max(1, SEMICOLONS * len(prose.split()) / 1000)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_word_is_used_for_which_the_glossary_has_another(page: Path) -> None:
    table = WORDS.read_text(encoding="utf-8").split("## Not said here")[1]
    banned = [word for row in re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)[2:] for word in row.split(", ")]
    assert "reckon" in banned
    prose = " ".join(_prose(page.read_text(encoding="utf-8")).split())
    assert re.findall(rf"\b(?:{'|'.join(banned)})\b", prose, flags=re.IGNORECASE) == []


def test_results_say_no_verdict_on_targets_that_the_reader_does_not_know() -> None:
    found = {
        page.name: words
        for page in sorted((ROOT / "benchmarks/results").glob("*.md"))
        if (words := re.findall(r"\b(?:asked|missed|reached|floor)\b", _prose(page.read_text(encoding="utf-8"))))
    }
    assert found == {}
