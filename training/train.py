"""The main path of training: a training file -> a run folder with the best ranker of the validation objective.

    python -m training train configs/simulated.yaml [--set key=value ...]

Reads the feed schema and the Parquet folder, fits the features on the training split, trains with early stopping on
the validation split, and keeps `last` and `best` checkpoints. Killed at any moment and started again, it resumes from
`last` and ends with the same weights, bit for bit, as a run that was left alone (same thread count).

The validation objective is the weighted mean over tasks of NE (binary) and of the squared error on the standardised
scale (regression): both are 1 for a constant prediction, and lower is better.
"""

import csv
import io
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from model.features import FittedFeatures
from model.fusion.learned_routing import policy_perplexities
from model.ranker import Ranker
from model.schema import BinaryTask, FeedSchema
from training import checkpoint
from training.balancing import Balancing
from training.config import TrainingConfig
from training.data import Rows, columns_from_arrow, fit_features, read_splits
from training.losses import TaskLosses
from training.metrics import normalized_entropy
from training.optimizers import Optimizers
from training.policies import PERPLEXITY
from training.progress import TrainingProgress
from training.routing import PolicyLearner
from training.run import BEST, LAST, LOG, SUMMARY, Run, library_versions, locked, write_json, write_text

log = logging.getLogger(__name__)

NOT_FINITE = (
    "the last good checkpoint is kept. Lower the learning rates, or give wide numbers a transform, and choose another "
    "output"
)


class Diverged(ValueError):
    """Losses or answers that are not finite: the run's settings are at fault, and it would end so again."""


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

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
    schema = FeedSchema.from_yaml(config.feed)
    with locked(config.output):
        tables = read_splits(config.data, schema, ("train", "validation"))
        columns = {split: columns_from_arrow(schema, table) for split, table in tables.items()}
        run = _open_or_create(config, schema, fit_features(schema, tables["train"], columns["train"]))
        rows = {}
        for split, table in tables.items():
            weight = config.data.weight if split == "train" else None
            rows[split] = Rows.encode(schema, run.encoder, table, columns[split], as_served=False, weight=weight)
        _fit(run, rows["train"], rows["validation"], show=show)
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


