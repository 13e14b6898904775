"""Tables in files: what is written, that scoring reads it where it is mapped, and that nothing copies it."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from model.artifact.artifact import RANKER
from model.artifact.table_files import StackedTables, as_table, set_tables, widths_of, without_tables
from model.export.scoring_module import to_torchscript
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact


class LookUp(torch.nn.Module):
    """Something that reads a table of three columns."""

    def __init__(self, stacked_RW: torch.nn.Parameter) -> None:
        super().__init__()
        self.stacked_RW = stacked_RW

    def forward(self, ids_B: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(ids_B, self.stacked_RW)


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


@pytest.mark.parametrize("is_scripted", [False, True])
def test_a_module_reads_the_tables_that_it_is_given(tmp_path: Path, is_scripted: bool) -> None:
    first, second = (StackedTables.of({"a": torch.full((4, 3), value)}).stacked_RW for value in (1.0, 2.0))
    module: torch.nn.Module = LookUp(first[3])
    module = to_torchscript(module) if is_scripted else module
    ids_B = torch.tensor([0, 3])
    assert widths_of(module) == [3]
    with without_tables(module):
        assert dict(module.named_parameters())["stacked_RW"].shape == (0, 3)
    for stacked_RW, value in ((first, 1.0), (second, 2.0)):
        set_tables(module, stacked_RW)
        for _ in range(3):  # the executor optimises after its first runs
            assert torch.equal(module(ids_B), torch.full((2, 3), value))
        assert dict(module.named_parameters())["stacked_RW"].data_ptr() == stacked_RW[3].data_ptr()


def test_a_scorer_reads_tables_where_they_are_mapped(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path)
    bare = torch.jit.load(version / RANKER)  # type: ignore[no-untyped-call]
    held = [parameter for name, parameter in bare.named_parameters() if name.endswith("stacked_RW")]
    assert held
    assert all(len(parameter) == 0 for parameter in held)
    scorer = Scorer.load(version)
    scorer.score_values(TINY_REQUEST["user"], TINY_REQUEST["candidates"]["features"], 4)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    used = set()
    for name, parameter in scorer.module.named_parameters():
        if not name.endswith("stacked_RW"):
            continue
        file = str(version / f"table_{parameter.shape[1]}.f32")
        [permissions] = [
            fields[1]
            for fields in maps
            if fields[-1] == file
            and int(fields[0].partition("-")[0], 16) <= parameter.data_ptr() < int(fields[0].partition("-")[2], 16)
        ]
        # Read-only, and shared with every other process that maps it.
        assert permissions == "r--s"
        used.add(parameter.shape[1])
    assert used == {4, 8}
