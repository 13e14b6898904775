"""Plain English of pages and code: short sentences, few semicolons, and one word for one thing (docs/words.md)."""

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from functools import cache
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
    ROOT / "clients/python/README.md",
    ROOT / "clients/typescript/README.md",
    RESULTS,
    *sorted((ROOT / "docs").rglob("*.md")),
]
MEDIAN, LONG, SEMICOLONS = 14, 24, 2
CODE = [
    path
    for folder in ("model", "training", "service", "deploy", "benchmarks", "clients", "tests", "requirements")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
OPENING = 25
# Shares of sentences and of words: a slip is no reason to stop, a habit is.
OTHERS, CODE_SEMICOLONS = 0.002, 0.1 / 1000


def _prose(text: str) -> str:
    """Without code, tables, headings and comments. Code in a line is one word, an item of a list a paragraph."""
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


def _banned(heading: str) -> re.Pattern[str]:
    """Words of the tables under a heading of the glossary."""
    tables = WORDS.read_text(encoding="utf-8").split(heading)[1]
    rows = [row for row in re.findall(r"^\| (.+?) \|", tables, flags=re.MULTILINE) if row not in ("not", "---")]
    assert rows
    return re.compile(rf"\b(?:{'|'.join(word for row in rows for word in row.split(', '))})\b", re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_word_is_used_for_which_the_glossary_has_another(page: Path) -> None:
    assert _banned("## Not said here").findall(" ".join(_prose(page.read_text(encoding="utf-8")).split())) == []


def test_results_have_a_thought_a_sentence() -> None:
    """Their lines of provenance are lists, as their tables are."""
    found = {
        page.name: sentences
        for page in sorted((ROOT / "benchmarks/results").glob("*.md"))
        if (
            sentences := re.findall(r"^(?!Made by |validation: ).*; .*$", _prose(page.read_text("utf-8")), re.MULTILINE)
        )
    }
    assert found == {}


def test_results_say_no_verdict_on_targets_that_the_reader_does_not_know() -> None:
    found = {
        page.name: words
        for page in sorted((ROOT / "benchmarks/results").glob("*.md"))
        if (words := re.findall(r"\b(?:asked|missed|reached|floor)\b", _prose(page.read_text(encoding="utf-8"))))
    }
    assert found == {}


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Docstrings, those of fields too."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for line in body if isinstance(body, list) else []:
            text = line.value if isinstance(line, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text


def _said(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings and comments by line, without what is code in them."""
    for docstring in _docstrings(ast.parse(source)):
        yield docstring.lineno, re.sub(r"`[^`]*`", "code", str(docstring.value))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], re.sub(r"`[^`]*`", "code", token.string)


@cache
def _file(path: Path) -> tuple[ast.Module, list[tuple[int, str]]]:
    """A file's tree, and its docstrings and comments by line."""
    source = path.read_text(encoding="utf-8")
    return ast.parse(source), list(_said(source))


def test_what_code_says_is_found() -> None:
    source = 'class A:\n    """One `a; b`."""\n\n    b = 1  # two\n    """Three."""\n'
    assert list(_said(source)) == [(2, "One code."), (5, "Three."), (4, "# two")]


def test_docstrings_and_comments_have_a_thought_a_sentence() -> None:
    said = [(path, *text) for path in CODE for text in _file(path)[1]]
    found = [f"{_name(path)}:{line}: {text}" for path, line, text in said if ";" in text]
    assert len(found) <= CODE_SEMICOLONS * sum(len(text.split()) for _, _, text in said), "\n".join(found)


def test_the_first_sentence_of_a_docstring_is_short() -> None:
    firsts = [
        (path, docstring.lineno, re.split(r"(?<=[.!?])\s", " ".join(str(docstring.value).split("\n\n")[0].split()))[0])
        for path in CODE
        for docstring in _docstrings(_file(path)[0])
    ]
    long = [f"{_name(path)}:{line}: {first}" for path, line, first in firsts if len(first.split()) > OPENING]
    assert len(long) <= OTHERS * len(firsts), "\n".join(long)


def test_no_word_is_said_in_code_for_which_the_glossary_has_another() -> None:
    banned = _banned("Nor in docstrings and comments:")
    found = [
        f"{_name(path)}:{line}: {words}"
        for path in CODE
        if path != Path(__file__)
        for line, text in _file(path)[1]
        if (words := banned.findall(" ".join(text.split())))
    ]
    assert found == []


# experts_out_BEH, sums_1F: the letters of dimensions that a name ends in
_SHAPED = re.compile(r"[a-z][a-z0-9_]*_([0-9]?[A-Z]+[A-Z0-9]*)")


def _letters(tree: ast.AST) -> set[str]:
    """Letters of dimensions in the names of arrays and tensors."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.arg | ast.Attribute))
    names = [str(getattr(node, {ast.Name: "id", ast.arg: "arg"}.get(type(node), "attr"))) for node in nodes]
    return {letter for name in names if (found := _SHAPED.fullmatch(name)) for letter in re.findall("[A-Z]", found[1])}


def test_a_file_that_uses_letters_of_dimensions_says_what_they_are() -> None:
    assert _letters(ast.parse("def f(x_BD, is_in_N): y_1F = x_BD.z_T")) == set("BDNFT")
    wrong = []
    for path in CODE:
        tree, _ = _file(path)
        legend = ast.get_docstring(tree) or ""
        missing = [letter for letter in sorted(_letters(tree)) if not re.search(rf"\b{letter}\b", legend)]
        if missing and path.relative_to(ROOT).parts[0] != "tests":
            wrong.append(f"{_name(path)}: no {', '.join(missing)} in its docstring (Shapes: ...)")
    assert wrong == []
