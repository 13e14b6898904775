"""Joined rows -> what each user of an experiment did: labels within the horizon, before the start, day by day.

In: joined hours and the exposed users. Out: `Users`. A label counts within the horizon of exposure, whatever arm
answered later. Of a user's requests there the first REQUEST_CAP count, so that no bot is an arm.

Two passes over the hours, one in memory at a time. Kept are sums by user.

Shapes: B rows of an hour, N of them where a label counts, R requests of users, U users, D days since exposure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.schema import FeedSchema
from model.strict_yaml import did_you_mean
from training.columns import floats
from training.data.arrow import labels_of, observed_of
from training.experiment.exposure import Codes, Exposed, exposed_users, milliseconds
from training.experiment.question import Question
from training.judge.joined import REQUEST, TIME, USER, WEIGHT, JoinedHours
from training.tasks import learned
from training.tasks.learned import Floats

REQUEST_CAP = 1000
# Of the days before the start, so many tell what a user is like.
BEFORE = timedelta(days=28)
MOST_DAYS = 7
DAY = timedelta(days=1)
VALUE = "value"


@dataclass(frozen=True, slots=True)
class Users:
    """Mature users, and what they did by metric: `value`, then the outputs.

    `before` has the same of the time before the start, and is None where no hour of it is joined. `was_there_U` are
    users who had rows then. `days` has each day's values since exposure, of users who were seen so long. `exposed`
    counts users of each arm, mature or not. `notes` are what a reader should know besides."""

    arm_U: Codes
    labels: dict[str, Floats]
    before: dict[str, Floats] | None
    was_there_U: NDArray[np.bool_]
    days: list[tuple[Codes, Floats]]
    exposed: dict[str, int]
    fell_back: dict[str, int]
    mixed: int
    capped: int
    left_out: dict[str, int]
    is_over: bool
    notes: tuple[str, ...] = ()

    def of_arm(self, metric: str, place: int) -> Floats:
        """values_U of a metric and an arm."""
        values_U: Floats = self.labels[metric][self.arm_U == place]
        return values_U


def collect_users(folder: Path | str, schema: FeedSchema, question: Question) -> Users:
    """Users of an experiment, as far as hours are joined. Raises ValueError for rows that are none of a
    join's, where no hour is since the start, and where the value is of an output that the schema does not have."""
    for output in question.realised or ():
        if output not in schema.outputs:
            hint = did_you_mean(output, schema.outputs, f"it has: {', '.join(schema.outputs)}")
            raise ValueError(f"{question.name}.realised: '{output}' is no output of the schema '{schema.name}'; {hint}")
    everything = JoinedHours(folder)
    since = max(question.start.replace(minute=0, second=0, microsecond=0), everything.first)
    hours = JoinedHours(folder, since)
    if not len(hours):
        raise ValueError(
            f"{folder}: no hour since {question.start:%Y-%m-%dT%H:%MZ}, when '{question.name}' starts; the last one "
            f"ends at {everything.until:%Y-%m-%dT%H:%MZ}"
        )
    exposed = exposed_users(hours, question)
    horizon = milliseconds(question.horizon)
    is_mature_U = exposed.time_U <= milliseconds(hours.until) - horizon
    is_believed_U = np.ones(len(is_mature_U), bool)
    for first, last in question.left_out:
        is_before_U = exposed.time_U + horizon <= milliseconds(first)
        is_believed_U &= is_before_U | (exposed.time_U >= milliseconds(last))
    counts = _Counts(schema, question, exposed)
    for _, table in hours.tables(counts.names):
        counts.add(table)
    for hour, table in everything.tables(counts.names, since - BEFORE):
        if hour > since:
            break
        counts.add_before(table)
    kept_U = is_mature_U & is_believed_U
    left_out = {
        **exposed.left_out,
        "users whose horizon is not over": int((~is_mature_U).sum()),
        "users of days that are quarantined": int((is_mature_U & ~is_believed_U).sum()),
        "labels that their task may not have": counts.wrong_labels,
    }
    return Users(
        exposed.arm_U[kept_U],
        {name: values_U[kept_U] for name, values_U in counts.labels.items()},
        {name: values_U[kept_U] for name, values_U in counts.before.items()} if counts.has_before else None,
        counts.was_there_U[kept_U],
        counts.of_days(milliseconds(hours.until), is_believed_U),
        exposed.counts(question.arms),
        exposed.fell_back,
        exposed.mixed,
        int((counts.requests_U[kept_U] > REQUEST_CAP).sum()),
        left_out,
        question.end is not None and hours.until >= question.end + question.horizon,
        (*exposed.notes, *counts.notes()),
    )


