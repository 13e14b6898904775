"""The main path of training: a training file -> a run folder with the best ranker of the validation objective.

    python -m training train configs/simulated.yaml [--set key=value ...]
    torchrun --nproc-per-node 2 -m training train configs/simulated.yaml

Reads the feed schema and the Parquet folder (input/splits.py: into memory, or as a stream), fits the features on the
training split, trains with early stopping on the validation split, and keeps the newest checkpoints and the best.
SIGTERM to any of its processes ends a run once this step is saved. Killed at any moment and started again, it resumes
from the newest undamaged one and ends with the same weights, bit for bit, as a run that was left alone (same number
of processes and threads). `batch_size` rows are a step's whole batch, which several processes share out; what they
reckon is what one would, but for rounding.

ranks.py joins the processes, sharding.py spreads the tables over them, lookup.py has each step's rows ready,
validation.py answers the validation split,
history.py says what is logged, checkpoints.py what is saved, divergence.py why a run stopped.
"""

import logging
import resource
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.config import TrainingConfig
from training.data.rows import Rows
from training.data.source import Source
from training.distributed.ranks import Ranks, joined, refuse_across
from training.evaluate.validation import Validation, points_of_epoch
from training.fit.negative_sampling import logit_offsets
from training.fit.splits import open_splits
from training.run import checkpoints, state_file, stopping, table_files
from training.run.checkpoints import Checkpoints
from training.run.data_record import write_record
from training.run.history import OBJECTIVE, VALIDATION, write_log
from training.run.progress import TrainingProgress
from training.run.resumption import another_run, go_on_as
from training.run.run import (
    MOMENTA,
    OLD_LAST,
    SLOTS,
    SUMMARY,
    WEIGHTS,
    Run,
    library_versions,
    locked,
    refuse_no_run,
    write_json,
)
from training.start.foreign_weights import load_initial_weights
from training.start.lineage import against_parent, start_from
from training.start.parent import Parent, open_parent
from training.step.balancing.losses import TaskLosses
from training.step.divergence import diverged
from training.step.lookup import new_lookup
from training.step.optimizers import Optimizers
from training.step.precision import autocast, set_products
from training.step.routing import PolicyLearner
from training.step.slots import ManagedIds
from training.wording import counted

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
    set_products(config.precision)
    schema = config.feed_schema()
    with joined(config.device) as ranks, ExitStack() as held:
        ranks.first_does(lambda: refuse_no_run(config))
        ranks.first_does(lambda: held.enter_context(locked(config.output)))
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
    if (fresh.path / OLD_LAST).exists():
        raise ValueError(
            f"{fresh.path / OLD_LAST}: a checkpoint of an earlier version, which this one does not resume; evaluate "
            "and export still read that run. Choose another output (--set output=...)"
        )
    if not checkpoints.any_found(fresh.path):
        fresh.write()
        write_record(fresh)
        return
    go_on_as(fresh)


