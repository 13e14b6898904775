"""Users of a judged period: what each did within the horizon of exposure, arm by arm.

`TaskSums` add up: rows of a user, users of a day, days of a week. NE and calibration of any part are made of them.

Shapes: U users, N rows, O outputs of a task, M moments of its label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from training.tasks.learned import Floats, LearnedTask


@dataclass(frozen=True, slots=True)
class TaskSums:
    """Sums over a task's rows, by user, of weights, losses, answers, labels and moments of labels.

    `squares_UO` are of answers, `label_squares_UO` of labels, `products_UO` of answer and label."""

    rows_U: Floats
    loss_U: Floats
    answers_UO: Floats
    labels_UO: Floats
    squares_UO: Floats
    label_squares_UO: Floats
    products_UO: Floats
    moments_UM: Floats

    @classmethod
    def of_rows(
        cls,
        kind: LearnedTask,
        labels_N: Floats,
        answers_NO: Floats,
        users_N: NDArray[np.int64],
        num_users: int,
        weights_N: Floats | None = None,
    ) -> "TaskSums":
        """Sums of rows whose label counts. `users_N` are numbers below `num_users`, answers in the label's unit."""
        weights_N = np.ones(len(labels_N)) if weights_N is None else weights_N

        def by_user(values_N: Floats) -> Floats:
            return np.bincount(users_N, values_N * weights_N, num_users).astype(np.float64)

        labels_NO = np.stack(list(kind.encoded_labels(labels_N).values()), axis=1)
        products = (answers_NO**2, labels_NO**2, answers_NO * labels_NO)
        columns = (answers_NO, labels_NO, *products, kind.label_moments(labels_N))
        return cls(
            by_user(np.ones(len(labels_N))),
            by_user(kind.losses_of_answers(labels_N, answers_NO)),
            *(np.stack([by_user(column_N) for column_N in of_rows.T], axis=1) for of_rows in columns),
        )

    @classmethod
    def empty(cls, kind: LearnedTask, num_users: int) -> "TaskSums":
        """Sums of no row."""
        no_rows, outputs = np.zeros(0), len(kind.task.outputs)
        return cls.of_rows(kind, no_rows, np.zeros((0, outputs)), no_rows.astype(np.int64), num_users)

    def __add__(self, other: "TaskSums") -> "TaskSums":
        return TaskSums(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @classmethod
    def regrouped(cls, parts: Sequence["TaskSums"], users: NDArray[np.int64], num_users: int) -> "TaskSums":
        """Sums of parts, whose users, one part after the other, are those with the numbers `users`."""

        def summed(name: str) -> Floats:
            values = np.concatenate([getattr(part, name) for part in parts])
            found: Floats = np.zeros((num_users, *values.shape[1:]))
            np.add.at(found, users, values)
            return found

        return cls(*(summed(each.name) for each in fields(cls)))

    def of_users(self, is_in_U: NDArray[np.bool_]) -> "TaskSums":
        """Sums of some users."""
        return TaskSums(*(getattr(self, each.name)[is_in_U] for each in fields(self)))

    def constant_loss(self, kind: LearnedTask) -> Floats:
        """constant_U: loss of the one answer that is best for all rows together."""
        return kind.losses_of_constant(self.moments_UM, self.rows_U)


@dataclass(frozen=True, slots=True)
class ArmUsers:
    """Mature users of one arm: realised value, the sums of their rows by task, and of their labels by output.

    Labels are of all rows of a user, whatever version answered. Sums of a task are of the arm's own version."""

    values_U: Floats
    tasks: dict[str, TaskSums] = field(default_factory=dict)
    labels: dict[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed:
    """Both arms at a look. `exposed` counts users by arm, canary first, mature or not. `share` is the canary's of all
    users, None where it changed. `left_out` says by reason how many users, or rows, take no part. `mixed` counts users
    whom both versions answered. They stay in the arm of the first."""

    canary: ArmUsers
    stable: ArmUsers
    exposed: tuple[int, int]
    share: float | None
    left_out: dict[str, int] = field(default_factory=dict)
    mixed: int = 0
