"""Turn a public dataset's own files into a folder that `train` reads.

Input: a dataset's name and the folder with its published files (or the same as Parquet). Output: a folder with
impressions-*.parquet (one row per impression: inputs, labels and the column to split by) and prepared.json (what it
was made from: files with checksums, licence, rows by split). The folder appears whole, by a rename, or not at all.
"""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from training.datasets import census, kuairand
from training.datasets.folder import MANIFEST, Prepared
from training.datasets.kuairand import Days
from training.files import replaced_folder
from training.wording import counted

_DATASETS: dict[str, Callable[[Path, Callable[[str], None]], Prepared]] = {
    "kuairand": kuairand.read,
    "census": census.read,
}


def prepare(dataset: str, source: Path, out: Path, days: Days | None = None) -> None:
    """Prepare `dataset` ("kuairand" or "census") from the files in `source` into the folder `out`.

    `days` are those of kuairand's splits. Raises ValueError for an unknown dataset, for source files that are missing
    or wrong (naming file, column and row) and for an `out` with other content, and OSError for a fault of the disk.
    """
    if dataset not in _DATASETS:
        raise ValueError(f"dataset {dataset!r} is not known; known are {', '.join(_DATASETS)}")
    if days is not None and dataset != "kuairand":
        raise ValueError(f"--train-to, --validation-to, --test-to and --day are kuairand's; {dataset} has no days")
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder; --source names the folder with the files of {dataset}")
    console = Console(stderr=True)
    started = time.monotonic()

    def progress(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {step}", highlight=False)

    with replaced_folder(
        out, MANIFEST, own=("impressions-*.parquet",)
    ) as folder:  # refuses `out` before the work, not after it
        prepared = _DATASETS[dataset](source, progress) if days is None else kuairand.read(source, progress, days)
        progress(f"writing {out}")
        prepared.write(folder)
    progress("done")
    if later := prepared.rows_by_split.get(kuairand.LATER):
        progress(f"{counted(later, 'row')} later than the test split, in no split of configs/kuairand.yaml")


__all__ = ["Days", "prepare"]
