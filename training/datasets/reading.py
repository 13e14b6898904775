"""Read source tables, whole, into Arrow with the requested types.

Input: a Parquet file or comma-separated text. Output: a pyarrow.Table with exactly the requested columns, in that
order. Whatever is wrong with a file is a ValueError that names the file and, where there is one, the column and the
row (rows count from 1 and leave a header line out).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

INTEGER = pa.int64()
TEXT = pa.string()
INTEGER_LIST = pa.list_(pa.int64())


def read_table(
    path: Path, columns: Mapping[str, pa.DataType], nullable: Sequence[str] = (), names: Sequence[str] | None = None
) -> pa.Table:
    """Read `columns` (name -> INTEGER, TEXT or INTEGER_LIST) of a .parquet file or of comma-separated text.

    `nullable` columns may have nulls (an empty field in text). `names` are the columns of text without a header line.
    Raises ValueError for a missing or unreadable file, a missing column, a value that is not of its type, and a null
    where none is allowed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        table = _read_parquet(path, list(columns)) if path.suffix == ".parquet" else _read_text(path, names)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read, is it truncated or of another format? {_one_line(error)}") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is missing; the file has {', '.join(table.column_names)}")
    typed = {}
    for name, data_type in columns.items():
        typed[name] = _typed(path, name, table[name], data_type)
        if path.suffix != ".parquet" and data_type == TEXT and name in nullable:
            typed[name] = pc.if_else(pc.equal(typed[name], ""), pa.scalar(None, TEXT), typed[name])
        if typed[name].null_count and name not in nullable:
            row = int(np.flatnonzero(typed[name].is_null().to_numpy())[0]) + 1
            raise ValueError(f"{path}: column {name!r}, row {row}: the value is missing")
    return pa.table(typed)


def check_flags(path: Path, table: pa.Table, columns: Sequence[str]) -> None:
    """Raise ValueError, naming column and row, unless every value of `columns` is 0 or 1."""
    for name in columns:
        values = table[name].to_numpy()
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if wrong.size:
            raise ValueError(f"{path}: column {name!r}, row {wrong[0] + 1}: {values[wrong[0]]} is not 0 or 1")


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    with pa.parquet.ParquetFile(path) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        if len(present) < len(columns):
            return file.schema_arrow.empty_table()  # its names go into the message about the missing column
        return file.read(columns=present)


def _read_text(path: Path, names: Sequence[str] | None) -> pa.Table:
    """All columns as text: types come later, so that a value of the wrong type can be named with its row."""
    # Without a header Arrow is given the names, with one it gives them: types go by name.
    if names is None:
        with pa.input_stream(path, compression="detect") as stream:
            header = stream.read(1 << 16).split(b"\n", 1)[0].decode("utf-8-sig")
        found = [name.strip().strip('"') for name in header.split(",")]
    else:
        found = list(names)
    return pa.csv.read_csv(
        path,
        # One thread: only then do Arrow's messages count rows.
        read_options=pa.csv.ReadOptions(use_threads=False, column_names=found, skip_rows=0 if names else 1),
        # UCI's files quote nothing and put a blank behind each comma. The KuaiRand files quote lists with commas.
        parse_options=pa.csv.ParseOptions(quote_char=False if names else '"'),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(found, pa.string()), strings_can_be_null=False
        ),
    )


def _typed(path: Path, name: str, column: pa.ChunkedArray, data_type: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(data_type):
        return column
    if pa.types.is_string(column.type) and pa.types.is_integer(data_type):
        return _integers_from_text(path, name, column)
    try:
        return column.cast(data_type)
    except pa.ArrowException as error:
        raise ValueError(
            f"{path}: column {name!r} has type {column.type}, expected {data_type}: {_one_line(error)}"
        ) from error


def _integers_from_text(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    trimmed = pc.utf8_trim_whitespace(column)
    # A column that once had nulls is often written as 3.0: the same integer.
    trimmed = pc.replace_substring_regex(trimmed, r"^(-?[0-9]+)\.0*$", r"\1")
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    try:
        return trimmed.cast(INTEGER)
    except pa.ArrowInvalid as error:
        is_integer = pc.fill_null(pc.match_substring_regex(trimmed, r"^-?[0-9]{1,18}$"), True)
        wrong = np.flatnonzero(~is_integer.to_numpy())
        row = int(wrong[0]) if wrong.size else 0
        raise ValueError(
            f"{path}: column {name!r}, row {row + 1}: {column[row].as_py()!r} is not an integer"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
