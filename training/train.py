"""The main path of training: a training file -> a run folder with the best ranker of the validation objective.

    python -m training train configs/simulated.yaml [--set key=value ...]
    torchrun --nproc-per-node 2 -m training train configs/simulated.yaml

Reads the feed schema and the Parquet folder (training/fit/splits.py: into memory, or as a stream), of windows of days
those that it has at the start (training/data/moving), fits the features on the training split, trains with early
stopping on the validation split, and keeps the newest checkpoints and the best. SIGTERM to any of its processes ends a
run once this step is saved. Killed at any moment and started again, it resumes from the newest undamaged one and ends
with the same weights, bit for bit, as a run that was left alone (same number of processes and threads). `batch_size`
rows are a step's whole batch, which several processes share. They compute what one would, but for rounding.

training/step/training.py is one step. training/distributed joins the processes and spreads the tables over them,
training/evaluate/validation.py answers the validation split, training/run logs and saves.

Shapes: T tasks.
"""

import logging
import resource
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from training import stopping
from training.config import TrainingConfig
from training.data.rows import Rows
from training.data.source import Source
from training.distributed.ranks import Ranks, joined, refuse_across
from training.evaluate.validation import Validation, points_of_epoch
from training.fit.splits import open_splits
from training.run import checkpoints, state_file
from training.run.checkpoints import Checkpoints
from training.run.data_record import write_record
from training.run.history import OBJECTIVE, VALIDATION, Progress, write_log
from training.run.progress import TrainingProgress
from training.run.resumption import another_run, go_on_as, with_windows_of_run
from training.run.run import (
    SLOTS,
    SUMMARY,
    Run,
    library_versions,
    locked,
    refuse_no_run,
    write_json,
)
from training.start.foreign_weights import load_initial_weights
from training.start.lineage import against_parent, start_from
from training.start.parent import Parent, open_parent
from training.step.precision import set_products
from training.step.training import Training
from training.wording import counted

log = logging.getLogger(__name__)


def train(config: TrainingConfig, *, show: bool = True) -> Run:
    """Train, or resume, the run of a training file, and return it. Raises ValueError for what the user can fix."""
    torch.set_num_threads(config.threads)
    set_products(config.precision)
    schema = config.feed_schema()
    with joined(config.device) as ranks, ExitStack() as held:
        ranks.first_does(lambda: refuse_no_run(config))
        ranks.first_does(lambda: held.enter_context(locked(config.output)))
        unresolved = config
        config = ranks.first_does(lambda: with_windows_of_run(unresolved))
        splits = open_splits(config, schema, ranks.first_does, show=show and ranks.is_first)
        fitted = splits.fitted()
        parent = None if config.init_from is None else open_parent(config.init_from.path)
        if parent is not None:
            fitted = parent.extended(schema, fitted)
        run = Run(config.output, config, schema, fitted)
        ranks.first_does(lambda: _open_or_create(run))
        ranks.first_does(lambda: splits.report(run))
        source, validation_rows = splits.encoded(run.encoder, ranks.rank, ranks.world)
        with stopping.deferred():
            _fit(run, source, validation_rows, splits.found.left_out, ranks, parent, show=show)
    return run


def _open_or_create(fresh: Run) -> None:
    if not checkpoints.any_found(fresh.path):
        fresh.write()
        write_record(fresh)
        return
    go_on_as(fresh)


def _fit(
    run: Run,
    source: Source,
    validation_rows: Rows,
    left_out: Mapping[str, int],
    ranks: Ranks,
    parent: Parent | None,
    *,
    show: bool,
) -> None:
    config = run.config
    refuse_across(config, ranks)
    points = points_of_epoch(config.evaluations_per_epoch, source.rows, config.batch_size)
    training = Training(run, source, ranks)
    data = [source.fingerprint(), validation_rows.fingerprint()]
    saved = Checkpoints(run.path, ranks, keep=config.checkpoints_kept, about={"schema": run.schema.name})
    newest = saved.newest()  # verified, every byte of it: once
    if newest is None:
        _set_initial_weights(training, parent, ranks, show=show)
    else:
        _resume(training, newest, data)
    progress = training.progress
    saving = _Saving(training, saved, data, ranks)
    validation = Validation(run, validation_rows, ranks)

    with saved, TrainingProgress(source.rows, config.epochs, show=show and ranks.is_first) as bar:
        while not progress.is_finished(config):
            training.ranker.train()
            bar.start_epoch(progress.epoch, progress.step_in_epoch * config.batch_size)
            training.lookup.start(source.batches(progress.epoch, progress.step_in_epoch))
            for position in range(progress.step_in_epoch, source.steps):
                losses = training.step(saving.save_if_due)
                bar.advance(min(config.batch_size, source.rows - position * config.batch_size), float(losses.total))
                if (point := points.get(position + 1)) is None:
                    continue
                rows = progress.epoch * source.rows + point.rows
                with training.lookup.paused():
                    means_T = training.take_mean_losses(point.steps)
                    line = validation.measure(
                        training.ranker, training.balancing, training.policies, means_T, progress.epoch + 1, rows
                    )
                is_epoch_end = position + 1 == source.steps
                is_best = progress.add_line(line, is_epoch_end=is_epoch_end)
                saving.save(is_best=is_best)
                if ranks.is_first:
                    write_log(run.path, progress.history)
                bar.print_line(_point_text(run, line, is_best=is_best, is_epoch_end=is_epoch_end))
                training.ranker.train()
        saved.wait()
    if ranks.is_first:
        held = training.managed_ids.slot_counts()
        _write_summary(run, progress, source.rows, len(validation_rows), left_out, ranks.world, held)


