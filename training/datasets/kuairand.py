"""KuaiRand-Pure to impressions with inputs known before each impression's day.

Input: see kuairand_files. Output, one row per impression from 25 April 2022 on: the log's keys and labels, user and
video features, context (tab, hour and weekday of time_ms in Beijing), the history lists up to 24 April, the same with
what followed on earlier days (kuairand_histories), and statistics of earlier days (kuairand_inputs). Splits by `date`:
train to 5 May, validation 6 May, test 7 May unless `Days` says otherwise. Days after the test are written too, as
`later`.

Nothing that is known only after the impression is an input: play_time_ms and the flags are labels, the times spent in
profile and comments are not passed on.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.found import FilesOfFolder, Found
from training.datasets.folder import Prepared
from training.datasets.kuairand_files import FLAGS, USER_CATEGORIES, USER_NUMBERS, KuaiRand, ListPerUser, read_kuairand
from training.datasets.kuairand_histories import recent_lists
from training.datasets.kuairand_inputs import inputs_before

LICENCE = "CC BY-SA 4.0"
ATTRIBUTION = (
    "KuaiRand-Pure. Chongming Gao, Shijun Li, Yuan Zhang, Jiawei Chen, Biao Li, Wenqiang Lei, Peng Jiang, Xiangnan He: "
    "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, CIKM 2022. "
    "DOI 10.1145/3511808.3557624. What is derived from it carries the same licence."
)

SPLITS, LATER = ("train", "validation", "test"), "later"

_BEIJING_MS = 8 * 3_600_000
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Days:
    """The last day (yyyymmdd) of each split. With `only`, that day is written alone. Raises ValueError for days out of
    order."""

    train_to: int = 20220505
    validation_to: int = 20220506
    test_to: int = 20220507
    only: int | None = None

    def __post_init__(self) -> None:
        if not self.train_to < self.validation_to < self.test_to:
            raise ValueError(
                f"--train-to {self.train_to}, --validation-to {self.validation_to}, --test-to {self.test_to}: each "
                "must be later than the one before"
            )

    def split(self, impressions: pa.Table) -> dict[str, pa.Table]:
        """The rows by split, or those of `only` under its date. Raises ValueError where it has none."""
        split = self._split_of(impressions)
        if self.only is not None:
            return {str(self.only): impressions.filter(split == str(self.only))}
        splits = {name: impressions.filter(split == name) for name in SPLITS}
        later = impressions.filter(split == LATER)
        return {**splits, **({LATER: later} if later.num_rows else {})}

    def rows(self, impressions: pa.Table) -> Counter[str]:
        """Number of rows by split, or of `only` under its date. Raises ValueError where that has none."""
        split = self._split_of(impressions)
        names = SPLITS if self.only is None else (str(self.only),)
        return Counter({name: int((split == name).sum()) for name in names})

    def _split_of(self, impressions: pa.Table) -> npt.NDArray[np.str_]:
        """The split of each row [B]. With `only` its date, and no name for other days."""
        date = impressions["date"].to_numpy()
        if self.only is None:
            ends = (self.train_to, self.validation_to, self.test_to)
            split: npt.NDArray[np.str_] = np.array([*SPLITS, LATER])[np.searchsorted(ends, date)]
            return split
        if not (date == self.only).any():
            raise ValueError(f"--day {self.only}: no row has this date; the days are {date.min()} to {date.max()}")
        return np.where(date == self.only, str(self.only), "")


SHIPPED = Days()


def read(source: Path, progress: Callable[[str], None], days: Days = SHIPPED) -> Prepared:
    """Read the files in `source`, compute the inputs and split by date. Raises ValueError naming file, column, row."""
    data = read_kuairand(source, progress)
    rows = data.log.num_rows + sum(data.left_out.values())
    Found(FilesOfFolder(data.files), rows, days.rows(data.log), data.left_out).log_counts()
    progress(f"computing inputs of {data.log.num_rows} impressions from earlier days")
    return Prepared(
        dataset="kuairand",
        splits=days.split(impressions_of(data)),
        left_out=data.left_out,
        source_format=data.source_format,
        sources=data.files,
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )


def impressions_of(data: KuaiRand) -> pa.Table:
    """All columns of all impressions, in time order."""
    log, video = data.log, data.videos.take(data.log_video)
    user = data.users.take(data.log_user)
    beijing_ms = log["time_ms"].to_numpy() + _BEIJING_MS
    play_time_ms, duration_ms = log["play_time_ms"].to_numpy(), log["duration_ms"].to_numpy()
    columns: dict[str, object] = {name: log[name] for name in ("date", "time_ms", "user_id", "video_id")}
    columns["author_id"] = video["author_id"]
    columns |= {name: log[name].cast(pa.int8()) for name in FLAGS}
    columns["comments_opened"] = (log["comment_stay_time"].to_numpy() > 0).astype(np.int8)
    columns["finished"] = (play_time_ms >= duration_ms).astype(np.int8)
    columns["play_time_ms"] = play_time_ms
    columns["tab"] = log["tab"]
    columns["hour"] = beijing_ms // 3_600_000 % 24
    columns["weekday"] = (beijing_ms // _DAY_MS + 3) % 7  # 1 January 1970 was a Thursday, and Monday is 0
    columns |= {name: user[name] for name in ("user_active_degree", *USER_CATEGORIES, *USER_NUMBERS)}
    for name, column in (("watch_seq", "watched"), ("like_seq", "liked"), ("long_watch_seq", "long_viewed")):
        columns[column] = _lists(data.histories[name], data.videos["video_id"].to_numpy()).take(pa.array(data.log_user))
    columns |= recent_lists(data)
    columns["duration_ms"] = duration_ms
    columns |= {name: video[name] for name in ("video_type", "upload_type", "music_type")}
    columns["tags"] = video["tags"]
    columns["upload_age_days"] = pc.subtract(pa.array(beijing_ms // _DAY_MS), video["upload_day"])
    columns["aspect_ratio"] = _aspect_ratio(video)
    columns |= inputs_before(data)
    return pa.table(columns)


def _aspect_ratio(video: pa.Table) -> pa.Array:
    """Height over width. Null where either is not known."""
    width = pc.if_else(pc.greater(video["server_width"], 0), video["server_width"], pa.scalar(None, pa.int64()))
    return pc.divide(video["server_height"].cast(pa.float64()), width)


def _lists(history: ListPerUser, video_id: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(history.offsets, pa.int32()), pa.array(video_id[history.values]))
