"""KuaiRand-Pure as published (CSV), or as Parquet with a history per user, read into one form.

Output: the impressions from 25 April 2022 on in time order, the user and video tables, and per user the lists of
videos watched, liked and long-viewed up to 24 April. The videos' aggregate statistics are never read: they cover the
whole month, so they contain the labels.

Shapes: B rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.datasets.encodings import Integers
from training.datasets.reading import INTEGER, INTEGER_LIST, TEXT, check_flags, read_table

LAST_HISTORY_DATE = 20220424
FIRST_DATE = 20220425
MAX_HISTORY = 50
_EPOCH = date(1970, 1, 1).toordinal()

FLAGS = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter"]
_NOT_NEGATIVE = ["time_ms", "play_time_ms", "duration_ms", "comment_stay_time", "tab"]
LOG_COLUMNS = ["user_id", "video_id", "date", *_NOT_NEGATIVE, *FLAGS]
USER_CATEGORIES = ["is_live_streamer", "is_video_author", *(f"onehot_feat{i}" for i in range(18))]
USER_NUMBERS = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
VIDEO_TEXTS = ["video_type", "upload_dt", "upload_type", "tag"]
VIDEO_INTEGERS = ["author_id", "server_width", "server_height", "music_type"]
HISTORY_LISTS = ["watch_seq", "like_seq", "long_watch_seq"]

_PARQUET_FILES = [
    "interactions.parquet",
    "user_features.parquet",
    "video_features_basic.parquet",
    "user_history.parquet",
]
_CSV_FILES = [
    "log_standard_4_08_to_4_21_pure.csv",
    "log_standard_4_22_to_5_08_pure.csv",
    "user_features_pure.csv",
    "video_features_basic_pure.csv",
]


@dataclass(frozen=True)
class ListPerUser:
    """A list of videos for each row of the user table, oldest first: values[offsets[u]:offsets[u + 1]]."""

    values: Integers
    offsets: Integers

    @property
    def owner(self) -> Integers:
        """The user of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    @property
    def lengths(self) -> Integers:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class KuaiRand:
    """The dataset. `log` has the impressions. `log_user` and `log_video` are their rows in `users` and `videos`.

    Histories have a list for each row of `users`, and their values are rows of `videos`. Of the videos, `upload_day`
    counts days from 1970 and `tags` are lists of category numbers.
    """

    log: pa.Table
    users: pa.Table
    videos: pa.Table
    log_user: Integers
    log_video: Integers
    histories: dict[str, ListPerUser]
    history_length: Integers
    files: list[Path]
    source_format: str
    left_out: dict[str, int]


def read_kuairand(source: Path, progress: Callable[[str], None]) -> KuaiRand:
    """Read the files in `source`. Raises ValueError naming file, column and row."""
    folder, source_format = _find(source)
    files = [folder / name for name in (_PARQUET_FILES if source_format == "parquet" else _CSV_FILES)]
    for path in files:
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file; the {source_format} layout needs {', '.join(p.name for p in files)}"
            )
    is_csv = source_format == "csv"
    log_files, user_file, video_file = (files[:2], files[2], files[3]) if is_csv else (files[:1], files[1], files[2])
    progress(f"reading {user_file.name} and {video_file.name}")
    users = _read_users(user_file)
    videos = _read_videos(video_file)
    user_rows = _RowOf(user_file, "user_id", users)
    video_rows = _RowOf(video_file, "video_id", videos)

    parts: dict[str, list[Integers | pa.Table]] = {"log": [], "user": [], "video": []}
    for path in log_files:
        progress(f"reading {path.name}")
        log = _read_log(path)
        parts["log"].append(log)
        parts["user"].append(user_rows(path, log["user_id"].to_numpy()))
        parts["video"].append(video_rows(path, log["video_id"].to_numpy()))
    log = pa.concat_tables(parts["log"])
    log_user, log_video = np.concatenate(parts["user"]), np.concatenate(parts["video"])
    # Ties are broken by ids, so that the order does not depend on the layout of the source.
    order = np.lexsort((log["video_id"].to_numpy(), log["user_id"].to_numpy(), log["time_ms"].to_numpy()))
    log, log_user, log_video = log.take(order), log_user[order], log_video[order]
    log_date = log["date"].to_numpy()

    if is_csv:
        progress("collecting histories up to 24 April")
        past = log_date <= LAST_HISTORY_DATE
        histories, history_length = _histories_of_log(log.filter(past), log_user[past], log_video[past], users.num_rows)
    else:
        progress(f"reading {files[3].name}")
        histories, history_length = _read_histories(files[3], user_rows, video_rows)
    shown = log_date >= FIRST_DATE
    if not shown.any():
        raise ValueError(f"{log_files[-1]}: column 'date': no row from {FIRST_DATE} on")
    earlier = int((~shown).sum())
    read_for = "days before 25 April, read for history lists alone" if is_csv else "days before 25 April"
    return KuaiRand(
        log=log.filter(shown),
        users=users,
        videos=videos,
        log_user=log_user[shown],
        log_video=log_video[shown],
        histories=histories,
        history_length=history_length,
        files=files,
        source_format=source_format,
        left_out={read_for: earlier} if earlier else {},
    )


