"""Knowledge of a user, a video and their pair before the day of an impression.

Input: the dataset. Output: columns [impressions] of float64, null where nothing is known. Days go by the log's `date`,
from 25 April on. The history lists up to 24 April count as a day before all of them. An impression sees the labels of
earlier days only.

Names: `<key>_impressions` counts the earlier impressions of a key, `<key>_<outcome>` is the smoothed mean of an outcome
over them (null on the first day, when there is no prior either, and `_percent` where the outcome is rare),
`<key>_listed...` counts the key in all users' history lists, `history_...` describes the user's own lists, and
`affinity_...` counts how often the user watched, liked or viewed long something with the candidate's first tag.
Authors get no statistics of their own: 6,510 of them made the 7,583 videos.
"""

import numpy as np
import pyarrow as pa

from training.datasets.encodings import (
    Events,
    Floats,
    Integers,
    key_index,
    last_day_before,
    mean_by_group_before,
    smoothed_rate,
    totals_before,
)
from training.datasets.kuairand_files import KuaiRand
from training.datasets.kuairand_histories import LISTS, events_of_lists

# How many impressions the prior is worth. A user has 8 impressions in the log, a video 34.
_STRENGTH = {"user": 10.0, "video": 20.0, "user_tab": 5.0}
_LISTED_STRENGTH = 10.0
# Outcomes of a few impressions in a hundred are given in percent: on the scale of log1p, where their ratios count,
# a share of 1 % and one of 3 % would be the same as 0.
_RARE = ("like", "profile_enter", "comments_opened")
_PERCENT = 100.0


def inputs_before(data: KuaiRand) -> dict[str, pa.Array]:
    """All statistics of earlier days, by column name."""
    # Day 0 is everything up to 24 April.
    dates, day_of_log = np.unique(data.log["date"].to_numpy(), return_inverse=True)
    day, num_days = day_of_log + 1, len(dates) + 1
    columns: dict[str, Floats] = {}
    columns |= _outcome_means(data, day, num_days)
    columns |= _own_lists(data)
    columns |= _listed(data)
    columns |= _affinities(data, day, num_days)
    # from_pandas: NaN is "not known", so null.
    return {name: pa.array(column, pa.float64(), from_pandas=True) for name, column in columns.items()}


def outcomes(log: pa.Table) -> dict[str, Floats]:
    """The outcomes whose earlier means are inputs, [impressions] each."""
    play_ms = log["play_time_ms"].to_numpy().astype(np.float64)
    duration_ms = log["duration_ms"].to_numpy().astype(np.float64)
    return {
        "click": log["is_click"].to_numpy().astype(np.float64),
        "long_view": log["long_view"].to_numpy().astype(np.float64),
        "like": log["is_like"].to_numpy().astype(np.float64),
        "profile_enter": log["is_profile_enter"].to_numpy().astype(np.float64),
        "comments_opened": (log["comment_stay_time"].to_numpy() > 0).astype(np.float64),
        "finished": (play_ms >= duration_ms).astype(np.float64),
        "log_play": np.log1p(play_ms),
        # Videos that loop are played several times over. What counts is that they were seen to the end.
        "play_ratio": np.clip(play_ms / np.maximum(duration_ms, 1.0), 0.0, 1.5),
    }


def _outcome_means(data: KuaiRand, day: Integers, num_days: int) -> dict[str, Floats]:
    tab = data.log["tab"].to_numpy()
    everything = np.zeros(len(day), dtype=np.int64)
    # The prior of a user on a tab is the tab's mean: tabs differ by far more than users do.
    keys = {
        "user": ((data.log_user,), everything),
        "video": ((data.log_video,), everything),
        "user_tab": ((data.log_user, tab), tab),
    }
    observed = outcomes(data.log)
    columns: dict[str, Floats] = {}
    for name, (parts, group) in keys.items():
        index, num_keys = key_index(*parts)
        events = Events(index, day)
        count = totals_before(events, events, None, num_keys, num_days)
        columns[f"{name}_impressions"] = count
        for outcome, values in observed.items():
            prior = mean_by_group_before(group, day, values, num_days)
            total = totals_before(events, events, values, num_keys, num_days)
            rate = smoothed_rate(total, count, prior, _STRENGTH[name])
            if outcome in _RARE:
                columns[f"{name}_{outcome}_percent"] = rate * _PERCENT
            else:
                columns[f"{name}_{outcome}"] = rate
        if name == "user":
            last = last_day_before(events, events, num_keys, num_days)
            columns["user_days_since"] = np.where(last >= 0, day - last, np.nan)
    return columns


def _own_lists(data: KuaiRand) -> dict[str, Floats]:
    user = data.log_user
    length = np.maximum(data.history_length, 1)
    liked, long_viewed = data.histories["like_seq"].lengths, data.histories["long_watch_seq"].lengths
    return {
        "history_impressions": data.history_length[user].astype(np.float64),
        # Lists end at 50 entries: for users with more the share is a lower bound, and the count says so.
        "history_likes_percent": (liked / length)[user] * _PERCENT,
        "history_long_view_share": (long_viewed / length)[user],
        "history_long_views": long_viewed[user].astype(np.float64),
    }


def _listed(data: KuaiRand) -> dict[str, Floats]:
    """Counts of a video and its first tag in all users' lists, and in liked and long-viewed ones
    relative to watched ones."""
    keys = {
        "video": np.arange(data.videos.num_rows),
        "tag": first_tag(data),
    }
    columns: dict[str, Floats] = {}
    for name, key_of_video in keys.items():
        size = int(key_of_video.max(initial=0)) + 1
        counts = {}
        for column, source in LISTS.items():
            key = key_of_video[data.histories[source].values]
            counts[column] = np.bincount(key[key >= 0], minlength=size).astype(np.float64)
        key = key_of_video[data.log_video]
        known, key = key >= 0, np.maximum(key, 0)
        columns[f"{name}_listed"] = np.where(known, counts["watched"][key], 0.0)
        watched_in_all = max(counts["watched"].sum(), 1.0)
        for column, suffix, scale in (("liked", "liked_percent", _PERCENT), ("long_viewed", "long_viewed", 1.0)):
            prior = np.full(size, counts[column].sum() / watched_in_all)
            rate = smoothed_rate(counts[column], counts["watched"], prior, _LISTED_STRENGTH)
            columns[f"{name}_listed_{suffix}"] = np.where(known, rate[key] * scale, np.nan)
    return columns


def _affinities(data: KuaiRand, day: Integers, num_days: int) -> dict[str, Floats]:
    user, video = data.log_user, data.log_video
    happened = events_of_lists(data)
    tag_of_video = first_tag(data)
    columns: dict[str, Floats] = {}
    for column, source in LISTS.items():
        history, mask = data.histories[source], happened[column]
        event_user = np.concatenate([history.owner, user[mask]])
        event_tag = tag_of_video[np.concatenate([history.values, video[mask]])]
        event_day = np.concatenate([np.zeros(len(history.values), dtype=np.int64), day[mask]])
        index, num_keys = key_index(
            np.concatenate([event_user, user]), np.concatenate([event_tag, tag_of_video[video]])
        )
        events = Events(index[: len(event_user)], event_day)
        rows = Events(index[len(event_user) :], day)
        columns[f"affinity_tag_{column}"] = totals_before(rows, events, None, num_keys, num_days)
    return columns


def first_tag(data: KuaiRand) -> Integers:
    """The first tag of each row of the video table, -1 without one."""
    return np.array([tags[0] if tags else -1 for tags in data.videos["tags"].to_pylist()], dtype=np.int64)
