"""Write the impressions of a made-up feed as a log to train on: `python -m training simulate --rows N --seed
S --out DIR`.

Output, in DIR: impressions-00000.parquet and so on (one row per impression, in the order of time, ten to a page, with
features, labels and `date` as yyyymmdd to split by: the last day tests, the day before validates). truth/ has files of
the same names and rows, the probabilities behind the labels, for tests only. simulated.json has the seed and the
constants behind the data. Times are milliseconds since 1970, UTC. The same arguments give the same bytes. DIR appears
whole, by a rename, or not at all.

The laws of the feed are in training.datasets.feed_world.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import Progress

from training.datasets import feed_world as feed
from training.datasets.feed_world import Chances, FeedWorld, Integers
from training.files import replaced_folder

__all__ = ["FeedWorld", "simulate"]

MANIFEST = "simulated.json"
_FILES = "impressions-*.parquet"
DAYS = 14
FIRST_DAY = np.datetime64("2024-01-01", "ms")
HOUR_MS = 3_600_000
# Requests per hour of a day, up to a factor: quiet at night, busy in the evening.
HOURLY_INTENSITY = 1.0 + 0.7 * np.cos((np.arange(24) - 20) * (2 * np.pi / 24))
CHUNK_PAGES = 5_000  # one row group of 50,000 impressions: what is in memory at once
ROWS_PER_FILE = 500_000
# Two pages to a day: then no day of the split is empty.
MIN_ROWS = 2 * DAYS * feed.PAGE
MAX_ROWS = 1_000_000_000
MAX_HISTORY = 1_000


def simulate(
    rows: int,
    seed: int,
    out: Path,
    *,
    users: int = 5_000,
    items: int = 2_000,
    tastes: int | None = None,
    history: int = feed.MAX_HISTORY,
) -> None:
    """Write `rows` impressions into the folder `out`, replacing it only if it is empty or has an earlier
    simulation. With `tastes`, a seed, the users of the world have these other ones. Histories have the latest
    `history` clicks.

    Raises ValueError for arguments out of range and for an `out` with other content, and OSError from the disk.
    """
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise ValueError(f"rows must be between {MIN_ROWS} (two pages a day) and {MAX_ROWS}, got {rows}")
    if not 1 <= history <= MAX_HISTORY:
        raise ValueError(f"history must be between 1 and {MAX_HISTORY} clicks, got {history}")
    world = FeedWorld(seed, users=users, items=items)
    if tastes is not None:
        world = world.with_other_tastes(tastes)
    names = _Names(world)
    clicks = _ClickLog(history)
    totals = dict.fromkeys((*feed.BINARY_TASKS, "play_time_ms"), 0)
    pages = -(-rows // feed.PAGE)
    last_ms = int(FIRST_DAY.astype(np.int64)) - 1
    with (
        replaced_folder(out, MANIFEST, own=(_FILES, f"truth/{_FILES}")) as folder,
        Progress(transient=True) as progress,
    ):
        bar = progress.add_task("simulating impressions", total=rows)
        with _Files(folder) as impressions, _Files(folder / "truth") as truth:
            for first_page in range(0, pages, CHUNK_PAGES):
                chunk = range(first_page, min(first_page + CHUNK_PAGES, pages))
                count = min(rows, chunk.stop * feed.PAGE) - chunk.start * feed.PAGE
                # A generator per chunk: what one chunk draws shifts no other.
                rng = np.random.default_rng([seed, 1, first_page])
                times = _page_times(rng, chunk, pages, last_ms)
                last_ms = int(times[-1])
                logged, true = _impressions(world, names, clicks, rng, times, count)
                impressions.write(logged)
                truth.write(true)
                for name in totals:
                    totals[name] += int(logged[name].to_numpy().sum(dtype=np.int64))
                progress.advance(bar, count)
        means = {name: total / rows for name, total in totals.items()}
        _write_manifest(folder / MANIFEST, rows, seed, world, means, history)


class _Names:
    """The strings of items, creators and topics as Arrow arrays, so that chunks take them by number."""

    def __init__(self, world: FeedWorld) -> None:
        self.items = pa.array([feed.item_name(item) for item in range(world.items)])
        creators = [feed.creator_name(creator) for creator in range(int(world.creator.max()) + 1)]
        self.creators = pa.array(creators).take(pa.array(world.creator))
        topics = pa.array(feed.TOPICS).take(pa.array(world.topic_values))
        self.topics = pa.ListArray.from_arrays(pa.array(world.topic_offsets, pa.int32()), topics)
        self.devices = pa.array(feed.DEVICES)


class _ClickLog:
    """The `latest` clicked items of each user, before the chunk at hand, grouped by user, oldest first."""

    def __init__(self, latest: int) -> None:
        self._latest = latest
        self.users: Integers = np.empty(0, dtype=np.int64)
        self.items: Integers = np.empty(0, dtype=np.int64)

    def histories(
        self, page_users: Integers, click_pages: Integers, click_items: Integers
    ) -> tuple[Integers, Integers]:
        """Take in a chunk's clicks, in the order of time, and return each page's history as offsets [P + 1]
        and items.

        A page's history ends before the page: it has the clicks of earlier chunks and of the user's earlier
        pages.
        """
        users = np.concatenate([self.users, page_users[click_pages]])
        pages = np.concatenate([np.full(self.users.size, -1), click_pages])  # -1: before this chunk
        items = np.concatenate([self.items, click_items])
        order = np.argsort(users, kind="stable")  # keeps the order of time inside a user
        users, pages, items = users[order], pages[order], items[order]
        span = page_users.size + 1
        when = users * span + pages + 1
        starts = np.searchsorted(users, page_users, side="left")
        ends = np.searchsorted(when, page_users * span + np.arange(1, span), side="left")
        starts = np.maximum(starts, ends - self._latest)
        lengths = ends - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        history = items[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
        from_end = np.searchsorted(users, users, side="right") - np.arange(users.size)
        kept = from_end <= self._latest
        self.users, self.items = users[kept], items[kept]
        return offsets, history


def _page_times(rng: np.random.Generator, chunk: range, pages: int, after_ms: int) -> Integers:
    """Times of the pages of a chunk, strictly increasing and later than `after_ms`.

    Page r of R falls into the r-th of R equal parts of all requests: one pass in the order of time needs no
    sort.
    """
    share = (np.arange(chunk.start, chunk.stop) + rng.random(len(chunk))) / pages
    cumulative = np.concatenate(([0.0], np.cumsum(HOURLY_INTENSITY / HOURLY_INTENSITY.sum())))
    day, within = np.divmod(share * DAYS, 1.0)
    hours = day * 24 + np.interp(within, cumulative, np.arange(25))
    times = int(FIRST_DAY.astype(np.int64)) + np.floor(hours * HOUR_MS).astype(np.int64)
    steps = np.arange(times.size)
    return np.maximum(np.maximum.accumulate(times - steps), after_ms + 1) + steps


def _impressions(
    world: FeedWorld, names: _Names, clicks: _ClickLog, rng: np.random.Generator, times: Integers, count: int
) -> tuple[pa.Table, pa.Table]:
    """The pages shown at `times`, cut to `count` impressions: what is logged, and what is true."""
    page_users = world.draw_users(rng, times.size)
    page_devices = rng.choice(len(feed.DEVICES), times.size, p=feed.DEVICE_SHARES)
    device_is_null = rng.random(times.size) < feed.NULL_SHARES["device"]
    items = world.draw_pages(rng, times.size).reshape(-1)[:count]
    page, positions = np.divmod(np.arange(count), feed.PAGE)
    page_hours = times // HOUR_MS % 24
    page_dates = _dates(times)
    users = page_users[page]
    since_start_hours = (times - int(FIRST_DAY.astype(np.int64))) / HOUR_MS
    ages = np.round(world.age_at_start_hours[items] + since_start_hours[page], 2)
    age_is_null = rng.random(count) < feed.NULL_SHARES["item_age_hours"]
    true = world.outcomes(users, items, positions, page_hours[page], page_devices[page], ages)

    chances = Chances.draw(rng, count)
    labels = chances.labels(true)
    clicked = labels["click"] == 1
    offsets, history = clicks.histories(page_users, page[clicked], items[clicked])
    page_histories = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.items.take(pa.array(history)))
    of_page, of_item = pa.array(page), pa.array(items)
    logged = {
        "user_id": pa.array(users),
        "user_activity": pa.array(world.activity[users], mask=world.activity_is_null[users]),
        "history": page_histories.take(of_page),
        "hour": pa.array(page_hours[page]),
        "device": names.devices.take(pa.array(page_devices[page], mask=device_is_null[page])),
        "item_id": names.items.take(of_item),
        "creator": names.creators.take(of_item),
        "topics": names.topics.take(of_item),
        "duration_ms": pa.array(world.duration_ms[items], mask=world.duration_is_null[items]),
        "item_age_hours": pa.array(ages, mask=age_is_null),
        "position": pa.array(positions),
        **{task: pa.array(label) for task, label in labels.items()},
        "play_time_ms": pa.array(chances.play_time_ms(true)),
        "date": pa.array(page_dates[page]),
        "timestamp_ms": pa.array(times[page]),
    }
    truth = {
        **{f"true_{task}": pa.array(p.astype(np.float32)) for task, p in true.probabilities.items()},
        "true_click_at_top": pa.array(true.click_at_top.astype(np.float32)),
        "true_play_time_ms": pa.array(true.mean_play_time_ms.astype(np.float32)),
    }
    return pa.table(logged), pa.table(truth)


def _dates(times_ms: Integers) -> npt.NDArray[np.int32]:
    """Milliseconds to yyyymmdd, as a number."""
    days = pc.strftime(pa.array(times_ms, pa.timestamp("ms")), "%Y%m%d")
    dates: npt.NDArray[np.int32] = days.cast(pa.int32()).to_numpy()
    return dates


class _Files:
    """Numbered Parquet files of at most ROWS_PER_FILE rows, one row group per chunk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._files, self._rows = folder, 0, 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, table: pa.Table) -> None:
        if self._writer is None or self._rows + table.num_rows > ROWS_PER_FILE:
            self._close()
            path = self._folder / f"impressions-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            self._files, self._rows = self._files + 1, 0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._rows += table.num_rows

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write_manifest(path: Path, rows: int, seed: int, world: FeedWorld, means: dict[str, float], history: int) -> None:
    dates = _dates(FIRST_DAY.astype(np.int64) + np.arange(DAYS) * 24 * HOUR_MS).tolist()
    content = {
        "format": 1,
        "seed": seed,
        "rows": rows,
        "users": world.users,
        "items": world.items,
        "dates": {"first": dates[0], "train_last": dates[-3], "validation": dates[-2], "test": dates[-1]},
        "label_means": means,
        "constants": {**feed.constants(), "max_history": history},
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
