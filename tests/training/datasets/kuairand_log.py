"""A made log of KuaiRand-Pure, written in either of its published layouts."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.datasets.prepare import prepare

FLAGS = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter"]
LABELS = [*FLAGS, "comments_opened", "finished", "play_time_ms"]
DATES = [20220415, *range(20220420, 20220431), *range(20220501, 20220509)]
NUM_USERS, NUM_VIDEOS = 9, 7
Log = list[dict[str, int]]
Column = npt.NDArray[Any]


def make_log(num_rows: int = 900) -> Log:
    """A log of 15 April to 8 May as published. One user has far more than 50 impressions before 25 April."""
    rng = np.random.default_rng(7)
    rows = []
    for number in range(num_rows):
        date = DATES[rng.integers(len(DATES))]
        day_ms = np.datetime64(f"{date // 10000}-{date // 100 % 100:02d}-{date % 100:02d}", "ms").astype(int)
        user = 0 if rng.random() < 0.4 else int(rng.integers(1, NUM_USERS))
        row = {"user_id": user, "video_id": int(rng.integers(NUM_VIDEOS)), "date": date, "hourmin": 0}
        # Beijing is 8 hours ahead. Distinct times leave no order to chance.
        row["time_ms"] = int(day_ms) + int(rng.integers(24)) * 3_600_000 - 8 * 3_600_000 + number
        row |= {name: int(rng.random() < 0.3) for name in FLAGS}
        row["duration_ms"] = int(rng.integers(0, 4)) * 5_000
        row["play_time_ms"] = int(rng.integers(0, 15_000))
        row["profile_stay_time"], row["is_rand"] = 0, 0
        row["comment_stay_time"] = int(rng.integers(0, 2)) * 900
        row["tab"] = int(rng.integers(0, 3))
        rows.append(row)
    return sorted(rows, key=lambda row: row["time_ms"])


def users() -> list[dict[str, object]]:
    one = {"user_active_degree": "full_active", "is_live_streamer": -124, "is_video_author": 1, "register_days": 40}
    one |= {"follow_user_num": 3, "fans_user_num": 4, "friend_user_num": 5}
    one |= {f"onehot_feat{i}": i for i in range(18)}
    # Not in the order of ids, and with a null as the published file has it.
    return [{"user_id": u, **one, "onehot_feat4": None if u == 3 else u} for u in reversed(range(NUM_USERS))]


def videos() -> list[dict[str, object]]:
    one: dict[str, object] = {"video_type": "NORMAL", "upload_dt": "2022-04-10", "upload_type": "Web", "music_type": 9}
    one |= {"server_width": 720, "server_height": 1280, "music_id": 9155697141, "video_duration": 5000}
    tags = ["39", "20,43", "39,2", None, "2", "20", "43"]
    return [{"video_id": v, "author_id": 100 + v // 2, **one, "tag": tags[v]} for v in range(NUM_VIDEOS)]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        # A column with a null was once a float to whoever wrote the published file.
        writer.writerows(
            {key: f"{value}.0" if key == "onehot_feat4" and value is not None else value for key, value in row.items()}
            for row in rows
        )


def as_published(folder: Path, log: Log) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    write_csv(data / "log_standard_4_08_to_4_21_pure.csv", [row for row in log if row["date"] <= 20220421])
    write_csv(data / "log_standard_4_22_to_5_08_pure.csv", [row for row in log if row["date"] > 20220421])
    write_csv(data / "user_features_pure.csv", users())
    write_csv(data / "video_features_basic_pure.csv", videos())
    return folder


def as_parquet(folder: Path, log: Log) -> Path:
    folder.mkdir(parents=True)
    shown = [row for row in log if row["date"] >= 20220425]
    past = [row for row in log if row["date"] <= 20220424]
    histories = []
    for user in sorted({row["user_id"] for row in past}):
        own = [row for row in past if row["user_id"] == user]
        histories.append(
            {
                "user_id": user,
                "history_len": len(own),
                "watch_seq": [row["video_id"] for row in own][-50:],
                "like_seq": [row["video_id"] for row in own if row["is_like"]][-50:],
                "long_watch_seq": [row["video_id"] for row in own if row["long_view"]][-50:],
            }
        )
    pq.write_table(pa.Table.from_pylist(shown), folder / "interactions.parquet")
    pq.write_table(pa.Table.from_pylist(users()), folder / "user_features.parquet")
    pq.write_table(pa.Table.from_pylist(videos()), folder / "video_features_basic.parquet")
    pq.write_table(pa.Table.from_pylist(histories), folder / "user_history.parquet")
    return folder


def prepared(out: Path) -> pa.Table:
    """All splits in time order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("*.parquet"))).sort_by("time_ms")


def prepare_log(tmp_path: Path, name: str, log: Log) -> pa.Table:
    prepare("kuairand", as_parquet(tmp_path / name, log), tmp_path / f"{name}-out")
    return prepared(tmp_path / f"{name}-out")


def numbers(table: pa.Table, name: str) -> Column:
    """A column as numpy, NaN for null."""
    values: Column = table[name].to_numpy()
    return values


def unit(outcome: str) -> str:
    return "_percent" if outcome in ("like", "profile_enter", "comments_opened") else ""
