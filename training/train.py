"""The main path of training: a training file -> a run folder with the best ranker of the validation objective.

    python -m training train configs/simulated.yaml [--set key=value ...]

Reads the feed schema and the Parquet folder (input/splits.py: into memory, or as a stream), fits the features on the
training split, trains with early stopping on the validation split, and keeps `last` and `best` checkpoints. Killed at
any moment and started again, it resumes from `last` and ends with the same weights, bit for bit, as a run that was left
alone (same thread count).

validation.py answers the validation split, history.py says what is logged, divergence.py why a run stopped.
"""

import logging
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from model.features import FittedFeatures
from model.ranker import Ranker
from model.schema import FeedSchema
from training import checkpoint
from training.balancing import Balancing
from training.config import TrainingConfig
from training.data import Rows
from training.divergence import diverged
from training.history import OBJECTIVE, VALIDATION, write_log
from training.initial_weights import load_initial_weights
from training.input.source import Source
from training.input.splits import open_splits
from training.losses import TaskLosses
from training.optimizers import Optimizers
from training.progress import TrainingProgress
from training.routing import PolicyLearner
from training.run import BEST, LAST, SUMMARY, Run, library_versions, locked, write_json
from training.validation import Validation, points_of_epoch

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint. `loss_sums` are those since the last point of validation."""

    epoch: int = 0
    step_in_epoch: int = 0
    best_objective: float = float("inf")
    best_epoch: int = -1
    seconds: float = 0.0
    loss_sums: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


def train(config: TrainingConfig, *, show: bool = True) -> Run:
    """Trains, or resumes, the run of a training file, and returns it. Raises ValueError for what the user can mend."""
    torch.set_num_threads(config.threads)
    schema = config.feed_schema()
    with locked(config.output):
        splits = open_splits(config, schema, show=show)
        run = _open_or_create(config, schema, splits.fitted())
        splits.report(run)
        source, validation_rows = splits.encoded(run.encoder)
        _fit(run, source, validation_rows, splits.left_out, show=show)
    return run


def _open_or_create(config: TrainingConfig, schema: FeedSchema, fitted: FittedFeatures) -> Run:
    fresh = Run(config.output, config, schema, fitted)
    if not (config.output / LAST).exists():
        fresh.write()
        return fresh
    existing = Run.open(config.output)
    different = [
        name
        for name, old, new in (
            ("the configuration", existing.config, fresh.config),
            ("the schema", existing.schema, fresh.schema),
            ("the data", existing.fitted, fresh.fitted),
        )
        if old != new
    ]
    if different:
        raise _differs(config.output, different)
    return existing


def _differs(output: Path, different: list[str]) -> ValueError:
    return ValueError(
        f"{output}: holds a run from which {' and '.join(different)} differ; "
        "choose another output (--set output=...) or delete the folder"
    )


def _fit(run: Run, source: Source, validation_rows: Rows, left_out: Mapping[str, int], *, show: bool) -> None:
    config = run.config
    torch.manual_seed(config.seed)
    ranker = run.new_ranker()
    if config.initial_weights is not None and not (run.path / LAST).exists():
        load_initial_weights(ranker, [task.name for task in run.schema.tasks], config.initial_weights)
    steps_per_epoch = source.steps
    points = points_of_epoch(config.evaluations_per_epoch, source.rows, config.batch_size)
    losses = TaskLosses(run.schema)
    balancing = config.balancing.build(losses, config.seed)
    optimizers = Optimizers(ranker, config.optimizer, steps_per_epoch * config.epochs, balancing)
    policies = PolicyLearner(ranker.network.fusion, run.schema, config.seed)
    validation = Validation(run, validation_rows)
    data = [source.fingerprint(), validation_rows.fingerprint()]
    progress = _resume(run, ranker, balancing, policies, optimizers, data)
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()

    def save(name: str) -> None:
        progress.seconds = time.monotonic() - started
        state = {
            "ranker": ranker.state_dict(),
            "balancing": balancing.state_dict(),
            "policies": policies.state(),
            "optimizers": optimizers.state(),
            "progress": asdict(progress),
            "data": data,
        }
        checkpoint.save(run.path / name, state)

    with TrainingProgress(source.rows, config.epochs, show=show) as bar:
        while not _is_finished(progress, config):
            ranker.train()
            bar.start_epoch(progress.epoch, progress.step_in_epoch * config.batch_size)
            loss_sums_T = torch.tensor(progress.loss_sums or [0.0] * len(run.schema.tasks), dtype=torch.float64)
            batches = source.batches(progress.epoch, progress.step_in_epoch)
            for position, batch in enumerate(batches, start=progress.step_in_epoch):
                step = progress.epoch * steps_per_epoch + position
                place = f"epoch {progress.epoch + 1}, step {position + 1}"
                optimizers.start_step(step)
                policies.start_step(progress.epoch, step)
                rows_BD = ranker.embeddings(batch.request, batch.candidate)
                if not rows_BD.requires_grad:  # a feed of numbers alone; methods on gradients still look at the row
                    rows_BD.requires_grad_()
                logits_BT = ranker.network(rows_BD)
                losses_T = losses(logits_BT, batch.targets_BT, batch.observed_BT, batch.weights_B)
                total = balancing.total(losses_T)
                if not torch.isfinite(total):
                    what = f"the loss is not finite in {place}"
                    raise diverged(run, ranker, batch, "train", what)
                # Saved before the step: only now is it known that these weights give a finite loss.
                if time.monotonic() - last_saved > config.checkpoint_seconds:
                    progress.loss_sums = loss_sums_T.tolist()
                    save(LAST)
                    last_saved = time.monotonic()
                optimizers.zero_grad()
                try:
                    balancing.backward(losses_T, total, rows_BD, ranker.network, step)
                except FloatingPointError as error:
                    what = f"{error} in {place}"
                    raise diverged(run, ranker, batch, "train", what) from None
                optimizers.step()
                balancing.after_step()
                policies.learn(logits_BT, batch.targets_BT, batch.observed_BT, batch.weights_B)
                loss_sums_T += losses_T.detach()
                progress.step_in_epoch += 1
                bar.advance(len(batch.targets_BT), float(total.detach()))
                if (point := points.get(progress.step_in_epoch)) is not None:
                    rows = progress.epoch * source.rows + point.rows
                    line = validation.measure(ranker, balancing, loss_sums_T / point.steps, progress.epoch + 1, rows)
                    bar.say(_end_point(run, progress, line, save, is_epoch_end=position + 1 == steps_per_epoch))
                    loss_sums_T.zero_()
                    ranker.train()
                    last_saved = time.monotonic()
    _write_summary(run, progress, source.rows, len(validation_rows), left_out)


def _resume(
    run: Run,
    ranker: Ranker,
    balancing: Balancing,
    policies: PolicyLearner,
    optimizers: Optimizers,
    data: list[str],
) -> Progress:
    if not (run.path / LAST).exists():
        return Progress()
    state = checkpoint.load(run.path / LAST)
    if state.get("data") != data:
        raise _differs(run.path, ["the data"])
    ranker.load_state_dict(state["ranker"])
    balancing.load_state_dict(state.get("balancing", {}))  # absent in runs from before there was any
    policies.load_state(state.get("policies", {}))
    optimizers.load_state(state["optimizers"])
    progress = Progress(**state["progress"])
    log.info("resuming %s at epoch %d, step %d", run.path, progress.epoch + 1, progress.step_in_epoch)
    return progress


def _is_finished(progress: Progress, config: TrainingConfig) -> bool:
    if progress.epoch >= config.epochs:
        return True
    without_gain = progress.epoch - 1 - progress.best_epoch
    return config.early_stopping is not None and without_gain >= config.early_stopping.patience


def _end_point(
    run: Run, progress: Progress, line: dict[str, float], save: Callable[[str], None], *, is_epoch_end: bool
) -> str:
    """Takes a point of validation into the run's progress, checkpoints and log; returns it in words."""
    is_best = line[OBJECTIVE] < progress.best_objective
    if is_best:
        progress.best_objective, progress.best_epoch = line[OBJECTIVE], progress.epoch
    if is_epoch_end:
        progress.epoch += 1
        progress.step_in_epoch = 0
    progress.loss_sums = []
    progress.history.append(line)
    if is_best:
        save(BEST)
    save(LAST)
    write_log(run.path, progress.history)
    shown = "  ".join(
        f"{task.name} {line[column]:.4f}" for task in run.schema.tasks if (column := f"{VALIDATION}{task.name}") in line
    )
    place = f"epoch {line['epoch']}" + ("" if is_epoch_end else f", {line['rows']:,} rows")
    return f"{place}: validation {line[OBJECTIVE]:.4f}{' *' if is_best else ''}  ({shown})"


def _write_summary(
    run: Run, progress: Progress, train_rows: int, validation_rows: int, left_out: Mapping[str, int]
) -> None:
    for reason, rows in left_out.items():
        log.warning("%d rows were left out: %s", rows, reason)
    summary = {
        "status": "finished",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch + 1,
        "best_rows": _best_rows(progress, train_rows),
        "best_objective": progress.best_objective,
        "rows": {"train": train_rows, "validation": validation_rows},
        "rows_left_out": dict(left_out),
        "seconds": round(progress.seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "libraries": library_versions(),
    }
    write_json(run.path / SUMMARY, summary)


def _best_rows(progress: Progress, train_rows: int) -> int:
    """Training rows seen at the best point; the log of a run from before there were several has epochs alone."""
    best = min(progress.history, key=lambda line: line[OBJECTIVE])
    return int(best.get("rows", best["epoch"] * train_rows))
