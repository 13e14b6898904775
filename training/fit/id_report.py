"""Fate of the ids of a log in a feed's tables: kept or unknown, alone in their row or sharing it.

In: how often each id of a table occurs in the training split and in the validation split. Out: a `TableReport` of each
table, and all of them as Markdown. Shares are of 1.

Shapes: H ids that have a row.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.features.fitted import FittedFeatures, count_ids
from model.features.id_counts import Counts
from model.features.id_lookup import OOV_ROW, lookup_of, words_of
from model.features.kinds.columns import Column, Ids, Values
from model.schema import FeedSchema, Table
from model.strict_yaml import StrictModel
from training.run.run import write_json

log = logging.getLogger(__name__)

IDS = "ids.json"
PAGE_TITLE = "# Ids and tables"

# Share of unknown ids from which a feature or table is named.
UNKNOWN = 0.1
MIN_COUNTS = (1, 2, 5, 10, 20, 100)
# Recommended buckets: so many of the ids share all their rows with another ...
SHARING = 0.1
# ... and, where an id has two rows, no more ids than this have one row, lest it be mostly others'.
IDS_PER_ROW = 4


class Collisions(StrictModel):
    """Ids of a hashed table that have all their rows in common with another. Shares are of distinct ids, of
    occurrences, and as expected by chance for as many ids. A sample of the ids leaves the first two unknown. `buckets`
    would leave SHARING of them."""

    ids: float | None
    occurrences: float | None
    expected: float
    buckets: int


class Vocabulary(StrictModel):
    """Size of a vocabulary with this `min_count`, and the share of the training split's ids that it lacks."""

    min_count: int
    ids: int
    oov: float


class TableReport(StrictModel):
    """One table. `occurrences` are ids in the training split, nulls left out, `distinct` those that differ. `unseen` is
    the share of the validation split's ids that the training split does not have, `oov_...` the share that takes the
    OOV row. In a table with slots it is as if the commonest ids had them: no policy of evictions does better. Where ids
    were too many to count all, either `sampled` of them represent all, or the rarest were dropped: counts are then too
    low by at most `undercount`, and shares of unknown ids upper bounds."""

    name: str
    features: tuple[str, ...]
    rows: int
    dim: int
    slots: int | None = None
    occurrences: int
    distinct: int
    undercount: int
    sampled: float
    unseen: float
    oov_train: float
    oov_validation: float
    collisions: Collisions | None
    vocabularies: tuple[Vocabulary, ...]


def table_reports(
    schema: FeedSchema, fitted: FittedFeatures, train: Mapping[str, Counts], validation: Mapping[str, Counts]
) -> list[TableReport]:
    """A report of each table, from the counts of its ids in both splits."""
    return [_report(table, fitted, train[table.name], validation[table.name]) for table in schema.tables]


def reports_of_columns(
    schema: FeedSchema, fitted: FittedFeatures, train: Mapping[str, Column], validation: Mapping[str, Column]
) -> list[TableReport]:
    """The same, of splits that are in memory as columns."""
    return table_reports(schema, fitted, count_ids(schema.tables, train), count_ids(schema.tables, validation))


def _report(table: Table, fitted: FittedFeatures, train: Counts, validation: Counts) -> TableReport:
    ids, counts = train.entries()
    if table.slots is not None:
        held = round(table.slots * 0.5**train.halvings)
        fitted = _commonest_hold(held, table.name, ids, counts)
    lookup = lookup_of(table, fitted)
    validation.thin_out(train.halvings)
    later_ids, later_counts = validation.entries()
    rows = lookup(Column(ids))
    share = 0.5**train.halvings
    # Without a sample what was dropped counts as unknown.
    total = int(counts.sum()) if train.sampled else train.total
    later_total = int(later_counts.sum()) if validation.sampled else validation.total
    is_known = _is_among(later_ids, ids)
    return TableReport(
        name=table.name,
        features=table.features,
        rows=lookup.rows if table.slots is None else table.slots + 1,
        dim=table.dim,
        slots=table.slots,
        occurrences=train.total,
        distinct=round(len(ids) / share),
        undercount=train.undercount,
        sampled=share,
        unseen=_share(int(later_counts[is_known].sum()), later_total),
        oov_train=_share(int(counts[rows != OOV_ROW].sum()), total),
        oov_validation=_share(int(later_counts[lookup(Column(later_ids)) != OOV_ROW].sum()), later_total),
        collisions=None if table.buckets is None else _collisions(table.buckets, table.hashes, rows, counts, share),
        vocabularies=tuple(
            Vocabulary(
                min_count=least,
                ids=round(int((counts >= least).sum()) / share),
                oov=_share(int(counts[counts >= least].sum()), total),
            )
            for least in MIN_COUNTS
        ),
    )


def _commonest_hold(slots: int, name: str, ids: Values, counts: NDArray[np.int64]) -> FittedFeatures:
    """The slots of a table as given by the best policy of evictions for the training split."""
    words_H = words_of(ids)[np.argsort(-counts, kind="stable")[:slots]]
    return FittedFeatures(vocabularies={name: tuple(words_H.tolist())})


def _share(held: int, total: int) -> float:
    """The share without a slot."""
    return 1 - held / total if total else 0.0


def _is_among(ids: NDArray[np.int64] | list[str], others: NDArray[np.int64] | list[str]) -> NDArray[np.bool_]:
    if isinstance(ids, list):
        known = set(others)
        return np.fromiter((identifier in known for identifier in ids), np.bool_, len(ids))
    return np.isin(ids, others, assume_unique=True)


