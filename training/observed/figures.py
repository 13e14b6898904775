"""Joined rows -> figures by day, version and arm: mean answer and label, calibration and NE, with intervals over users.

In: a joined folder and the schema. Out: a `Part` for each day, version and arm. Its intervals are 95 %, on the scale of
the logarithm, by the influence of each user (training/judge/guards.py). A row without a user is one of its request. One
day is in memory at a time, as sums by user.

Shapes: N rows, U users, O outputs of a task.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.schema import FeedSchema
from training.columns import floats
from training.data.arrow import labels_of, observed_of
from training.judge.answers import ANSWER, logged_answers
from training.judge.guards import calibration_influence, error_influence, normalized_error
from training.judge.joined import ARMS, REQUEST, USER, VERSION, WEIGHT, JoinedHours
from training.judge.users import TaskSums
from training.tasks import learned
from training.tasks.learned import Floats, LearnedTask

# Of a normal distribution, 95 % on both sides.
_SURE = 1.96
UNKNOWN = "unknown"


class Interval(NamedTuple):
    """A ratio with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OutputFigures:
    """An output's answers against its labels. Means are in the unit of the label. None where nothing is defined."""

    labels: float
    predicted: float | None
    observed: float | None
    calibration: Interval | None


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """A task's rows (weighted) that count, and users, NE, and its outputs."""

    rows: float
    users: int
    ne: Interval | None
    outputs: dict[str, OutputFigures]


@dataclass(frozen=True, slots=True)
class Part:
    """Answers of one version on one day, in one arm of the experiments (their JSON, or nothing)."""

    day: date
    version: str
    arm: str
    tasks: dict[str, TaskFigures]


@dataclass(frozen=True, slots=True)
class Observed:
    """All parts in the order of days and versions, the first hour of each version, and hours that the days lack."""

    parts: list[Part]
    begins: dict[str, datetime]
    hours: dict[date, int] = field(default_factory=dict)


class _Key(NamedTuple):
    version: str
    arm: str


class _Hour(NamedTuple):
    """Sums of an hour's rows of one version and arm by task, and whose they are."""

    users: pa.Array
    sums: dict[str, TaskSums]


def observe_days(hours: JoinedHours, schema: FeedSchema, days: int) -> Observed:
    """Figures of the last `days` days. Raises ValueError for rows that are none of a join's."""
    kinds = {task.name: learned(task) for task in schema.tasks}
    labels = [name for task in schema.tasks for name in (task.label, task.mask) if name is not None]
    answers = [f"{ANSWER}{output}" for output in schema.outputs]
    names = list(dict.fromkeys([USER, VERSION, REQUEST, WEIGHT, ARMS, *labels, *answers]))
    found = Observed([], {})
    first = hours.until - timedelta(hours=1)
    first = first.replace(hour=0) - timedelta(days=days - 1)
    for day, of_day in groupby(hours.tables(names, first), key=lambda item: item[0].date()):
        held: dict[_Key, list[_Hour]] = {}
        for hour, table in of_day:
            found.hours[day] = found.hours.get(day, 0) + 1
            for key, rows in _by_version(table):
                found.begins.setdefault(key.version, hour)
                held.setdefault(key, []).append(_sums_of(rows, schema, kinds))
        for key, of_key in sorted(held.items()):
            tasks = {name: _figures(_together(of_key, name), kind) for name, kind in kinds.items()}
            found.parts.append(Part(day, key.version, key.arm, tasks))
    return found


def _by_version(table: pa.Table) -> Iterator[tuple[_Key, pa.Table]]:
    versions, arms = (pc.fill_null(table.column(name), absent) for name, absent in ((VERSION, UNKNOWN), (ARMS, "")))
    keys = pa.table({"version": versions, "arm": arms}).group_by(["version", "arm"]).aggregate([]).to_pylist()
    for key in keys:
        is_in = pc.and_(pc.equal(versions, key["version"]), pc.equal(arms, key["arm"]))
        yield _Key(key["version"], key["arm"]), table.filter(is_in)


def _sums_of(table: pa.Table, schema: FeedSchema, kinds: Mapping[str, LearnedTask]) -> _Hour:
    users = pc.coalesce(table.column(USER), pc.binary_join_element_wise("request", table.column(REQUEST), " "))
    coded = pc.fill_null(users, "").combine_chunks().dictionary_encode()
    users_N, count = coded.indices.to_numpy().astype(np.int64), len(coded.dictionary)
    weights_N = np.nan_to_num(floats(table.column(WEIGHT)), nan=1.0)
    sums = {}
    for task in schema.tasks:
        kind = kinds[task.name]
        if pa.types.is_null(table.schema.field(task.label).type):
            sums[task.name] = TaskSums.empty(kind, count)
            continue
        answers_NO, labels_N = logged_answers(table, task.outputs), labels_of(task, table)
        is_counted_N = observed_of(task, table) & kind.are_labels(labels_N) & np.isfinite(answers_NO).all(axis=1)
        sums[task.name] = TaskSums.of_rows(
            kind,
            labels_N[is_counted_N],
            answers_NO[is_counted_N],
            users_N[is_counted_N],
            count,
            weights_N[is_counted_N],
        )
    return _Hour(coded.dictionary, sums)


def _together(hours: Sequence[_Hour], task: str) -> TaskSums:
    """Sums of a task over hours, by user of any of them."""
    coded = pa.concat_arrays([hour.users for hour in hours]).dictionary_encode()
    return TaskSums.regrouped(
        [hour.sums[task] for hour in hours], coded.indices.to_numpy().astype(np.int64), len(coded.dictionary)
    )


def _figures(sums: TaskSums, kind: LearnedTask) -> TaskFigures:
    rows, users = float(sums.rows_U.sum()), int((sums.rows_U > 0).sum())
    ne = normalized_error(sums, kind)
    outputs = {}
    for place, output in enumerate(kind.task.outputs):
        answers, labels = float(sums.answers_UO[:, place].sum()), float(sums.labels_UO[:, place].sum())
        ratio = None
        if answers > 0 and labels > 0:
            ratio = _interval(answers / labels, calibration_influence(sums, place))
        outputs[output] = OutputFigures(
            labels, answers / rows if rows else None, labels / rows if rows else None, ratio
        )
    return TaskFigures(rows, users, None if ne is None else _interval(ne, error_influence(sums, kind)), outputs)


def _interval(value: float, influence_U: Floats) -> Interval:
    margin = math.exp(_SURE * math.sqrt(float(influence_U @ influence_U)))
    return Interval(value, value / margin, value * margin)
