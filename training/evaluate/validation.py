"""A point of validation: what the ranker answers on the validation split, and what its inner parts do meanwhile.

In: a ranker in training and the rows. Out: a line of the run's log (history.py). The validation objective is the
weighted mean over tasks of NE (binary) and of the squared error on the standardised scale (regression): both are 1 for
a constant prediction, and lower is better.

Shapes: B rows, T tasks, O outputs.
"""

import itertools
import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.fusion.learned_routing import policy_perplexities
from model.ranker import Ranker
from model.schema import FeedSchema
from training.data.device import on_device
from training.data.rows import Rows
from training.data.source import share, take_share
from training.distributed.ranks import ALONE, Ranks
from training.inspect.gates import gate_use
from training.run.history import (
    BALANCING_WEIGHT,
    EXPERTS_USED,
    GATE_ENTROPY,
    OBJECTIVE,
    PERPLEXITY,
    PLACEBO_PERPLEXITY,
    TRAIN_LOSS,
    VALIDATION,
)
from training.run.run import Run
from training.step.balancing import Balancing
from training.step.divergence import diverged
from training.step.routing import PolicyLearner
from training.tasks import learned

log = logging.getLogger(__name__)

# Rows on which gates are watched: enough for means, and cheap beside a pass over the split.
GATE_ROWS = 4096
SAMPLE_SEED = 0


class Validation:
    """Measures a ranker on the validation split of a run, again and again in the same way."""

    def __init__(self, run: Run, rows: Rows, ranks: Ranks = ALONE) -> None:
        self._run = run
        self._rows = rows
        self._ranks = ranks
        # Drawn, for logs are ordered by time or user.
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SAMPLE_SEED))
        self._sample = on_device(rows.take_batch(order[:GATE_ROWS]), ranks.device)

    def measure(
        self,
        ranker: Ranker,
        balancing: Balancing,
        policies: PolicyLearner,
        train_losses_T: Tensor,
        epoch: int,
        rows_seen: int,
    ) -> dict[str, float]:
        """A line of the log, in `epoch` (from 1). Leaves the ranker in evaluation mode. Raises ValueError where an
        answer is not finite or no task can be measured."""
        run = self._run
        logits_BO = predict(ranker, self._rows, ranks=self._ranks)
        is_finite_B = np.isfinite(logits_BO).all(axis=1)
        if not is_finite_B.all():
            rows_B = torch.from_numpy(np.flatnonzero(~is_finite_B))
            what = f"the answers are not finite after epoch {epoch}, {rows_seen:,} rows"
            raise diverged(
                run, ranker, on_device(self._rows.take_batch(rows_B), self._ranks.device), "validation", what
            )
        relative = relative_errors(run.schema, logits_BO, self._rows)
        line: dict[str, float] = {"epoch": epoch, "rows": rows_seen}
        for task, loss in zip(run.schema.tasks, train_losses_T.tolist(), strict=True):
            line[f"{TRAIN_LOSS}{task.name}"] = loss
        line |= self._inside(ranker, balancing, policies)
        line |= {f"{VALIDATION}{name}": value for name, value in relative.items()}
        line[OBJECTIVE] = validation_objective(run.schema, relative)
        return line

    def _inside(self, ranker: Ranker, balancing: Balancing, policies: PolicyLearner) -> dict[str, float]:
        perplexities = policy_perplexities(ranker.network.fusion)
        line = {f"{PERPLEXITY}{layer}": value for layer, value in perplexities.items()}
        placebos = policies.placebo_perplexities()
        line |= {f"{PLACEBO_PERPLEXITY}{layer}": value for layer, value in placebos.items()}
        for level, (entropy, experts_used) in enumerate(gate_use(ranker, self._sample), start=1):
            line |= {f"{GATE_ENTROPY}{level}": entropy, f"{EXPERTS_USED}{level}": experts_used}
        weights_T = balancing.learned_weights()
        if weights_T is not None:
            names = [f"{BALANCING_WEIGHT}{task.name}" for task in self._run.schema.tasks]
            line |= dict(zip(names, weights_T.tolist(), strict=True))
        return line


@dataclass(frozen=True, slots=True)
class Point:
    """A point of an epoch: training steps since the point before, and rows trained on since the epoch began."""

    steps: int
    rows: int


def points_of_epoch(evaluations: int, rows: int, batch_size: int) -> dict[int, Point]:
    """After which steps of an epoch the validation split is answered: evenly spaced, the last at the epoch's end.

    Raises ValueError where there are fewer steps than evaluations."""
    steps = -(-rows // batch_size)
    if evaluations > steps:
        raise ValueError(
            f"evaluations_per_epoch: {evaluations} is more than the {steps} steps of an epoch; give {steps} at most, "
            "or a smaller batch_size"
        )
    ends = [-(-k * steps // evaluations) for k in range(evaluations + 1)]
    return {end: Point(end - before, min(end * batch_size, rows)) for before, end in itertools.pairwise(ends)}


def predict(ranker: Ranker, rows: Rows, batch_size: int = 8192, ranks: Ranks = ALONE) -> NDArray[np.float32]:
    """logits_BO of all rows, in order. Several processes share the rows, and all get all answers."""
    ranker.eval()
    parts: list[NDArray[np.float32]] = []
    # Not inference_mode: fbgemm's CPU lookups have no kernel under it.
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            rows_B = torch.arange(start, min(start + batch_size, len(rows)))
            batch = on_device(take_share(rows, rows_B, ranks.rank, ranks.world), ranks.device)
            own = share(len(rows_B), ranks.rank, ranks.world)
            logits_BO = ranker(batch.request, batch.candidate)[: own.stop - own.start].float().cpu().numpy()
            parts += ranks.gather(logits_BO)
    return np.concatenate(parts)


def relative_errors(schema: FeedSchema, logits_BO: NDArray[np.float32], rows: Rows) -> dict[str, float]:
    """Per task NE, or the mean squared error over the labels' variance. Tasks without both labels are left out."""
    errors: dict[str, float] = {}
    columns = schema.output_slices
    for position, task in enumerate(schema.tasks):
        kind = learned(task)
        observed_B = rows.observed_BT[:, position].numpy() > 0
        targets_B = rows.targets_BT[:, position].numpy()[observed_B].astype(np.float64)
        if not len(targets_B) or targets_B.min() == targets_B.max():
            log.warning("task %s %s in the validation split: not part of the objective", task.name, kind.one_label)
            continue
        outputs_BO = logits_BO[observed_B, columns[task.name]].astype(np.float64)
        errors[task.name] = kind.relative_error(outputs_BO, targets_B)
    return errors


def validation_objective(schema: FeedSchema, errors: dict[str, float]) -> float:
    """The loss-weighted mean of the relative errors. Raises ValueError where no task can be measured."""
    weights = {task.name: task.loss_weight for task in schema.tasks if task.name in errors}
    total = sum(weights.values())
    if not total:
        raise ValueError("no task with a positive loss_weight has both labels in the validation split")
    return sum(weight * errors[name] for name, weight in weights.items()) / total
