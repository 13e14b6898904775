"""The question of an analysis: an experiment, or the holdout, of experiments.yaml, one epoch of it, and its measures.

In: the file and a name. Out: a `Question`. Raises ValueError, which names the file, for a name that it does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from model.buckets import BUCKETS
from model.experiments.assignment import Experiments, holdout_epoch
from model.experiments.experiments_file import HELD, HOLDOUT, REST
from model.strict_yaml import did_you_mean
from model.untrusted_files import read_bytes
from training.judge.observations import Span


@dataclass(frozen=True, slots=True)
class Question:
    """Arms that are compared. `shares` are the arms' parts of the users, the arm that others are compared with first.

    Users are exposed from `start` until `end`. `realised` has the weights of labels in a user's value, None where the
    holdout has none. Users whose horizon has a part in one of `left_out` take no part."""

    name: str
    epoch: str
    shares: Mapping[str, float]
    start: datetime
    end: datetime | None
    horizon: timedelta
    realised: Mapping[str, float] | None
    left_out: tuple[Span, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Names of the arms, the one that others are compared with first."""
        return list(self.shares)


def read_question(path: Path, name: str, epoch: str | None, left_out: tuple[Span, ...] = ()) -> Question:
    """The question of a name. Without `epoch` it is of the one that the file has now."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    experiments = Experiments.from_bytes(content, str(path))
    holdout = experiments.file.holdout
    names = list(experiments.arms)
    if name not in names:
        hint = did_you_mean(name, names, f"there are: {', '.join(names) or 'none'}")
        raise ValueError(f"--name {name}: {path} has no such experiment; {hint}")
    if name == HOLDOUT:
        assert holdout is not None
        held = (holdout.buckets.to - holdout.buckets.from_) / BUCKETS
        own = holdout_epoch(holdout, experiments.file.layers[holdout.layer])
        shares = {HELD: held, REST: 1 - held}
        return Question(name, epoch or own, shares, holdout.since, None, holdout.horizon, holdout.realised, left_out)
    dealt = experiments[name]
    experiment = dealt.experiment
    arms = [experiment.control, *(arm for arm in experiment.arms if arm != experiment.control)]
    return Question(
        name,
        epoch or dealt.epoch,
        {arm: dealt.shares[arm] for arm in arms},
        experiment.start,
        experiment.end,
        experiment.horizon,
        experiment.realised,
        left_out,
    )