def _set_initial_weights(training: Training, parent: Parent | None, ranks: Ranks, *, show: bool) -> None:
    """Weights that a new run does not draw: those of another implementation, or of a parent."""
    run = training.run
    if run.config.initial_weights is not None:
        tasks = [task.name for task in run.schema.tasks]
        load_initial_weights(training.ranker, tasks, run.config.initial_weights)
    if parent is not None:
        start_from(parent, run, training.ranker, ranks, show=show)


def _resume(training: Training, newest: Path, data: list[str]) -> None:
    run = training.run
    state = state_file.load(newest / checkpoints.STATE)
    if state.get("data") != data:
        raise another_run(run.path, {"the data": _changed_rows(state.get("data"), data)})
    try:
        training.restore(newest, state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{newest}: does not fit this run ({' '.join(str(error).split())[:200]})") from None
    progress = training.progress
    if progress.is_finished(run.config):
        stopped = " (early_stopping)" if progress.epoch < run.config.epochs else ""
        epochs = counted(progress.epoch, "epoch")
        log.info("%s: has finished after %s%s; nothing is left to train", run.path, epochs, stopped)
    else:
        log.info("resuming %s at epoch %d, step %d", run.path, progress.epoch + 1, progress.step_in_epoch)


class _Saving:
    """Checkpoints of a run: at every point of validation, every `checkpoint_seconds`, and when a signal ends it."""

    def __init__(self, training: Training, saved: Checkpoints, data: list[str], ranks: Ranks) -> None:
        self._training = training
        self._saved = saved
        self._data = data
        self._ranks = ranks
        self._started = time.monotonic() - training.progress.seconds
        self._last_saved = time.monotonic()

    def save(self, *, is_best: bool = False) -> None:
        """Save what the steps so far have made."""
        training = self._training
        training.progress.seconds = time.monotonic() - self._started
        state = {**training.state_dict(), "data": self._data}
        self._saved.save(training.steps_done, state, training.tables(), is_best=is_best)
        self._last_saved = time.monotonic()

    def save_if_due(self) -> None:
        """Save before a step where it is time, or where a signal ends the run. Raises Terminated then."""
        seconds = self._training.run.config.checkpoint_seconds
        is_due, is_ending = self._ranks.share_flags(time.monotonic() - self._last_saved > seconds, stopping.is_wanted())
        if is_due or is_ending:
            self.save()
        if is_ending:
            self._saved.wait()
            progress = self._training.progress
            log.info("saved at epoch %d, step %d", progress.epoch + 1, progress.step_in_epoch)
            raise stopping.ended()


def _changed_rows(before: object, data: list[str]) -> list[str]:
    """Split whose rows are others than those that a run was trained on."""
    if not isinstance(before, list) or len(before) != len(data):
        return []
    splits = zip(("train", "validation"), before, data, strict=True)
    return [f"rows of split {split} have changed" for split, was, now in splits if was != now]


def _point_text(run: Run, line: dict[str, float], *, is_best: bool, is_epoch_end: bool) -> str:
    shown = "  ".join(
        f"{task.name} {line[column]:.4f}" for task in run.schema.tasks if (column := f"{VALIDATION}{task.name}") in line
    )
    place = f"epoch {line['epoch']}" + ("" if is_epoch_end else f", {line['rows']:,} rows")
    return f"{place}: validation {line[OBJECTIVE]:.4f}{' *' if is_best else ''}  ({shown})"


def _write_summary(
    run: Run,
    progress: Progress,
    train_rows: int,
    validation_rows: int,
    left_out: Mapping[str, int],
    processes: int,
    held: Mapping[str, Mapping[str, int]],
) -> None:
    for reason, rows in left_out.items():
        log.warning("%s left out: %s", counted(rows, "row"), reason)
    summary = {
        "status": "finished",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch + 1,
        "best_rows": int(min(progress.history, key=lambda line: line[OBJECTIVE])["rows"]),
        "best_objective": progress.best_objective,
        "rows": {"train": train_rows, "validation": validation_rows},
        "rows_left_out": dict(left_out),
        "processes": processes,
        "seconds": round(progress.seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "libraries": library_versions(),
        **({SLOTS: held} if held else {}),
        **against_parent(run, progress.history),
    }
    write_json(run.path / SUMMARY, summary)