class Training:
    """All that a step changes, and how it is saved and restored."""

    def __init__(self, run: Run, source: Source, ranks: Ranks) -> None:
        config = run.config
        torch.manual_seed(config.seed)
        self.ranker = run.new_ranker(ranks)
        if config.initial_weights is not None and not checkpoints.any_found(run.path):
            load_initial_weights(self.ranker, [task.name for task in run.schema.tasks], config.initial_weights)
        offsets = logit_offsets(run.schema, config.data.negative_sampling)
        self.losses = TaskLosses(run.schema, ranks.across, offsets).to(ranks.device)
        self.balancing = config.balancing.build(self.losses, config.seed).to(ranks.device)
        self.optimizers = Optimizers(
            self.ranker,
            config.optimizer,
            source.steps * config.epochs,
            self.balancing,
            rate_factor=1.0 if config.init_from is None else config.init_from.rate_factor,
        )
        self.managed_ids = ManagedIds(self.ranker.embeddings, config.embeddings.slots, ranks)
        self.policies = PolicyLearner(self.ranker.network.fusion, run.schema, config.seed)
        self.progress = Progress()

    def state(self) -> dict[str, Any]:
        """What every process has a copy of."""
        return {
            "network": self.ranker.network.state_dict(),
            "balancing": self.balancing.state_dict(),
            "policies": self.policies.state(),
            "optimizers": self.optimizers.state(),
            SLOTS: self.managed_ids.state(),
            "random": torch.get_rng_state(),
            "progress": asdict(self.progress),
        }

    def tables(self) -> dict[str, Any]:
        """Tables and their optimizers' states, sharded ones in part."""
        weights, momenta = self.ranker.embeddings.table_weights(), self.optimizers.momenta()
        return {f"{WEIGHTS}{name}": weight for name, weight in weights.items()} | {
            f"{MOMENTA}{name}": momentum for name, momentum in momenta.items()
        }

    def restore(self, folder: Path, state: dict[str, Any], ranks: Ranks) -> None:
        """Sets everything as it was when `state` and its folder were written."""
        self.ranker.network.load_state_dict(state["network"])
        table_files.read(folder, self.tables(), ranks.group)
        self.balancing.load_state_dict(state["balancing"])
        self.policies.load_state(state["policies"])
        self.optimizers.load_state(state["optimizers"])
        self.managed_ids.load_state(state.get(SLOTS, {}))
        torch.set_rng_state(state["random"])
        self.progress = Progress(**state["progress"])


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
    ranker, losses, balancing = training.ranker, training.losses, training.balancing
    optimizers, policies = training.optimizers, training.policies
    lookup = new_lookup(ranker.embeddings, config.embeddings, ranks)
    validation = Validation(run, validation_rows, ranks)
    data = [source.fingerprint(), validation_rows.fingerprint()]
    saved = Checkpoints(run.path, ranks, keep=config.checkpoints_kept, about={"schema": run.schema.name})
    if parent is not None and saved.newest() is None:
        start_from(parent, run, ranker, ranks, show=show)
    _resume(run, training, saved, data, ranks)
    progress = training.progress
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()

    def save(*, is_best: bool = False) -> None:
        progress.seconds = time.monotonic() - started
        step = progress.epoch * source.steps + progress.step_in_epoch
        saved.save(step, {**training.state(), "data": data}, training.tables(), is_best=is_best)

    with saved, TrainingProgress(source.rows, config.epochs, show=show and ranks.is_first) as bar:
        while not _is_finished(progress, config):
            ranker.train()
            bar.start_epoch(progress.epoch, progress.step_in_epoch * config.batch_size)
            loss_sums_T = torch.tensor(progress.loss_sums or [0.0] * len(run.schema.tasks), dtype=torch.float64)
            lookup.start(source.batches(progress.epoch, progress.step_in_epoch))
            for position in range(progress.step_in_epoch, source.steps):
                step = progress.epoch * source.steps + position
                place = f"epoch {progress.epoch + 1}, step {position + 1}"
                optimizers.start_step(step)
                policies.start_step(progress.epoch, step)
                batch, rows_BD = lookup.next()
                rows_BD = optimizers.clipped(rows_BD, ranks.across)
                if not rows_BD.requires_grad:  # a feed of numbers alone; methods on gradients still look at the row
                    rows_BD.requires_grad_()
                with autocast(config.precision, ranks.device):
                    logits_BT = ranker.network(rows_BD).float()
                losses_T = losses(logits_BT, batch.targets_BT, batch.observed_BT, batch.weights_B)
                total = balancing.total(losses_T)
                if not torch.isfinite(total):
                    with lookup.paused():
                        raise diverged(run, ranker, batch, "train", f"the loss is not finite in {place}")
                # Saved before the step: only now is it known that these weights give a finite loss.
                is_due = time.monotonic() - last_saved > config.checkpoint_seconds
                is_due, is_ending = ranks.agree(is_due, stopping.is_wanted())
                if is_due or is_ending:
                    progress.loss_sums = loss_sums_T.tolist()
                    save()
                    last_saved = time.monotonic()
                if is_ending:
                    saved.wait()
                    log.info("saved at epoch %d, step %d", progress.epoch + 1, progress.step_in_epoch)
                    raise stopping.ended()
                optimizers.zero_grad()
                try:
                    balancing.backward(losses_T, total, rows_BD, ranker.network, step)
                except FloatingPointError as error:
                    with lookup.paused():
                        raise diverged(run, ranker, batch, "train", f"{error} in {place}") from None
                optimizers.step(ranks.sum_gradients)
                training.managed_ids.after_step(step, batch, optimizers)
                balancing.after_step()
                policies.learn(logits_BT, batch.targets_BT, batch.observed_BT, batch.weights_B)
                loss_sums_T += losses_T.detach().cpu()
                progress.step_in_epoch += 1
                bar.advance(min(config.batch_size, source.rows - position * config.batch_size), float(total.detach()))
                if (point := points.get(progress.step_in_epoch)) is not None:
                    rows = progress.epoch * source.rows + point.rows
                    with lookup.paused():
                        line = validation.measure(
                            ranker, balancing, loss_sums_T / point.steps, progress.epoch + 1, rows
                        )
                    is_epoch_end = position + 1 == source.steps
                    is_best = _take(progress, line, is_epoch_end=is_epoch_end)
                    save(is_best=is_best)
                    if ranks.is_first:
                        write_log(run.path, progress.history)
                    bar.say(_in_words(run, line, is_best=is_best, is_epoch_end=is_epoch_end))
                    loss_sums_T.zero_()
                    ranker.train()
                    last_saved = time.monotonic()
        saved.wait()
    if ranks.is_first:
        held = training.managed_ids.held()
        _write_summary(run, progress, source.rows, len(validation_rows), left_out, ranks.world, held)


