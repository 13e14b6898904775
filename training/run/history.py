"""A run's log.csv: one line per point of training at which the validation split was answered.

epoch                      the epoch, from 1, that the point ends or lies in
rows                       training rows seen until then, over all epochs
train_loss_<task>          mean over the steps since the point before
policy_perplexity_layer_N  learned routing: mean over tasks, 1 (decided) to the number of modules (even)
gate_entropy_level_N       networks with gates: in nats, mean over rows and fused units
experts_used_level_N       exp(entropy of the gate weights' mean over rows and fused units): 1 to the level's experts
balancing_weight_<task>    the factor of the task's loss that gradnorm or uncertainty has learned
validation_<task>          NE (binary) or squared error over the labels' variance (regression)
validation_objective       their mean by loss weight
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.untrusted_files import open_regular
from training.run.run import LOG, Run, write_text

TRAIN_LOSS = "train_loss_"
PERPLEXITY = "policy_perplexity_layer_"
GATE_ENTROPY = "gate_entropy_level_"
EXPERTS_USED = "experts_used_level_"
BALANCING_WEIGHT = "balancing_weight_"
VALIDATION = "validation_"
OBJECTIVE = "validation_objective"

Line = Mapping[str, float]


def write_log(path: Path, lines: Sequence[Line]) -> None:
    """Writes the log of the run in folder `path`."""
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
    """The columns of a log that begin with `prefix`, named by what follows; a value that is absent is NaN."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix))
    return {name.removeprefix(prefix): [line.get(name, float("nan")) for line in lines] for name in names}
