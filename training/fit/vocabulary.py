"""Fits a feed's features beforehand, and reports what becomes of its ids.

    python -m training vocabulary CONFIG [--out FILE] [--processes N]

In: a training file. Out: FILE (default: fitted_features.json in the folder <output>-fitted), which training files then
name as `fitted`, and the report beside it, FILE with -report.json and -report.md for its ending. Killed at any moment
and started again, it goes on where it was (fitting.py). FILE is replaced in one step.
"""

import logging
import os
import shutil
from pathlib import Path

import xxhash
from rich.progress import TextColumn

from model.features.fitted import FittedFeatures, FittingPass
from model.schema import FeedSchema
from training.config import SplitName, TrainingConfig
from training.data.index import INDEX, index_of
from training.data.moving.windows import with_windows
from training.data.reader import LogReader
from training.files import LEFT_BY_ANY, is_json_with, refuse_foreign
from training.fit.fitted_file import parts_of, read_fitted, write_fitted
from training.fit.fitting import fit_log
from training.fit.id_report import PAGE_TITLE, as_markdown, table_reports, warn_of_unknown
from training.progress_bar import progress_bar
from training.run.run import CONFIG, FITTED, locked, write_json, write_text

log = logging.getLogger(__name__)


def build_vocabulary(config: TrainingConfig, out: Path | None = None, *, processes: int = 1, show: bool = True) -> Path:
    """Fits and reports, and returns the file. Raises ValueError for what the user can fix."""
    if processes < 1:
        raise ValueError(f"--processes {processes}: must be at least 1")
    config = with_windows(config)
    schema = config.feed_schema()
    out = out or config.output.with_name(f"{config.output.name}-fitted") / FITTED
    if (out.parent / CONFIG).exists():
        raise ValueError(f"{out.parent}: is the folder of a run; name a file somewhere else (--out)")
    work = out.with_name(f".{out.stem}-work")
    report_file, page = (out.with_name(f"{out.stem}-report.{ending}") for ending in ("json", "md"))
    _refuse_foreign(out, report_file, page, work)
    with locked(work):
        reader = LogReader(config.data, schema)
        index_of(reader, work / INDEX).found(reader.files, config.data.group_by).log_counts()
        passes: dict[SplitName, FittingPass] = {
            split: fit_split(config, schema, split, work, processes, show=show) for split in ("train", "validation")
        }
        train, validation = passes["train"], passes["validation"]
        fitted = train.finish()
        reports = table_reports(schema, fitted, train.counts, validation.counts)
        write_fitted(out, schema, fitted)
        write_json(
            report_file,
            {
                "rows": {split: fitting.rows for split, fitting in passes.items()},
                "split": config.data.bounds.model_dump(mode="json"),
                "rank_errors": train.rank_errors,
                "tables": [report.model_dump(mode="json") for report in reports],
            },
        )
        write_text(page, as_markdown(reports, train.rows, validation.rows))
        shutil.rmtree(work)
    warn_of_unknown(reports)
    for report in reports:
        if report.undercount:
            log.warning("table %s: counts are too low by %d at most; see the report", report.name, report.undercount)
    return out


def _refuse_foreign(out: Path, report: Path, page: Path, work: Path) -> None:
    """Raise ValueError where one of the files to be written is there and was not written here."""
    own = {
        out: is_json_with(out, "made_for", "fitted"),
        report: is_json_with(report, "rank_errors", "tables"),
        page: page.is_file() and page.read_bytes().startswith(PAGE_TITLE.encode()),
    }
    for path, is_own in own.items():
        if os.path.lexists(path) and not is_own:
            raise ValueError(f"{path}: is there and was not written by this command; name another file (--out)")
    refuse_foreign(work, "work folder", is_own=lambda: False, left=(*LEFT_BY_ANY, INDEX, "*.npz"))


def fitted_of_file(config: TrainingConfig, schema: FeedSchema, content: str, *, show: bool) -> FittedFeatures:
    """Features fitted by the training file's vocabulary, or on its training split. They are fitted once for a log of
    this `content` (a hash of its index) and kept in the output folder."""
    if config.fitted is not None:
        return read_fitted(config.fitted, schema)
    asked = f"{content} {parts_of(schema)}"
    kept = config.output / f"fitted-{xxhash.xxh3_64_hexdigest(asked.encode())}.json"
    if not kept.exists():
        work = config.output / "fitting"
        write_fitted(kept, schema, fit_split(config, schema, "train", work, show=show).finish())
        shutil.rmtree(work)
    return read_fitted(kept, schema)


def fit_split(
    config: TrainingConfig, schema: FeedSchema, split: SplitName, work: Path, processes: int = 1, *, show: bool
) -> FittingPass:
    """A pass over a split (fitting.py) with its progress shown. `work` keeps what was read, and is the caller's to
    remove."""
    with progress_bar(TextColumn("rows"), show=show) as bar:
        task = bar.add_task(f"fitting on {split}", total=None)

        def done(rows: int, of: int) -> None:
            bar.update(task, advance=rows, total=of)
            if show and not bar.console.is_terminal:
                log.info("%s: %d of %d rows", split, bar.tasks[0].completed, of)

        return fit_log(config.data, schema, split, work, processes=processes, done=done)