def _resume(run: Run, training: Training, saved: Checkpoints, data: list[str], ranks: Ranks) -> None:
    newest = saved.newest()
    if newest is None:
        return
    state = state_file.load(newest / checkpoints.STATE)
    if state.get("data") != data:
        raise another_run(run.path, {"the data": _changed_rows(state.get("data"), data)})
    try:
        training.restore(newest, state, ranks)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{newest}: does not fit this run ({' '.join(str(error).split())[:200]})") from None
    progress = training.progress
    if _is_finished(progress, run.config):
        stopped = " (early_stopping)" if progress.epoch < run.config.epochs else ""
        epochs = counted(progress.epoch, "epoch")
        log.info("%s: has finished after %s%s; nothing is left to train", run.path, epochs, stopped)
    else:
        log.info("resuming %s at epoch %d, step %d", run.path, progress.epoch + 1, progress.step_in_epoch)


def _changed_rows(before: object, data: list[str]) -> list[str]:
    """Splits whose rows are others than those that a run was trained on."""
    if not isinstance(before, list) or len(before) != len(data):
        return []
    splits = zip(("train", "validation"), before, data, strict=True)
    return [f"rows of split {split} have changed" for split, was, now in splits if was != now]


def _is_finished(progress: Progress, config: TrainingConfig) -> bool:
    if progress.epoch >= config.epochs:
        return True
    without_gain = progress.epoch - 1 - progress.best_epoch
    return config.early_stopping is not None and without_gain >= config.early_stopping.patience


def _take(progress: Progress, line: dict[str, float], *, is_epoch_end: bool) -> bool:
    """Takes a point of validation into the run's progress; whether it is the best so far."""
    is_best = line[OBJECTIVE] < progress.best_objective
    if is_best:
        progress.best_objective, progress.best_epoch = line[OBJECTIVE], progress.epoch
    if is_epoch_end:
        progress.epoch += 1
        progress.step_in_epoch = 0
    progress.loss_sums = []
    progress.history.append(line)
    return is_best


def _in_words(run: Run, line: dict[str, float], *, is_best: bool, is_epoch_end: bool) -> str:
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
