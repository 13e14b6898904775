"""Exposure: a user's first impression under an arm of the experiment, and which arm that was.

In: joined hours. Out: the exposed users of one epoch. A user who was in another epoch before takes no part: what was
shown then is still at work. A user whom another arm answered later stays with the first, and is counted.

Shapes: B rows of an hour, U users, F first impressions of a user in an epoch and arm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.experiment.question import Question
from training.judge.joined import ARMS, EPOCHS, FELL_BACK, TIME, USER, JoinedHours

Codes = NDArray[np.int64]
_ARMS_DECODER = msgspec.json.Decoder(dict[str, str])
_NAMES_DECODER = msgspec.json.Decoder(list[str])
# Of rows without an epoch: joined before the log had any.
NO_EPOCH = "none"
NO_USER = "rows without a user"
OTHER_EPOCH = "users of another epoch before"
OTHER_ARM = "rows of arms that the file does not have"
_ABSENT, _UNKNOWN = -1, -2


@dataclass(frozen=True, slots=True)
class Exposed:
    """Users with the time of their exposure (milliseconds) and their arm, by its place in the question.

    `mixed` counts users whom several arms answered, `fell_back` users of each arm whom it could not answer once.
    `notes` say why nobody is exposed."""

    users: pa.Array
    time_U: Codes
    arm_U: Codes
    mixed: int
    fell_back: dict[str, int]
    left_out: dict[str, int]
    notes: list[str]

    def counts(self, arms: list[str]) -> dict[str, int]:
        """Users of each arm."""
        return {arm: int((self.arm_U == place).sum()) for place, arm in enumerate(arms)}


def exposed_users(hours: JoinedHours, question: Question) -> Exposed:
    """Users that were exposed within the joined hours. Raises ValueError for rows of no such epoch, and for columns
    that no join writes."""
    hours.require((USER, TIME, ARMS))
    firsts = [_NOTHING]
    epochs: list[str] = []
    named: dict[str, None] = {}
    nobody = others = 0
    for hour, table in hours.tables((USER, TIME, ARMS, EPOCHS, FELL_BACK)):
        try:
            rows, of_other_arms = _rows_of(table, question, epochs, named)
        except ValueError as error:
            raise ValueError(f"hour {hour:%Y%m%dT%H}: {error}") from None
        others += of_other_arms
        is_nobody = pc.is_null(rows.column(USER))
        nobody += int(pc.sum(is_nobody).as_py() or 0)
        firsts.append(_firsts(rows.filter(pc.invert(is_nobody))))
    found = _firsts(pa.concat_tables(firsts)).sort_by([(USER, "ascending"), ("first", "ascending")])
    if question.epoch not in epochs and found.num_rows:
        raise ValueError(
            f"no row is of epoch {question.epoch} of '{question.name}'; rows have: {', '.join(sorted(epochs))}; name "
            "one by --epoch"
        )
    users = found.column(USER).combine_chunks()
    is_first = np.ones(len(users), bool)
    is_first[1:] = pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
    of_user = np.cumsum(is_first) - 1
    own = epochs.index(question.epoch) if question.epoch in epochs else -1
    epoch_F, arm_F = found.column("epoch").to_numpy(), found.column("arm").to_numpy().astype(np.int64)
    is_own_U = epoch_F[is_first] == own
    is_other_arm_F = (epoch_F == own) & (arm_F != arm_F[is_first][of_user])
    count = int(is_first.sum())
    is_mixed_U = np.bincount(of_user, is_other_arm_F, count) > 0
    fell_U = np.bincount(of_user, (epoch_F == own) & (found.column("fell").to_numpy() > 0), count) > 0
    arm_U = arm_F[is_first]
    return Exposed(
        users.filter(pa.array(is_first)).filter(pa.array(is_own_U)),
        found.column("first").to_numpy()[is_first][is_own_U],
        arm_U[is_own_U],
        int((is_mixed_U & is_own_U).sum()),
        {arm: int((fell_U & is_own_U & (arm_U == place)).sum()) for place, arm in enumerate(question.arms)},
        {NO_USER: nobody, OTHER_ARM: others, OTHER_EPOCH: int((~is_own_U).sum())},
        [] if count else list(_notes(question, list(named), nobody)),
    )


def _notes(question: Question, named: list[str], nobody: int) -> Iterator[str]:
    if question.name not in named:
        shown = f"rows have arms of: {', '.join(sorted(named))}" if named else "no row has an arm of any experiment"
        yield f"no row since {question.start:%Y-%m-%dT%H:%MZ} has an arm of '{question.name}'; {shown}"
    elif nobody:
        yield (
            f"no row of '{question.name}' has a user; the log has users where the model's manifest, or its state.yaml, "
            "names them and the service has --user-hash-key"
        )


_NOTHING = pa.schema(
    [(USER, pa.string()), ("epoch", pa.int64()), ("arm", pa.int64()), ("first", pa.int64()), ("fell", pa.int64())]
).empty_table()


def _rows_of(table: pa.Table, question: Question, epochs: list[str], named: dict[str, None]) -> tuple[pa.Table, int]:
    """Rows of the experiment, with the places of their arm and epoch, and how many have an arm that the file does not
    have. `named` gains the experiments that rows name."""

    def arm_of(text: str) -> int:
        arms = _ARMS_DECODER.decode(text)
        named.update(dict.fromkeys(arms))
        arm = arms.get(question.name)
        return _ABSENT if arm is None else question.arms.index(arm) if arm in question.arms else _UNKNOWN

    arm_B = _coded(table, ARMS, arm_of)
    epoch_B = _coded(table, EPOCHS, lambda text: _known(_ARMS_DECODER.decode(text).get(question.name), epochs))
    fell_B = _coded(table, FELL_BACK, lambda text: int(question.name in _NAMES_DECODER.decode(text)))
    if (arm_B >= 0).any() and (epoch_B[arm_B >= 0] < 0).any():
        epoch_B = np.where(epoch_B < 0, _known(NO_EPOCH, epochs), epoch_B)
    times_B = pc.fill_null(pc.cast(table.column(TIME), pa.int64()), -1).to_numpy()
    is_in_B = times_B >= milliseconds(question.start)
    if question.end is not None:
        is_in_B &= times_B < milliseconds(question.end)
    others = int((is_in_B & (arm_B == _UNKNOWN)).sum())
    columns = {USER: table.column(USER), "epoch": epoch_B, "arm": arm_B, "first": times_B, "fell": fell_B}
    return pa.table(columns).filter(pa.array(is_in_B & (arm_B >= 0))).cast(_NOTHING.schema), others


def _coded(table: pa.Table, name: str, code: Callable[[str], int]) -> Codes:
    """Codes of a column of JSON, -1 where it is null. Few of its texts differ."""
    coded = table.column(name).combine_chunks().dictionary_encode()
    try:
        codes = np.array([code(text) for text in coded.dictionary.to_pylist()] + [-1], np.int64)
    except msgspec.MsgspecError as error:
        raise ValueError(f"column '{name}' has what no join writes ({error})") from None
    places: Codes = pc.fill_null(coded.indices, len(codes) - 1).to_numpy().astype(np.int64)
    found: Codes = codes[places]
    return found


def _known(epoch: str | None, epochs: list[str]) -> int:
    if epoch is None:
        return -1
    if epoch not in epochs:
        epochs.append(epoch)
    return epochs.index(epoch)


def _firsts(rows: pa.Table) -> pa.Table:
    keys = [USER, "epoch", "arm"]
    found = rows.group_by(keys).aggregate([("first", "min"), ("fell", "max")])
    return found.select([*keys, "first_min", "fell_max"]).rename_columns(_NOTHING.schema.names)


def milliseconds(when: datetime | timedelta) -> int:
    """Milliseconds of a duration, or of a time since 1970."""
    seconds = when.total_seconds() if isinstance(when, timedelta) else when.timestamp()
    return round(seconds * 1000)