def _collisions(buckets: int, hashes: int, rows: Ids, counts: NDArray[np.int64], share: float) -> Collisions:
    ids = round(len(rows) / share)
    expected, recommended = expected_sharing(ids, buckets, hashes), recommended_buckets(ids, hashes)
    if share < 1:
        return Collisions(ids=None, occurrences=None, expected=expected, buckets=recommended)
    _, place, times = np.unique(rows, return_inverse=True, return_counts=True)
    shares = times[place] > 1
    return Collisions(
        ids=float(shares.mean()) if len(rows) else 0.0,
        occurrences=int(counts[shares].sum()) / max(int(counts.sum()), 1),
        expected=expected,
        buckets=recommended,
    )


def expected_sharing(ids: int, buckets: int, hashes: int) -> float:
    """The share of `ids` that even hashing gives all their rows in common with another: 1 - (1 - 1/B**h)**(n - 1)."""
    if buckets == 1:
        return float(ids > 1)
    return -math.expm1(max(ids - 1, 0) * math.log1p(-(float(buckets) ** -hashes)))


def recommended_buckets(ids: int, hashes: int) -> int:
    """The least buckets that leave SHARING of the ids sharing all their rows, and no row to more than IDS_PER_ROW."""
    places = -1 / math.expm1(math.log1p(-SHARING) / max(ids - 1, 1))
    return math.ceil(places) if hashes == 1 else max(math.ceil(math.sqrt(places)), math.ceil(ids / IDS_PER_ROW))


def warn_of_unknown(reports: Sequence[TableReport]) -> None:
    """Logs which tables do not know many ids of the validation split."""
    for report in reports:
        if report.oov_validation >= UNKNOWN:
            share = _percent(report.oov_validation)
            log.warning("table %s: %s of the ids in the validation split are unknown to it", report.name, share)


def write_id_report(run: Path, reports: Sequence[TableReport]) -> None:
    """Write a run's `ids.json`, and say which tables do not know many ids, and of which hashed ones many ids share
    their rows."""
    write_json(run / IDS, {"tables": [report.model_dump(mode="json") for report in reports]})
    warn_of_unknown(reports)
    for report in reports:
        if report.collisions is not None and report.collisions.expected > SHARING:
            log.info(
                "table %s: about %s of its %s ids share all their rows with another; with %s buckets %s would",
                report.name,
                _percent(report.collisions.expected),
                f"{report.distinct:,}",
                f"{report.collisions.buckets:,}",
                _percent(SHARING),
            )


def as_markdown(reports: Sequence[TableReport], train_rows: int, validation_rows: int) -> str:
    """The reports as a page."""
    lines = [
        PAGE_TITLE,
        "",
        f"{train_rows:,} rows of the training split, {validation_rows:,} of the validation split; nulls do not count.",
        "",
        "| table | read by | rows x dim | ids | distinct | OOV train | OOV validation | unseen in training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {report.name} | {', '.join(report.features)} | {report.rows:,} x {report.dim} | {report.occurrences:,} | "
        f"{_how_exact(report)}{report.distinct:,} | {_percent(report.oov_train)} | "
        f"{_percent(report.oov_validation)} | {_percent(report.unseen)} |"
        for report in reports
    ]
    if slots := [report.name for report in reports if report.slots is not None]:
        lines += ["", f"OOV of tables with slots ({', '.join(slots)}): if their commonest ids held them all."]
    if hashed := [(report, report.collisions) for report in reports if report.collisions is not None]:
        lines += [
            "",
            "## Hashed tables",
            "",
            "Ids that have all their rows in common with another id.",
            "",
            f"| table | of distinct ids | by chance | of occurrences | buckets for {_percent(SHARING)} of ids |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {report.name} | {_percent(found.ids)} | {_percent(found.expected)} | {_percent(found.occurrences)} | "
            f"{found.buckets:,} |"
            for report, found in hashed
        ]
    lines += [
        "",
        "## Vocabularies",
        "",
        "Ids that are kept, and the share of the training split's that is then unknown, by min_count.",
        "",
        f"| table | {' | '.join(map(str, MIN_COUNTS))} |",
        f"|---|{'---|' * len(MIN_COUNTS)}",
    ]
    lines += [
        f"| {report.name} | {' | '.join(f'{kept.ids:,} ({_percent(kept.oov)})' for kept in report.vocabularies)} |"
        for report in reports
    ]
    notes = [
        f"- {report.name}: counts are too low by {report.undercount:,} at most; every id that occurs min_count + "
        f"{report.undercount:,} times is kept, and shares of unknown ids are upper bounds."
        for report in reports
        if report.undercount
    ]
    notes += [
        f"- {report.name}: estimated from {_percent(report.sampled)} of its distinct ids."
        for report in reports
        if report.sampled < 1
    ]
    if notes:
        lines += ["", "Tables with more distinct ids than are counted exactly:", "", *notes]
    return "\n".join(lines) + "\n"


def _how_exact(report: TableReport) -> str:
    return "at least " if report.undercount else "about " if report.sampled < 1 else ""


def _percent(share: float | None) -> str:
    if share is None:
        return "not known of a sample"
    return f"{100 * share:.2f} %" if share == 0 or share >= 0.00005 else "< 0.01 %"
