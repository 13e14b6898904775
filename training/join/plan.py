"""The plan of a join: join.yaml and the feed schema that it names, checked against each other.

In: the path of a join.yaml. Out: a `Plan`: the columns of the rows, their Arrow types, and how each label is made.
Times are microseconds since 1970, in UTC. Every fault is a ValueError that names the file, the key and the rule.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from model.features.kinds import Feature
from model.features.kinds.columns import Dtype
from model.join_file import JoinFile, Label
from model.schema import FeedSchema
from model.strict_yaml import unknown_key
from model.tasks import Task

SECOND = 1_000_000
HOUR = 3600 * SECOND
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of an event: its time is clipped to so long before its receipt.
OLDEST = timedelta(days=7)

# The join's own columns, beside `_answer_<output>` for each output.
OWN = pa.schema(
    [
        ("_request_id", pa.string()),
        ("_candidate_id", pa.string()),
        ("_time", pa.timestamp("ms", "UTC")),
        ("_position", pa.int64()),
        ("_model_version", pa.string()),
        ("_calibration", pa.string()),
        ("_value_model_version", pa.string()),
        ("_policy_version", pa.string()),
        ("_experiments", pa.string()),
        ("_epochs", pa.string()),
        ("_fell_back", pa.string()),
        ("_propensity", pa.float64()),
        ("_score", pa.float64()),
        ("_user", pa.string()),
        ("_weight", pa.float64()),
    ]
)
ANSWER = "_answer_"


@dataclass(frozen=True)
class Plan:
    """A checked join. `file` is the join.yaml, `schema` the feed's."""

    path: Path
    file: JoinFile
    schema: FeedSchema

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a join.yaml and its schema. Raises ValueError."""
        file = JoinFile.from_yaml(path)
        plan = cls(path, file, FeedSchema.from_yaml(Path(file.schema_file)))
        faults = list(plan._faults())
        if faults:
            raise ValueError(f"{path}: {'; '.join(faults)}")
        return plan

    @property
    def out(self) -> Path:
        """The folder of the rows."""
        return Path(self.file.out)

    @property
    def window(self) -> int:
        """Microseconds after an impression in which its events count."""
        return micros(self.file.window)

    @property
    def skew(self) -> int:
        """Microseconds that a client's clock may be behind."""
        return micros(self.file.skew)

    @property
    def lookback(self) -> int:
        """Microseconds before an event in which its impression is looked for: beyond the window by an hour."""
        return self.window + HOUR

    def closes_at(self, hour: int) -> int:
        """The time at which an hour can be joined: later events of its impressions are late."""
        return hour + HOUR + self.window + self.skew

    @property
    def logged(self) -> tuple[Feature, ...]:
        """The features that a request has, on whatever side."""
        return tuple(feature for feature in self.schema.features if feature.side != "training_only")

    @cached_property
    def dtypes(self) -> dict[str, Dtype]:
        """The dtypes of the ids of each feature that has ids."""
        return {name: table.dtype for table in self.schema.tables for name in table.features}

    def feature_type(self, feature: Feature) -> pa.DataType:
        """The Arrow type of a feature's column."""
        if feature.name not in self.dtypes:
            return pa.float64()
        ids = pa.string() if self.dtypes[feature.name] == "string" else pa.int64()
        return pa.list_(ids) if feature.is_list else ids

    def label_type(self, column: str) -> pa.DataType:
        """The Arrow type of a label's column."""
        label = self.file.labels[column]
        is_class = any(task.label_values is not None for task in self.tasks_of(column))
        return pa.int64() if label.value in (None, "count") or is_class else pa.float64()

    def tasks_of(self, column: str) -> list[Task]:
        """The tasks whose label a column is."""
        return [task for task in self.schema.tasks if task.label == column]

    @cached_property
    def masks(self) -> dict[str, list[str]]:
        """By mask column the labels that it is the mask of."""
        found: dict[str, list[str]] = {}
        for task in self.schema.tasks:
            if task.mask is not None:
                found.setdefault(task.mask, [])
                if task.label not in found[task.mask]:
                    found[task.mask].append(task.label)
        return found

    @cached_property
    def columns(self) -> pa.Schema:
        """The columns of the rows: features, labels, masks, and the join's own."""
        return pa.schema(
            [
                *(pa.field(feature.name, self.feature_type(feature)) for feature in self.schema.features),
                *(pa.field(column, self.label_type(column)) for column in self.file.labels),
                *(pa.field(mask, pa.int8()) for mask in self.masks),
                *OWN,
                *(pa.field(ANSWER + output, pa.float64()) for output in self.schema.outputs),
            ]
        )

    def _faults(self) -> Iterator[str]:
        given = {task.label for task in self.schema.tasks}
        for column in self.file.labels:
            if column not in given:
                yield f"labels: {unknown_key(column, sorted(given), 'label')} of {self.file.schema_file}"
        for task in self.schema.tasks:
            if task.label not in self.file.labels:
                yield f"labels: no entry makes {task.label!r}, the label of task {task.name}"
            else:
                yield from _label_faults(task, self.file.labels[task.label])
        training_only = {feature.name: feature for feature in self.schema.features if feature.side == "training_only"}
        for name in self.file.features:
            if name not in training_only:
                yield f"features: {name!r} is no training_only feature of {self.file.schema_file}"
        for name, feature in training_only.items():
            if name not in self.file.features:
                yield f"features: no entry makes {name!r}, a training_only feature; write {name}: shown.position"
            elif self.feature_type(feature) == pa.string():
                yield f"features: {name!r} has ids of dtype string, and a position is an integer"
        own = [name for name in self.schema.columns() if name in OWN.names or name.startswith(ANSWER)]
        if own:
            yield f"{', '.join(own)}: the join has columns of these names of its own; rename them in the schema"
        if "://" in self.file.out:
            yield "out: is a URL; name a folder of this machine"


