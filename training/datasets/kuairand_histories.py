"""A user's latest videos before the day of an impression: the lists up to 24 April, and what followed on earlier days.

Input: the dataset. Output: list columns [impressions] of video ids, oldest first. An impression sees nothing of its own
day: 2 % of the log's rows repeat user, video and time. Days go by the log's `date`.

Shapes: E events, P pairs of a user and a day.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.datasets.encodings import Integers
from training.datasets.kuairand_files import MAX_HISTORY, KuaiRand

# By column the list of the source.
LISTS = {"watched": "watch_seq", "liked": "like_seq", "long_viewed": "long_watch_seq"}


def events_of_lists(data: KuaiRand) -> dict[str, NDArray[np.bool_]]:
    """The impressions of the log that a list goes on with, by column, [impressions]."""
    return {
        "watched": np.ones(len(data.log_user), dtype=bool),
        "liked": data.log["is_like"].to_numpy() == 1,
        "long_viewed": data.log["long_view"].to_numpy() == 1,
    }


def recent_lists(data: KuaiRand) -> dict[str, pa.Array]:
    """The latest MAX_HISTORY videos of each list before an impression's day, as columns `recent_...`."""
    dates, day = np.unique(data.log["date"].to_numpy(), return_inverse=True)
    # Day 0 is everything up to 24 April.
    span = len(dates) + 1
    pairs_P, pair_of_row = np.unique(data.log_user * span + day + 1, return_inverse=True)
    video_id = data.videos["video_id"].to_numpy()
    columns = {}
    for column, mask in events_of_lists(data).items():
        listed = data.histories[LISTS[column]]
        when_E = np.concatenate([listed.owner * span, data.log_user[mask] * span + day[mask] + 1])
        # Stable: a list is oldest first, and so is the log.
        order_E = np.argsort(when_E, kind="stable")
        videos_E = np.concatenate([listed.values, data.log_video[mask]])[order_E]
        columns[f"recent_{column}"] = _before(pairs_P, span, when_E[order_E], video_id[videos_E]).take(
            pa.array(pair_of_row)
        )
    return columns


def _before(pairs_P: Integers, span: int, when_E: Integers, videos_E: Integers) -> pa.ListArray:
    """The latest videos of each pair's user on days before its day, [P]. Events are in the order of users and days."""
    ends_P = np.searchsorted(when_E, pairs_P, side="left")
    starts_P = np.maximum(np.searchsorted(when_E, pairs_P // span * span, side="left"), ends_P - MAX_HISTORY)
    offsets = np.concatenate([[0], np.cumsum(ends_P - starts_P)])
    places = np.repeat(starts_P - offsets[:-1], ends_P - starts_P) + np.arange(offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(videos_E[places]))
