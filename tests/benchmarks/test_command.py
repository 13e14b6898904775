"""`make bench-*` without data, with a folder that lacks them, or cut short: one line, no traceback."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks.command import SOURCES, data_folder, run_benchmark

ROOT = Path(__file__).resolve().parents[2]
MODULES = re.findall(r"-m benchmarks\.(\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
# Those that begin by reading a public data set.
ON_DATA = [
    name
    for name in MODULES
    if re.search(r"data_folder\(|open_feed\(|make bench-input", (ROOT / f"benchmarks/{name}.py").read_text())
]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped configurations and no data, where benchmarks run and the variable is not set."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEEDRANK_DATA", raising=False)
    return tmp_path


def ends_of(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a benchmark, run as a program, ends in."""
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"benchmarks/{module}.py"), run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("module", ON_DATA)
def test_benchmark_without_its_data_ends_in_one_line(
    module: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ends_of(module, monkeypatch, capsys)
    assert re.fullmatch(r"error: FEEDRANK_DATA is not set: it names the folder that holds \w+/", line)
    monkeypatch.setenv("FEEDRANK_DATA", str(elsewhere))
    line = ends_of(module, monkeypatch, capsys)
    assert re.fullmatch(rf"error: FEEDRANK_DATA: {re.escape(str(elsewhere))} holds no folder \w+", line)


def test_benchmarks_on_data_are_those_that_say_so() -> None:
    assert len(ON_DATA) >= 9
    assert {"training_speed", "checkpoint_cost", "input_speed", "census_quality", "score_parity"} <= set(ON_DATA)


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_of_the_makefile_runs_by_the_same_way(module: str) -> None:
    assert (ROOT / f"benchmarks/{module}.py").read_text().endswith('__name__ == "__main__":\n    run_benchmark(main)\n')


@pytest.mark.parametrize("dataset", SOURCES)
def test_folder_that_lacks_a_file_of_the_data_set_is_refused_by_name(
    dataset: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / SOURCES[dataset]).mkdir()
    monkeypatch.setenv("FEEDRANK_DATA", str(elsewhere))
    with pytest.raises(SystemExit, match="2"):
        run_benchmark(lambda: print(data_folder(dataset)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert SOURCES[dataset] in line


def test_comparison_of_an_experiment_without_its_data_ends_in_one_line(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["comparison", "configs/experiments/kuairand_pair.yaml", "--output", "out"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks/comparison.py"), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_interrupted_benchmark_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_benchmark(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; what was finished is kept\n"
