"""Joined rows -> the users of both arms: exposure, realised value within the horizon, and how answers fared.

Exposure is a user's first impression under one of the two versions, since the canary began. The arm is that version's,
and stays: whatever answers the user later, all that the user does within the horizon is the arm's value. Answers are
measured on rows that the arm's own version answered. A user is mature when the horizon has passed within the hours that
are joined.

Two passes over the hours, one in memory at a time. Kept are sums by user, some hundred bytes each.

Shapes: B rows of an hour, N of them where a task counts, U users, O outputs of a task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.schema import FeedSchema
from training.columns import floats
from training.data.arrow import labels_of, observed_of
from training.judge.answers import ANSWER, logged_answers
from training.judge.joined import REQUEST, TIME, USER, VERSION, WEIGHT, JoinedHours
from training.judge.users import ArmUsers, Observed, TaskSums
from training.tasks import learned
from training.tasks.learned import LearnedTask

# Requests of a user within the horizon from which on it is no person.
BOT_REQUESTS = 1000
Codes = NDArray[np.int64]
# From a time to another, which is left out.
Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Question:
    """A canary against stable, since when, and the canary's share of users (None where it changed).

    `realised` has the weights of outputs' labels in a user's value."""

    canary: str
    stable: str
    since: datetime
    share: float | None
    horizon: timedelta
    realised: Mapping[str, float]
    # From exposure to the begin of the horizon: 0 for the judge.
    after: timedelta = timedelta(0)
    # Users whose horizon has a part in one of these take no part.
    left_out: tuple[Span, ...] = ()


class _Exposed(NamedTuple):
    """Users with the time of their exposure (milliseconds), the arm (0: canary, 1: stable), and whether both versions
    answered them."""

    users: pa.Array
    time_U: Codes
    arm_U: Codes
    is_mixed_U: NDArray[np.bool_]

    def of_users(self, is_in_U: NDArray[np.bool_]) -> "_Exposed":
        """Some of the users."""
        users = self.users.filter(pa.array(is_in_U))
        return _Exposed(users, self.time_U[is_in_U], self.arm_U[is_in_U], self.is_mixed_U[is_in_U])


def observe(folder: Path | str, schema: FeedSchema, question: Question) -> Observed:
    """Both arms, as far as hours are joined. Raises ValueError for rows that are none of a join's."""
    unknown = [name for name in question.realised if name not in schema.outputs]
    if unknown:
        raise ValueError(
            f"judge.realised: '{unknown[0]}' is no output of the model; there are: {', '.join(schema.outputs)}"
        )
    hours = JoinedHours(folder, question.since)
    left_out = {"rows without a user": 0, "rows of other versions": 0}
    exposed = _exposed(hours, question, left_out)
    counts = (int((exposed.arm_U == 0).sum()), int((exposed.arm_U == 1).sum()))
    end = _milliseconds(hours.until) - _milliseconds(question.after + question.horizon)
    is_mature_U = exposed.time_U <= end
    left_out["users who are not mature"] = int((~is_mature_U).sum())
    mature = exposed.of_users(is_mature_U)
    is_believed_U = _is_believed(mature.time_U, question)
    left_out["users of days that are quarantined"] = int((~is_believed_U).sum())
    sums = _Sums(schema, question, mature.of_users(is_believed_U))
    for _, table in hours.tables(sums.names):
        sums.add(table)
    is_bot_U = sums.requests_U > BOT_REQUESTS
    left_out[f"users of more than {BOT_REQUESTS:,} requests"] = int(is_bot_U.sum())
    canary, stable = (sums.arm(arm, ~is_bot_U) for arm in (0, 1))
    return Observed(canary, stable, counts, question.share, left_out, mixed=int(exposed.is_mixed_U.sum()))


def _exposed(hours: JoinedHours, question: Question, left_out: dict[str, int]) -> _Exposed:
    versions = pa.array([question.canary, question.stable])
    firsts = [pa.schema([(USER, pa.string()), ("arm", pa.int32()), ("first", pa.int64())]).empty_table()]
    since = _milliseconds(question.since)
    for _, table in hours.tables((USER, TIME, VERSION)):
        arms = pc.index_in(table.column(VERSION), value_set=versions)
        times = pc.cast(table.column(TIME), pa.int64())
        is_in = pc.fill_null(pc.greater_equal(times, since), False)
        is_other, is_nobody = pc.is_null(arms), pc.is_null(table.column(USER))
        left_out["rows of other versions"] += _count(pc.and_(is_in, is_other))
        left_out["rows without a user"] += _count(pc.and_(pc.and_(is_in, is_nobody), pc.invert(is_other)))
        rows = pa.table({USER: table.column(USER), "arm": arms, "first": times})
        rows = rows.filter(pc.and_(is_in, pc.invert(pc.or_(is_other, is_nobody))))
        firsts.append(_firsts(rows))
    found = _firsts(pa.concat_tables(firsts))
    # Sorted by user and time: the first row of a user is its exposure, a second one the other arm's.
    found = found.sort_by([(USER, "ascending"), ("first", "ascending")])
    users = found.column(USER).combine_chunks()
    is_again = np.zeros(len(users), bool)
    is_again[1:] = pc.equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
    is_mixed = np.append(is_again[1:], False)
    is_first = ~is_again
    return _Exposed(
        users.filter(pa.array(is_first)),
        found.column("first").to_numpy()[is_first],
        found.column("arm").to_numpy().astype(np.int64)[is_first],
        is_mixed[is_first],
    )


