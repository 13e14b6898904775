"""Tables in files: what is written, that scoring reads it where it is mapped, and that nothing copies it."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from model.artifact.table_files import StackedTables, as_table
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact


def tables() -> dict[str, torch.Tensor]:
    shapes = {"a": (4, 3), "b": (2, 5), "c": (6, 3)}
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}


def test_tables_of_a_width_are_one_file_of_their_rows(tmp_path: Path) -> None:
    written = tables()
    # A table that is no block of memory of its own is written as the rows that it has.
    written["c"] = written["c"].repeat(1, 2)[:, :3]
    stacked = StackedTables.written(written, tmp_path)
    assert stacked.starts == {"a": 0, "b": 0, "c": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table_3.f32", "table_5.f32"]
    expected = np.concatenate([written["a"].numpy(), written["c"].numpy()]).astype("<f4").tobytes()
    assert (tmp_path / "table_3.f32").read_bytes() == expected
    copied = StackedTables.of(written)
    assert copied.starts == stacked.starts
    for width, stacked_RW in copied.stacked_RW.items():
        assert torch.equal(stacked.stacked_RW[width], stacked_RW)


def test_a_mapping_of_another_size_is_no_table(tmp_path: Path) -> None:
    StackedTables.written(tables(), tmp_path)
    with (tmp_path / "table_5.f32").open("rb") as file, pytest.raises(ValueError, match="40 bytes are no rows of 3"):
        as_table(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 3)


def test_a_scorer_reads_tables_where_they_are_mapped(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path)
    scorer = Scorer.load(version)
    scorer.score_values(TINY_REQUEST["user"], TINY_REQUEST["candidates"]["features"], 4)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    assert scorer.inputs.stacked_RW.keys() == {4, 8}
    for width, stacked_RW in scorer.inputs.stacked_RW.items():
        file = str(version / f"table_{width}.f32")
        [permissions] = [
            fields[1]
            for fields in maps
            if fields[-1] == file
            and int(fields[0].partition("-")[0], 16) <= stacked_RW.data_ptr() < int(fields[0].partition("-")[2], 16)
        ]
        # Read-only, and shared with every other process that maps it.
        assert permissions == "r--s"
