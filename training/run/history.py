"""A run's log.csv: one line per point of training at which the validation split was answered.

epoch                      the epoch, from 1, that the point ends or is in
rows                       training rows seen until then, over all epochs
train_loss_<task>          mean over the steps since the point before
policy_perplexity_layer_N  learned routing: mean over tasks, 1 (decided) to the number of modules (even)
placebo_perplexity_layer_N the same of policies that learn from these rewards by chance (policy_optimizer.py)
gate_entropy_level_N       networks with gates: in nats, mean over rows and fused units
experts_used_level_N       exp(entropy of the gate weights' mean over rows and fused units): 1 to the level's experts
balancing_weight_<task>    the factor of the task's loss that gradnorm, uncertainty or famo has learned
validation_<task>          NE (binary) or squared error over the labels' variance (regression)
validation_objective       their mean by loss weight
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.untrusted_files import open_regular
from training.config import TrainingConfig
from training.run.run import LOG, Run, write_text

TRAIN_LOSS = "train_loss_"
PERPLEXITY = "policy_perplexity_layer_"
PLACEBO_PERPLEXITY = "placebo_perplexity_layer_"
GATE_ENTROPY = "gate_entropy_level_"
EXPERTS_USED = "experts_used_level_"
BALANCING_WEIGHT = "balancing_weight_"
VALIDATION = "validation_"
OBJECTIVE = "validation_objective"

Line = Mapping[str, float]


@dataclass
class Progress:
    """Position of a run, saved with every checkpoint. `loss_sums` are those since the last point of validation."""

    epoch: int = 0
    step_in_epoch: int = 0
    best_objective: float = float("inf")
    best_epoch: int = -1
    seconds: float = 0.0
    loss_sums: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    def is_finished(self, config: TrainingConfig) -> bool:
        """All epochs are over, or early stopping has ended the run."""
        if self.epoch >= config.epochs:
            return True
        without_gain = self.epoch - 1 - self.best_epoch
        return config.early_stopping is not None and without_gain >= config.early_stopping.patience

    def add_line(self, line: dict[str, float], *, is_epoch_end: bool) -> bool:
        """Add a point of validation. True for the best so far."""
        is_best = line[OBJECTIVE] < self.best_objective
        if is_best:
            self.best_objective, self.best_epoch = line[OBJECTIVE], self.epoch
        if is_epoch_end:
            self.epoch += 1
            self.step_in_epoch = 0
        self.history.append(line)
        return is_best


def write_log(path: Path, lines: Sequence[Line]) -> None:
    """Write the log of the run in folder `path`."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(lines)
    write_text(path / LOG, text.getvalue())


def read_log(run: Run) -> list[dict[str, float]]:
    """The lines of a run's log, empty cells left out. Raises ValueError naming the file where it is not readable."""
    path = run.path / LOG
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            return [
                {name: float(value) for name, value in line.items() if value not in ("", None)}
                for line in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as the log of a run ({error})") from None


def series(lines: Sequence[Line], prefix: str) -> dict[str, list[float]]:
    """The columns of a log that begin with `prefix`, named by what follows. An absent value is NaN."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix))
    return {name.removeprefix(prefix): [line.get(name, float("nan")) for line in lines] for name in names}