class _Counts:
    """Sums of labels by user, hour after hour."""

    def __init__(self, schema: FeedSchema, question: Question, exposed: Exposed) -> None:
        self._schema = schema
        self._question = question
        self._exposed = exposed
        self._horizon = milliseconds(question.horizon)
        count = len(exposed.users)
        metrics = [*([] if question.realised is None else [VALUE]), *schema.outputs]
        self.labels = {name: np.zeros(count) for name in metrics}
        self.before = {name: np.zeros(count) for name in metrics}
        self.was_there_U = np.zeros(count, bool)
        self.has_before = False
        self.requests_U = np.zeros(count, np.int64)
        self._days_UD = np.zeros((count, MOST_DAYS))
        self.wrong_labels = 0
        # Of labels that no hour has.
        self._absent = {task.label: task.name for task in schema.tasks}
        labels = [name for task in schema.tasks for name in (task.label, task.mask) if name is not None]
        self.names = list(dict.fromkeys([USER, TIME, REQUEST, WEIGHT, *labels]))

    def add(self, table: pa.Table) -> None:
        """Add the rows of an hour since exposure."""
        table, users_B, times_B = self._known(table)
        labels = self._labels(table)
        since_B = times_B - self._exposed.time_U[users_B]
        is_in_B = (since_B >= 0) & (since_B < self._horizon)
        requests = table.column(REQUEST).filter(pa.array(is_in_B))
        is_in_B[is_in_B] = self._within_cap(requests, users_B[is_in_B], times_B[is_in_B])
        for name, values_B in labels.items():
            self.labels[name] += np.bincount(users_B[is_in_B], values_B[is_in_B], len(self.was_there_U))
        if VALUE in labels:
            day_B = since_B // milliseconds(DAY)
            is_day_B = (since_B >= 0) & (day_B < MOST_DAYS)
            np.add.at(self._days_UD, (users_B[is_day_B], day_B[is_day_B]), labels[VALUE][is_day_B])

    def add_before(self, table: pa.Table) -> None:
        """Add the rows of an hour that are before the start."""
        start = milliseconds(self._question.start)
        table, users_B, times_B = self._known(table)
        is_in_B = times_B < start
        users_N = users_B[is_in_B]
        self.has_before |= bool(len(users_N))
        self.was_there_U[users_N] = True
        for name, values_N in self._labels(table.filter(pa.array(is_in_B))).items():
            self.before[name] += np.bincount(users_N, values_N, len(self.was_there_U))

    def notes(self) -> Iterator[str]:
        """Columns that no hour has."""
        for label, task in self._absent.items():
            yield f"no row has the column '{label}', so that '{task}' is 0 of every user"

    def of_days(self, until: int, is_believed_U: NDArray[np.bool_]) -> list[tuple[Codes, Floats]]:
        """Arms and values of each day since exposure, of users who were seen to its end."""
        found = []
        for day in range(MOST_DAYS if VALUE in self.labels else 0):
            is_seen_U = is_believed_U & (self._exposed.time_U + (day + 1) * milliseconds(DAY) <= until)
            found.append((self._exposed.arm_U[is_seen_U], self._days_UD[is_seen_U, day]))
        return found

    def _known(self, table: pa.Table) -> tuple[pa.Table, Codes, Codes]:
        """Rows of exposed users, and their users and times."""
        codes_B = pc.fill_null(pc.index_in(table.column(USER), value_set=self._exposed.users), -1).to_numpy()
        times_B = pc.fill_null(pc.cast(table.column(TIME), pa.int64()), -1).to_numpy()
        is_known_B = (codes_B >= 0) & (times_B >= 0)
        return table.filter(pa.array(is_known_B)), codes_B[is_known_B].astype(np.int64), times_B[is_known_B]

    def _within_cap(self, requests: pa.ChunkedArray, users_B: Codes, times_B: Codes) -> NDArray[np.bool_]:
        """True for rows of a user's first REQUEST_CAP requests, which are counted."""
        coded = requests.combine_chunks().dictionary_encode()
        request_B = coded.indices.to_numpy().astype(np.int64)
        _, first, of_request_B = np.unique(
            users_B * max(len(coded.dictionary), 1) + request_B, return_index=True, return_inverse=True
        )
        users_R, times_R = users_B[first], times_B[first]
        order = np.lexsort((times_R, users_R))
        starts = np.searchsorted(users_R[order], users_R[order], "left")
        rank_R = np.empty(len(order), np.int64)
        rank_R[order] = np.arange(len(order)) - starts
        is_within_R = self.requests_U[users_R] + rank_R < REQUEST_CAP
        self.requests_U += np.bincount(users_R, minlength=len(self.requests_U))
        found: NDArray[np.bool_] = is_within_R[of_request_B]
        return found

    def _labels(self, table: pa.Table) -> dict[str, Floats]:
        """values_B of each metric: weighted labels, 0 where one is not observed."""
        weights_B = np.nan_to_num(floats(table.column(WEIGHT)), nan=1.0)
        found = {name: np.zeros(table.num_rows) for name in self.labels}
        for task in self._schema.tasks:
            if pa.types.is_null(table.schema.field(task.label).type):
                continue
            self._absent.pop(task.label, None)
            kind = learned(task)
            try:
                labels_B, is_observed_B = labels_of(task, table), observed_of(task, table)
            except ValueError as error:
                raise ValueError(f"the label of '{task.name}', column '{task.label}': {error}") from None
            is_wrong_B = is_observed_B & ~kind.are_labels(labels_B)
            self.wrong_labels += int((is_wrong_B & ~np.isnan(labels_B)).sum())
            is_observed_B &= ~is_wrong_B
            encoded = kind.encoded_labels(labels_B[is_observed_B])
            for output, of_output_N in zip(task.outputs, encoded.values(), strict=True):
                found[output][is_observed_B] = of_output_N * weights_B[is_observed_B]
        for output, weight in (self._question.realised or {}).items():
            found[VALUE] += weight * found[output]
        return found
