"""Configuration files: what is refused, and that every refusal is one ValueError that names file and place."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.strict_yaml import StrictModel, read_yaml
from tests.model.feeds import write


class Inner(StrictModel):
    """A nested model with one field of each simple type."""

    width: int = 1
    share: float = 0.5
    word: str = "a"
    is_on: bool = False


class Outer(StrictModel):
    """A model that nests."""

    inner: Inner
    widths: tuple[int, ...] = ()
    anything: Any = None


@pytest.mark.parametrize(("text", "message"), [
    ("innner: {}", "unknown key 'innner'; did you mean 'inner'"),
    ("inner: {widht: 3}", "inner: unknown key 'widht'; did you mean 'width'"),
    ("inner: {qqqq: 3}", "valid keys: width, share, word, is_on"),
    ("inner: {width: wide}", r"inner.width: .*\(got 'wide'\)"),
    ("inner: {width: 1.5}", "inner.width"),
    ("inner: {width: yes}", "width: got true or false"),
    ("inner: {share: off}", "share: got true or false"),
    ("inner: {word: no}", "word: got true or false"),
    ("inner: {}\nwidths: [1, on]", "widths: got true or false"),
    ("inner: {}\nwidths: [false]", "widths: got true or false"),
    ("inner: 3", "inner: .*got 3"),
    ("inner: null", "inner"),
    ("{}", "inner: Field required"),
    ("", "expected a mapping of keys to values, got NoneType"),
    ("- inner", "expected a mapping of keys to values, got list"),
    ("just words", "expected a mapping of keys to values, got str"),
    ("1: 2\ninner: {}", "unknown key '1'"),
    ("inner: &x {anything: *x}", "an alias refers to something that it is part of"),
])  # fmt: skip
def test_faults_of_content_name_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "outer.yaml", text)
    with pytest.raises(ValueError, match=message) as raised:
        Outer.from_yaml(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "outer.yaml", "inner: {width: wide, share: [1]}\nwidths: 3")
    with pytest.raises(ValueError, match=r"inner\.width.*inner\.share.*widths"):
        Outer.from_yaml(path)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    text = "inner: {width: 1_000, share: 1e-3, word: 'no', is_on: yes}\nwidths: [0, 0x10, -7]\nanything: [true, ~, 1.5]"
    outer = Outer.from_yaml(write(tmp_path / "outer.yaml", text))
    assert outer.inner == Inner(width=1000, share=0.001, word="no", is_on=True)
    assert outer.widths == (0, 16, -7)
    assert outer.anything == [True, None, 1.5]


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\nb: 2\na: 3", "key 'a' is given twice.*line 3"),
    ("a: {b: 1, b: 1}", "key 'b' is given twice"),
    ("a: 010", "010 would not be read as written"),
    ("a: -017", "-017 would not be read as written"),
    ("a: 0_7", "0_7 would not be read as written"),
    ("a: 12:30", "12:30 would not be read as written"),
    ('a: "\\ud800"', "half of a surrogate pair"),
    ('"\\udfff": 1', "half of a surrogate pair"),
    ("{[1]: 2}", "a key must be a single word"),
    ("? {a: b}\n: c", "a key must be a single word"),
    ("a: 2022-13-45", "not valid YAML"),
    ("a: 2022-05-06 10:00:00 +99:99", "not valid YAML"),
    ("a: !!timestamp x", "not valid YAML"),
    ("a: !!bool x", "not valid YAML"),
    ("a: !!int x", "not valid YAML"),
    ("a: !!int ''", "not valid YAML"),
    ("a: !!float x", "not valid YAML"),
    ("a: !!set [1]", "not valid YAML"),
    ("!!map [1]", "not valid YAML"),
    ("a: !!binary x", "not valid YAML"),
    ("a: 0b_", "not valid YAML"),
    ("a: " + "1" * 5000, "not valid YAML"),
    ("[a", "not valid YAML.*line 1"),
    ("a: *y", "undefined alias"),
    ("<<: 3", "not valid YAML"),
    ("a: !!python/object/apply:os.system [date]", "could not determine a constructor"),
    ("a: !mine 3", "could not determine a constructor"),
    ("\x00", "not valid YAML"),
    ("--- 1\n--- 2", "not valid YAML"),
    ("[" * 3000, "nested too deeply"),
])  # fmt: skip
def test_faults_of_yaml_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "some.yaml", text)
    with pytest.raises(ValueError, match=message) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_merge_keys_still_work(tmp_path: Path) -> None:
    path = write(tmp_path / "some.yaml", "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}")
    assert read_yaml(path) == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}}


def _bomb(entry: str) -> str:
    """A text of some hundred characters that would expand to 10 ** 9 entries."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} " + entry.format(", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [
    _bomb("{{<<: [{}]}}"),
    _bomb("[{}]"),
    "a: &a [*a]",
    "a: &a {<<: *a}",
    "- &a0 []\n" + "\n".join(f"- &a{n} [*a{n - 1}]" for n in range(1, 500)),
], ids=["merge keys", "lists", "within itself", "merged into itself", "chain"])  # fmt: skip
def test_aliases_that_expand_without_bound_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"aliases and merge keys expand it|an alias refers to"):
        read_yaml(write(tmp_path / "bomb.yaml", text))


def test_nesting_is_bounded_and_long_lists_are_not(tmp_path: Path) -> None:
    deep = "[" * 99 + "]" * 99
    assert str(read_yaml(write(tmp_path / "deep.yaml", deep))) == deep
    with pytest.raises(ValueError, match="nested too deeply to be a configuration, over 100 levels"):
        read_yaml(write(tmp_path / "deeper.yaml", f"[[{deep}]]"))
    many = list(range(10_000))
    assert read_yaml(write(tmp_path / "long.yaml", f"a: &a {many}\nb: [*a, *a]")) == {"a": many, "b": [many, many]}


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="at most 67108864 are read"):
        read_yaml(tmp_path / "huge.yaml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: ä".encode("latin-1"))
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ValueError, match="cannot be read") as raised:
            read_yaml(path)
        assert str(raised.value).startswith(f"{path}: ")


YAML_PIECES = ["a", "inner", ":", " ", "\n", "-", "[", "]", "{", "}", ",", "!!int", "!!set", "&x", "*x", "<<", "'", '"']
YAML_PIECES += ["#", "|", ">", "0", "1e5", "010", "2022-01-99", "~", "yes", "\\ud800", "\t", "%", "@", "?", ".inf", "ä"]


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(st.sampled_from(YAML_PIECES), max_size=20))
def test_no_text_gives_anything_but_a_value_error(tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.yaml", "".join(pieces))
    try:
        Outer.from_yaml(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 - that nothing is raised is fine too
