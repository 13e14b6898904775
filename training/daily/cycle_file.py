"""The file of a daily cycle, daily.yaml: which model is trained on what, how days and versions are judged.

In: a YAML file, and the training and join files that it names. Out: a validated `Cycle`. Every fault is a ValueError
that names the file, the key and the rule. Paths are relative to the folder that the command is run in.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from model.join_file import JoinFile
from model.rollout.labels import CANARY
from model.strict_yaml import StrictModel
from training.config import OutputPath, PositiveFinite, TrainingConfig
from training.judge.settings import DataGate, JudgeSettings, QualityGate, Ratio
from training.split_config import MovingWindows
from training.tasks.probability_maps import CalibrationKind

NONE = "none"

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
_PUBLISHED_SHARE = 0.1


def _nothing(value: object) -> object:
    # YAML reads `none` as a text and `null` as nothing. Both say the same here.
    return None if value == NONE else value


class Start(StrictModel):
    """Origin of a day's weights. `warm`: from the version that serves, on the days after its own alone. `cold`:
    fresh weights on the whole window, weekly by default and for the first version always. A warm start multiplies the
    learning rates by `rate_factor`."""

    warm: Literal["daily", "never"] = "daily"
    cold: Literal["daily", "weekly", "never"] = "weekly"
    rate_factor: PositiveFinite = 0.25

    @model_validator(mode="after")
    def _some_start(self) -> Self:
        if self.warm == self.cold == "never":
            raise ValueError("warm and cold are both never: no version would ever be trained")
        return self


class Publish(StrictModel):
    """Label of a version that has passed its gates. `share` is the canary's, of all users."""

    label: Annotated[Literal["canary", "shadow", "stable"] | None, BeforeValidator(_nothing)] = "canary"
    share: Annotated[float, Field(gt=0, le=0.5)] | None = None

    @model_validator(mode="after")
    def _share_of_canary(self) -> Self:
        if self.share is not None and self.label != CANARY:
            raise ValueError(f"share: is a canary's, and the label is {self.label or NONE}; leave it out")
        return self

    @property
    def canary_share(self) -> float:
        """Share of the users that a canary answers."""
        return _PUBLISHED_SHARE if self.share is None else self.share


class Recalibrate(StrictModel):
    """Rules of a recalibration of what serves, on the last `days` accepted days. It is made where the sum of an
    output's answers on the newest day is surely over `beyond` times that of its labels, or so far under it."""

    days: Annotated[int, Field(ge=1)] = 3
    beyond: Ratio = 1.05


class CycleFile(StrictModel):
    """Keys of the file. `calibrate` is how a version's probabilities are fitted before it is gated."""

    models: OutputPath
    model: ModelName
    train: Path
    join: Path | None = None
    start: Start = Start()
    data_gate: DataGate = DataGate()
    quality_gate: QualityGate = QualityGate()
    calibrate: Annotated[CalibrationKind | None, BeforeValidator(_nothing)] = "platt"
    recalibrate: Recalibrate | None = None
    catalogue: Path | None = None
    sign_key: Path | None = None
    publish: Publish = Publish()
    judge: JudgeSettings | None = None

    @model_validator(mode="after")
    def _check_canary(self) -> Self:
        if self.publish.label == CANARY and self.join is None:
            raise ValueError(
                "publish.label: a canary is judged by what users did, which `join` brings; name a join file, or "
                "publish as shadow, stable or none"
            )
        if self.publish.label == CANARY and self.judge is None:
            raise ValueError("judge: is missing; a canary needs its rules, as judge: {horizon: 24h, at_most: 7d}")
        return self


@dataclass(frozen=True)
class Cycle:
    """A cycle's file with the files that it names, read and checked against each other."""

    path: Path
    file: CycleFile
    training: TrainingConfig
    windows: MovingWindows
    join: JoinFile | None

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.file.models / self.file.model

    @classmethod
    def load(cls, path: Path) -> "Cycle":
        """Read a cycle's file. Raises ValueError naming the file and the key."""
        file = CycleFile.from_yaml(path)
        training = TrainingConfig.load(file.train)
        windows = training.data.split
        if not isinstance(windows, MovingWindows):
            raise ValueError(
                f"{file.train}: data.split: names fixed days, and a cycle trains on days that move; write "
                "{column: date, end: latest, train: {days: 14}, validation: {days: 1}}"
            )
        if windows.end != "latest" or windows.exclude:
            key = "exclude" if windows.exclude else "end"
            raise ValueError(f"{file.train}: data.split.{key}: is the cycle's to choose; leave it out")
        if windows.test.days or windows.validation.days != 1:
            raise ValueError(
                f"{file.train}: data.split: a cycle validates on one day, the newest, and tests on half of its users; "
                "write validation: {days: 1} and no test"
            )
        if training.data.group_by is None:
            raise ValueError(f"{file.train}: data.group_by: is missing; gates count users, so name their column")
        if training.init_from is not None:
            raise ValueError(f"{file.train}: init_from: is the cycle's to choose (start); leave it out")
        _check_realised(path, file, training)
        if file.recalibrate is not None and file.recalibrate.days > windows.train.days:
            raise ValueError(
                f"{path}: recalibrate.days: {file.recalibrate.days}, and {file.train} trains on {windows.train.days}; "
                "days before these are not gated, so write as many at most"
            )
        join = None if file.join is None else JoinFile.from_yaml(file.join)
        if join is not None and str(training.data.path).rstrip("/") != join.out.rstrip("/"):
            raise ValueError(
                f"{file.train}: data.path: is {training.data.path}, and {file.join} writes its rows to {join.out}; "
                "name that folder"
            )
        if join is not None and join.model not in (None, file.model):
            raise ValueError(
                f"{file.join}: model: joins the impressions of {join.model}, and {path} is of {file.model}"
            )
        return cls(path, file, training, windows, join)


def _check_realised(path: Path, file: CycleFile, training: TrainingConfig) -> None:
    """Raise ValueError where a weight is of no output. Else a canary would be published that is never judged."""
    realised = None if file.judge is None else file.judge.realised
    outputs = training.feed_schema().outputs
    unknown = [name for name in realised or {} if name not in outputs]
    if unknown:
        raise ValueError(
            f"{path}: judge.realised: '{unknown[0]}' is no output of {training.feed}; there are: {', '.join(outputs)}"
        )