def _find(source: Path) -> tuple[Path, str]:
    if (source / _PARQUET_FILES[0]).exists():
        return source, "parquet"
    for folder in (source, source / "data", source / "KuaiRand-Pure" / "data"):
        if any((folder / name).exists() for name in _CSV_FILES):
            return folder, "csv"
    raise ValueError(f"{source}: has neither {_PARQUET_FILES[0]} nor {_CSV_FILES[1]} (here or in data/)")


def _read_log(path: Path) -> pa.Table:
    log = read_table(path, dict.fromkeys(LOG_COLUMNS, INTEGER))
    check_flags(path, log, FLAGS)
    _check_dates(path, log["date"].to_numpy())
    for name in _NOT_NEGATIVE:
        values = log[name].to_numpy()
        wrong = np.flatnonzero(values < 0)
        if wrong.size:
            raise ValueError(f"{path}: column {name!r}, row {wrong[0] + 1}: {values[wrong[0]]} is negative")
    return log


def _check_dates(path: Path, date_B: Integers) -> None:
    """Raise ValueError, naming a row, unless every value is a day as yyyymmdd."""
    for day in np.unique(date_B).tolist():
        try:
            datetime.strptime(f"{day:08d}", "%Y%m%d")
        except ValueError:
            row = int(np.flatnonzero(date_B == day)[0]) + 1
            raise ValueError(f"{path}: column 'date', row {row}: {day} is not a day (yyyymmdd)") from None


def _read_users(path: Path) -> pa.Table:
    columns = {"user_id": INTEGER, "user_active_degree": TEXT, **dict.fromkeys(USER_CATEGORIES + USER_NUMBERS, INTEGER)}
    return read_table(path, columns, nullable=[name for name in columns if name != "user_id"])


def _read_videos(path: Path) -> pa.Table:
    columns = {"video_id": INTEGER, **dict.fromkeys(VIDEO_INTEGERS, INTEGER), **dict.fromkeys(VIDEO_TEXTS, TEXT)}
    videos = read_table(path, columns, nullable=[name for name in columns if name not in ("video_id", "author_id")])
    upload_day = _each(path, "upload_dt", videos, lambda text: date.fromisoformat(text).toordinal() - _EPOCH, INTEGER)
    tags = _each(path, "tag", videos, lambda text: [int(tag) for tag in text.split(",")], INTEGER_LIST)
    videos = videos.drop_columns(["upload_dt", "tag"])
    return videos.append_column("upload_day", upload_day).append_column("tags", tags)