def _label_faults(task: Task, label: Label) -> Iterator[str]:
    if label.missing is None and task.mask is None:
        yield f"labels.{task.label}: missing: null needs a mask of task {task.name}, the column that is 0 there"
    if task.label_values is not None:
        values = task.label_values
        if not all(isinstance(value, int) for value in values):
            yield f"labels.{task.label}: the values of events are numbers, and task {task.name} has classes of strings"
        elif label.value not in ("first", "last", "max"):
            yield f"labels.{task.label}: a task of classes takes value: first, last or max"
        elif label.missing is not None and label.missing not in values:
            yield f"labels.{task.label}: missing {label.missing:g} is no class of task {task.name}; write null"


def micros(time: timedelta | datetime) -> int:
    """Microseconds of a duration, or since 1970 of a time with its zone."""
    return (time - _EPOCH if isinstance(time, datetime) else time) // timedelta(microseconds=1)


def time_of(microseconds: int) -> datetime:
    """The time in UTC that is so long after 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def time_given(text: str, option: str) -> datetime:
    """The time that a user gives. Raises ValueError naming the option."""
    time = None
    with suppress(ValueError):
        time = datetime.fromisoformat(text)
    if time is None or time.tzinfo is None:
        raise ValueError(f"{option}: expected a time with its zone, such as 2026-11-29T20:00:00Z, got {text!r}")
    return time


def hours_given(text: str, option: str) -> range:
    """The hours that a user gives, the last included. Raises ValueError naming the option."""
    first, dots, last = text.partition("..")
    try:
        hours = range(hour_named(first), hour_named(last if dots else first) + 1, HOUR)
    except ValueError:
        hours = range(0)
    if not hours:
        raise ValueError(f"{option}: expected hours, such as 20261129T20..20261130T05, got {text!r}")
    return hours


def hour_of(microseconds: int) -> int:
    """The start of the hour of a time."""
    return microseconds // HOUR * HOUR


def hour_name(hour: int) -> str:
    """The name of an hour: 20261129T20."""
    return time_of(hour).strftime("%Y%m%dT%H")


def hour_named(name: str) -> int:
    """The hour of a name. Raises ValueError."""
    return micros(datetime.strptime(name, "%Y%m%dT%H").replace(tzinfo=UTC))