def _is_believed(time_U: Codes, question: Question) -> NDArray[np.bool_]:
    begin_U = time_U + _milliseconds(question.after)
    end_U = begin_U + _milliseconds(question.horizon)
    is_believed_U = np.ones(len(time_U), bool)
    for first, last in question.left_out:
        is_believed_U &= (end_U <= _milliseconds(first)) | (begin_U >= _milliseconds(last))
    return is_believed_U


def _firsts(rows: pa.Table) -> pa.Table:
    found = rows.group_by([USER, "arm"]).aggregate([("first", "min")])
    return found.select([USER, "arm", "first_min"]).rename_columns([USER, "arm", "first"])


class _Sums:
    """Sums by mature user, hour after hour."""

    def __init__(self, schema: FeedSchema, question: Question, exposed: _Exposed) -> None:
        self._schema = schema
        self._question = question
        self._exposed = exposed
        count = len(exposed.users)
        self.requests_U = np.zeros(count)
        self._labels = {output: np.zeros(count) for output in schema.outputs}
        self._kinds: dict[str, LearnedTask] = {task.name: learned(task) for task in schema.tasks}
        self._tasks = {name: TaskSums.empty(kind, count) for name, kind in self._kinds.items()}
        labels = [name for task in schema.tasks for name in (task.label, task.mask) if name is not None]
        answers = [f"{ANSWER}{output}" for output in schema.outputs]
        self.names = list(dict.fromkeys([USER, TIME, VERSION, REQUEST, WEIGHT, *labels, *answers]))

    def add(self, table: pa.Table) -> None:
        """Add the rows of an hour that are within their user's horizon."""
        codes = pc.fill_null(pc.index_in(table.column(USER), value_set=self._exposed.users), -1).to_numpy()
        times_B = pc.fill_null(pc.cast(table.column(TIME), pa.int64()), -1).to_numpy()
        if not len(self._exposed.users):
            return
        since_B = times_B - self._exposed.time_U[codes] - _milliseconds(self._question.after)
        is_in_B = (codes >= 0) & (since_B >= 0) & (since_B < _milliseconds(self._question.horizon))
        table, users_B = table.filter(pa.array(is_in_B)), codes[is_in_B].astype(np.int64)
        requests = pa.table({"user": users_B, REQUEST: table.column(REQUEST)}).group_by(["user", REQUEST]).aggregate([])
        count = len(self._exposed.users)
        self.requests_U += np.bincount(requests.column("user").to_numpy(), minlength=count)
        weights_B = np.nan_to_num(floats(table.column(WEIGHT)), nan=1.0)
        versions = pa.array([self._question.canary, self._question.stable])
        arms_B = pc.fill_null(pc.index_in(table.column(VERSION), value_set=versions), -1).to_numpy()
        is_own_B = arms_B == self._exposed.arm_U[users_B]
        for task in self._schema.tasks:
            if pa.types.is_null(table.schema.field(task.label).type):
                continue
            kind = self._kinds[task.name]
            is_observed_B = observed_of(task, table) & kind.are_labels(labels_of(task, table))
            labels_N = labels_of(task, table)[is_observed_B]
            for output, of_output_N in zip(task.outputs, kind.encoded_labels(labels_N).values(), strict=True):
                weighted_N = of_output_N * weights_B[is_observed_B]
                self._labels[output] += np.bincount(users_B[is_observed_B], weighted_N, count)
            answers_BO = logged_answers(table, task.outputs)
            is_counted_B = is_observed_B & is_own_B & np.isfinite(answers_BO).all(axis=1)
            labels_N, weights_N = labels_of(task, table)[is_counted_B], weights_B[is_counted_B]
            self._tasks[task.name] += TaskSums.of_rows(
                kind, labels_N, answers_BO[is_counted_B], users_B[is_counted_B], count, weights_N
            )

    def arm(self, arm: int, is_counted_U: NDArray[np.bool_]) -> ArmUsers:
        """Users of one arm."""
        is_in_U = (self._exposed.arm_U == arm) & is_counted_U
        labels = {output: labels_U[is_in_U] for output, labels_U in self._labels.items()}
        values_U = np.zeros(int(is_in_U.sum()))
        for output, weight in self._question.realised.items():
            values_U += weight * labels[output]
        return ArmUsers(values_U, {name: sums.of_users(is_in_U) for name, sums in self._tasks.items()}, labels)


def _milliseconds(when: datetime | timedelta) -> int:
    seconds = when.total_seconds() if isinstance(when, timedelta) else when.timestamp()
    return round(seconds * 1000)


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.fill_null(mask, False)).as_py() or 0)