def _each(path: Path, name: str, table: pa.Table, parse: Callable[[str], object], data_type: pa.DataType) -> pa.Array:
    """Parse a column of text value by value. Nulls stay."""
    parsed = []
    for row, text in enumerate(table[name].to_pylist(), start=1):
        try:
            parsed.append(None if text is None else parse(text))
        except ValueError as error:
            raise ValueError(f"{path}: column {name!r}, row {row}: {text!r} is not as expected ({error})") from error
    return pa.array(parsed, data_type)


def _histories_of_log(
    log: pa.Table, user: Integers, video: Integers, num_users: int
) -> tuple[dict[str, ListPerUser], Integers]:
    """The latest MAX_HISTORY videos of each user in a log in time order, and how many impressions there were."""
    chosen = {
        "watch_seq": np.ones(len(user), dtype=bool),
        "like_seq": log["is_like"].to_numpy() == 1,
        "long_watch_seq": log["long_view"].to_numpy() == 1,
    }
    histories = {name: _latest(user[mask], video[mask], num_users) for name, mask in chosen.items()}
    return histories, np.bincount(user, minlength=num_users)


def _latest(owner: Integers, values: Integers, num_users: int) -> ListPerUser:
    """The last MAX_HISTORY values of each user, in their order."""
    order = np.argsort(owner, kind="stable")
    owner, values = owner[order], values[order]
    counts = np.bincount(owner, minlength=num_users)
    from_end = np.cumsum(counts)[owner] - np.arange(len(owner))  # 1 for a user's latest
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, MAX_HISTORY))])
    return ListPerUser(values[from_end <= MAX_HISTORY], offsets)


def _read_histories(path: Path, user_rows: "_RowOf", video_rows: "_RowOf") -> tuple[dict[str, ListPerUser], Integers]:
    types = {"user_id": INTEGER, "history_len": INTEGER, **dict.fromkeys(HISTORY_LISTS, INTEGER_LIST)}
    table = read_table(path, types)
    user = user_rows(path, table["user_id"].to_numpy())
    if (row := _first_repeated(user)) is not None:
        raise ValueError(f"{path}: column 'user_id', row {row + 1}: {table['user_id'][row].as_py()} comes twice")
    history_length = np.zeros(user_rows.count, dtype=np.int64)
    history_length[user] = table["history_len"].to_numpy()
    histories = {}
    for name in HISTORY_LISTS:
        lists = table[name].combine_chunks()
        if lists.flatten().null_count:
            raise ValueError(f"{path}: column {name!r}: a list contains a null")
        values = video_rows(path, lists.flatten().to_numpy(), name, in_lists=True)
        owner = np.repeat(user, pc.list_value_length(lists).to_numpy())
        histories[name] = _latest(owner, values, user_rows.count)
    return histories, history_length


def _first_repeated(ids: Integers) -> int | None:
    """The first row with the id of a row before it."""
    is_repeated = np.ones(len(ids), bool)
    is_repeated[np.unique(ids, return_index=True)[1]] = False
    return int(is_repeated.argmax()) if is_repeated.any() else None


class _RowOf:
    """Row in the user or video table by id."""

    def __init__(self, path: Path, column: str, table: pa.Table) -> None:
        self.path, self.column, self.count = path, column, table.num_rows
        self._ids = table[column].combine_chunks()
        if (row := _first_repeated(self._ids.to_numpy())) is not None:
            raise ValueError(f"{path}: column {column!r}, row {row + 1}: {self._ids[row]} comes twice")

    def __call__(self, path: Path, ids: Integers, column: str | None = None, in_lists: bool = False) -> Integers:
        """Rows of `ids`, read from `path`. ValueError naming the first id that has none."""
        rows = pc.index_in(pa.array(ids), value_set=self._ids)
        if rows.null_count:
            unknown = pc.index(rows.is_null(), True).as_py()
            where = "an entry" if in_lists else f"row {unknown + 1}"
            raise ValueError(
                f"{path}: column {column or self.column!r}, {where}: {ids[unknown]} has no row in {self.path.name}"
            )
        found: Integers = rows.to_numpy().astype(np.int64)
        return found