def _fit(run: Run, train_rows: Rows, validation_rows: Rows, *, show: bool) -> None:
    config = run.config
    torch.manual_seed(config.seed)
    ranker = run.new_ranker()
    steps_per_epoch = -(-len(train_rows) // config.batch_size)
    losses = TaskLosses(run.schema)
    balancing = config.balancing.build(losses, config.seed)
    optimizers = Optimizers(ranker, config.optimizer, steps_per_epoch * config.epochs, balancing)
    policies = PolicyLearner(ranker.network.fusion, run.schema, config.seed)
    data = [train_rows.fingerprint(), validation_rows.fingerprint()]
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

    with TrainingProgress(len(train_rows), config.epochs, show=show) as bar:
        while not _is_finished(progress, config):
            ranker.train()
            order = torch.randperm(len(train_rows), generator=_generator(config.seed, progress.epoch))
            batches = torch.split(order, config.batch_size)
            bar.start_epoch(progress.epoch, progress.step_in_epoch * config.batch_size)
            loss_sums_T = torch.tensor(progress.loss_sums or [0.0] * len(run.schema.tasks), dtype=torch.float64)
            while progress.step_in_epoch < steps_per_epoch:
                batch = train_rows.take(batches[progress.step_in_epoch])
                step = progress.epoch * steps_per_epoch + progress.step_in_epoch
                place = f"epoch {progress.epoch + 1}, step {progress.step_in_epoch + 1}"
                optimizers.start_step(step)
                policies.start_step(progress.epoch, step)
                rows_BD = ranker.embeddings(batch.request, batch.candidate)
                if not rows_BD.requires_grad:  # a feed of numbers alone; methods on gradients still look at the row
                    rows_BD.requires_grad_()
                logits_BT = ranker.network(rows_BD)
                losses_T = losses(logits_BT, batch.targets_BT, batch.observed_BT, batch.weights_B)
                total = balancing.total(losses_T)
                if not torch.isfinite(total):
                    raise Diverged(f"{run.path}: the loss is not finite in {place}; {NOT_FINITE}")
                # Saved before the step: only now is it known that these weights give a finite loss.
                if time.monotonic() - last_saved > config.checkpoint_seconds:
                    progress.loss_sums = loss_sums_T.tolist()
                    save(LAST)
                    last_saved = time.monotonic()
                optimizers.zero_grad()
                try:
                    balancing.backward(losses_T, total, rows_BD, ranker.network, step)
                except FloatingPointError as error:
                    raise Diverged(f"{run.path}: {error} in {place}; {NOT_FINITE}") from None
                optimizers.step()
                balancing.after_step()
                policies.learn(logits_BT, batch.targets_BT, batch.observed_BT)
                loss_sums_T += losses_T.detach()
                progress.step_in_epoch += 1
                bar.advance(len(batch.targets_BT), float(total.detach()))
            _end_epoch(run, ranker, validation_rows, progress, loss_sums_T / steps_per_epoch, save, bar.say)
            last_saved = time.monotonic()
    _write_summary(run, progress, len(train_rows), len(validation_rows))


def _generator(seed: int, epoch: int) -> torch.Generator:
    """The order of an epoch depends on the seed and the epoch alone, so that a resumed epoch has the same."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    )


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


def _end_epoch(
    run: Run,
    ranker: Ranker,
    validation_rows: Rows,
    progress: Progress,
    losses_T: torch.Tensor,
    save: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    names = [task.name for task in run.schema.tasks]
    line: dict[str, float] = {"epoch": progress.epoch + 1}
    line |= {f"train_loss_{name}": loss for name, loss in zip(names, losses_T.tolist(), strict=True)}
    perplexities = policy_perplexities(ranker.network.fusion)
    line |= {f"{PERPLEXITY}{layer}": value for layer, value in perplexities.items()}
    logits_BT = predict(ranker, validation_rows)
    if not np.isfinite(logits_BT).all():
        raise Diverged(f"{run.path}: the answers are not finite after epoch {progress.epoch + 1}; {NOT_FINITE}")
    relative = relative_errors(run.schema, logits_BT, validation_rows)
    line |= {f"validation_{name}": value for name, value in relative.items()}
    objective = validation_objective(run.schema, relative)
    line["validation_objective"] = objective
    is_best = objective < progress.best_objective
    if is_best:
        progress.best_objective, progress.best_epoch = objective, progress.epoch
    progress.epoch += 1
    progress.step_in_epoch = 0
    progress.loss_sums = []
    progress.history.append(line)
    if is_best:
        save(BEST)
    save(LAST)
    _write_log(run, progress)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in relative.items())
    say(f"epoch {progress.epoch}: validation {objective:.4f}{' *' if is_best else ''}  ({shown})")


def predict(ranker: Ranker, rows: Rows, batch_size: int = 8192) -> NDArray[np.float32]:
    """logits_BT of all rows, in order."""
    ranker.eval()
    # Not inference_mode: fbgemm's CPU lookups have no kernel under it.
    with torch.no_grad():
        parts = [ranker(batch.request, batch.candidate) for batch in rows.batches(batch_size)]
    logits_BT: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits_BT


def relative_errors(schema: FeedSchema, logits_BT: NDArray[np.float32], rows: Rows) -> dict[str, float]:
    """Per task NE, or the mean squared error over the labels' variance; tasks without both labels are left out."""
    errors: dict[str, float] = {}
    for position, task in enumerate(schema.tasks):
        observed_B = rows.observed_BT[:, position].numpy() > 0
        targets_B = rows.targets_BT[:, position].numpy()[observed_B].astype(np.float64)
        outputs_B = logits_BT[observed_B, position].astype(np.float64)
        if not len(targets_B) or targets_B.min() == targets_B.max():
            log.warning("task %s has one label only in the validation split: not part of the objective", task.name)
        elif isinstance(task, BinaryTask):
            entropy = normalized_entropy(targets_B, expit(outputs_B))
            assert entropy is not None, "both labels are there"
            errors[task.name] = entropy
        else:
            errors[task.name] = float(np.mean((outputs_B - targets_B) ** 2) / np.var(targets_B))
    return errors


def validation_objective(schema: FeedSchema, errors: dict[str, float]) -> float:
    """The loss-weighted mean of the relative errors. Raises ValueError where no task can be measured."""
    weights = {task.name: task.loss_weight for task in schema.tasks if task.name in errors}
    total = sum(weights.values())
    if not total:
        raise ValueError("no task with a positive loss_weight has both labels in the validation split")
    return sum(weight * errors[name] for name, weight in weights.items()) / total


def _write_log(run: Run, progress: Progress) -> None:
    columns = list(dict.fromkeys(name for line in progress.history for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(progress.history)
    write_text(run.path / LOG, text.getvalue())


def _write_summary(run: Run, progress: Progress, train_rows: int, validation_rows: int) -> None:
    summary = {
        "status": "finished",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch + 1,
        "best_objective": progress.best_objective,
        "rows": {"train": train_rows, "validation": validation_rows},
        "seconds": round(progress.seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "libraries": library_versions(),
    }
    write_json(run.path / SUMMARY, summary)
