"""Data report of a log, before anything is trained on it: `python -m training report CONFIG`.

In: a training file. Out: data_report.json and data_report.md in its output folder: rows, label rates and observed
shares by task, missing and unknown values and list lengths by feature, for each split and each value of the split
column, and how far each of these has drifted from the training split. One pass over the log in bounded memory, after
one over the training split where nothing was fitted beforehand.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import track

from model.features.encoder import FittedFeatures
from model.features.id_lookup import Lookup
from model.features.kinds.columns import Column
from model.schema import BinaryTask, FeedSchema
from training.config import SplitName, TrainingConfig
from training.data.arrow import columns_from_arrow, plain
from training.data.bad_rows import BadRows
from training.data.index import LogIndex, index_of
from training.data.reader import LogReader
from training.data.selection import days_of
from training.fit.id_report import UNKNOWN
from training.fit.leaks import Times, Twins
from training.fit.tally import Tally, by_chance, drift, known_lookups
from training.fit.vocabulary import fitted_of_file
from training.run.run import REPORT_JSON, REPORT_MARKDOWN, locked, refuse_no_run, write_json, write_text

log = logging.getLogger(__name__)

# Values of the split column (of times, days) that are told apart. Of a column with more, a split is one part.
MOST_PARTITIONS = 100
MANY = f"(over {MOST_PARTITIONS} values)"
# Jensen-Shannon divergence, bits, from which a feature is named: about where PSI, 8 ln 2 times as much, is at its
# usual 0.25.
DRIFTED = 0.05
SHOWN = 5
# A label so large, and so many times the mean of the others, is taken for a fault of its row.
ABSURD, ABSURD_RATIO = 1e9, 1e6


@dataclass(frozen=True, slots=True)
class DataReport:
    """A report: what it says, as JSON, and what the user should look at."""

    content: dict[str, Any]
    warnings: tuple[str, ...]

    def say(self) -> None:
        """Logs what to look at."""
        for warning in self.warnings:
            log.warning("%s", warning)

    def write(self, folder: Path) -> Path:
        """Writes both files, and returns the Markdown's path."""
        write_json(folder / REPORT_JSON, self.content)
        write_text(folder / REPORT_MARKDOWN, "\n".join(_markdown(self.content)) + "\n")
        return folder / REPORT_MARKDOWN


def report_of_file(config: TrainingConfig, *, show: bool = True) -> Path:
    """Reports on a training file's data into its output folder, and returns the Markdown's path. Raises ValueError for
    faults in the data."""
    refuse_no_run(config)
    schema = config.feed_schema()
    reader = LogReader(config.data, schema)
    index = index_of(reader)
    index.found(reader.files, config.data.group_by).say()
    with locked(config.output):
        fitted = fitted_of_file(config, schema, index.content(), show=show)
        report = data_report(reader, index, fitted, show=show)
        report.say()
        return report.write(config.output)


def data_report(
    reader: LogReader, index: LogIndex, fitted: FittedFeatures | None = None, *, show: bool = True
) -> DataReport:
    """Reads the log once. Without what was `fitted`, unknown ids are counted for vocabularies of the schema alone.

    Raises ValueError for faults in the data and for a task whose training labels are all alike."""
    schema = reader.schema
    tallies, leaks = _tally(reader, index, fitted, show=show)
    splits = {split: Tally(schema) for split in reader.selector.selections}
    for (split, _), tally in tallies.items():
        splits[split].merge(tally)
    refuse_constant_labels(schema, splits["train"])
    has_vocabulary = set(known_lookups(schema, fitted))
    content = {
        "data": str(reader.config.path),
        "content": index.content(),
        "split_column": reader.selector.column,
        "left_out": index.skipped,
        "found": index.found(reader.files, reader.config.group_by).lines(),
        "splits": {
            split: _described(schema, tally, splits["train"], has_vocabulary) for split, tally in splits.items()
        },
        "partitions": [
            {"split": split, "value": value, **_described(schema, tally, splits["train"], has_vocabulary)}
            for (split, value), tally in sorted(tallies.items(), key=lambda item: _in_order(*item[0]))
        ],
    }
    warnings = (*leaks, *_warnings(schema, content))
    return DataReport({**content, "warnings": list(warnings)}, warnings)


def _in_order(split: SplitName, value: str) -> tuple[int, bool, float, str]:
    """Splits as training takes them, numbers by size."""
    is_number = value.removeprefix("-").isdecimal()
    return get_args(SplitName).index(split), not is_number, float(value) if is_number else 0.0, value


def refuse_constant_labels(schema: FeedSchema, train: Tally) -> None:
    """Raises ValueError for a task that has nothing to learn in the training split, and warns of a label beside which
    all others vanish."""
    for task in schema.tasks:
        observed, least, most = (which[task.name] for which in (train.observed, train.label_least, train.label_most))
        if not observed:
            raise ValueError(f"task {task.name}: no row of split train has a label (mask '{task.mask}' is never 1)")
        if least == most:
            raise ValueError(
                f"task {task.name}: label '{task.label}' is {least:g} in all {observed:,} rows of split train that "
                "count; mend the column, or leave the task out (tasks: [...])"
            )
        # Of all but one row: their own sum may be lost in the rounding of the largest label.
        mean_of_others = max(train.label_sum[task.name] - most, 0.0) / max(observed - 1, 1)
        if most > ABSURD and most > ABSURD_RATIO * mean_of_others:
            log.warning(
                "task %s: label '%s' is %g in a row of split train, over %g times the mean of all others, which vanish "
                "beside it; fix that row, or leave it out",
                task.name, task.label, most, ABSURD_RATIO,
            )  # fmt: skip


def _tally(
    reader: LogReader, index: LogIndex, fitted: FittedFeatures | None, *, show: bool
) -> tuple[dict[tuple[SplitName, str], Tally], list[str]]:
    """Counts by split and value of its column, and what leaks."""
    schema, lookups = reader.schema, known_lookups(reader.schema, fitted)
    times, twins = Times(reader.selector.column), Twins(schema)
    parts = _Parts(schema, lookups)
    groups = sorted(
        {(group.file, group.group) for split in reader.selector.selections for group in index.groups(split)}
    )
    console = Console(stderr=True, quiet=not show)
    bad_rows = BadRows(reader.config.max_bad_rows)
    for number, group in track(groups, "data report", console=console, disable=not (show and console.is_terminal)):
        file = reader.files.files[number]
        with reader.files.opened(file) as parquet:
            for part in reader.parts(file, parquet, group):
                for split, mask in reader.selector.masks(part.table.column(reader.selector.column), part.place).items():
                    is_in_B = mask.to_numpy()
                    if not is_in_B.any():
                        continue
                    table, columns = reader.wanted(part, is_in_B, bad_rows)
                    times.add(split, table.column(reader.selector.column))
                    if split == "train":
                        twins.add(table, columns)
                    values = days_of(plain(table.column(reader.selector.column)), reader.config.split.timezone)
                    parts.add(split, values, table, columns)
    return parts.tallies, [*times.warnings(), *twins.warnings()]


class _Parts:
    """Counts by split and value of its column. Of more values than are told apart, a split is one part."""

    def __init__(self, schema: FeedSchema, lookups: Mapping[str, Lookup]) -> None:
        self.tallies: dict[tuple[SplitName, str], Tally] = {}
        self._schema = schema
        self._lookups = lookups
        self._are_many = False

    def add(self, split: SplitName, values: pa.ChunkedArray, table: pa.Table, columns: Mapping[str, Column]) -> None:
        """Counts rows of a split; `values` are theirs of the split column."""
        if not self._are_many:
            by_value = _by_value(values)
            if by_value is not None:
                fresh = sum((split, value) not in self.tallies for value, _ in by_value)
                if len(self.tallies) + fresh <= MOST_PARTITIONS:
                    for value, rows_B in by_value:
                        self._add(split, value, table, columns, rows_B)
                    return
            self._merge_values()
        self._add(split, MANY, table, columns, None)

    def _add(
        self,
        split: SplitName,
        value: str,
        table: pa.Table,
        columns: Mapping[str, Column],
        rows_B: np.ndarray[Any, Any] | None,
    ) -> None:
        tally = self.tallies.setdefault((split, value), Tally(self._schema))
        if rows_B is not None:
            table = table.take(pa.array(rows_B))
            columns = columns_from_arrow(self._schema, table, is_coded=True)
        tally.add(self._schema, table, columns, self._lookups)

    def _merge_values(self) -> None:
        self._are_many = True
        by_value, self.tallies = self.tallies, {}
        for (split, _), tally in by_value.items():
            self.tallies.setdefault((split, MANY), Tally(self._schema)).merge(tally)


def _by_value(values: pa.ChunkedArray) -> list[tuple[str, np.ndarray[Any, Any] | None]] | None:
    """Values of a column, as text, each with its rows, None for all of them. None where they are more than are told
    apart."""
    encoded = values.combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MOST_PARTITIONS:
        return None
    names = [*map(str, encoded.dictionary.to_pylist()), "null"]
    codes_B = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()
    held = np.unique(codes_B).tolist()
    return [(names[code], None if len(held) == 1 else np.flatnonzero(codes_B == code)) for code in held]


def _described(schema: FeedSchema, tally: Tally, train: Tally, has_vocabulary: set[str]) -> dict[str, Any]:
    drifts = drift(schema, tally, train)
    tasks, features = {}, {}
    for task in schema.tasks:
        observed = tally.observed[task.name]
        rate = tally.label_sum[task.name] / observed if observed else None
        reference = train.label_sum[task.name] / max(train.observed[task.name], 1)
        tasks[task.name] = {
            "observed_share": _share(observed, tally.rows),
            "label_rate" if isinstance(task, BinaryTask) else "label_mean": rate,
            "against_train": rate / reference if rate is not None and reference else None,
            "is_constant": bool(observed) and tally.label_least[task.name] == tally.label_most[task.name],
        }
    for feature in schema.features:
        counts = tally.features[feature.name]
        about: dict[str, Any] = {"missing_share": _share(counts.missing, tally.rows), "drift": drifts[feature.name]}
        if feature.name in has_vocabulary:
            about["unknown_share"] = _share(counts.unknown, counts.values)
        if feature.is_list:
            about |= {
                "mean_length": _share(counts.values, tally.rows),
                "longest": counts.longest,
                "cut_share": _share(counts.cut, tally.rows),
            }
        features[feature.name] = about
    return {"rows": tally.rows, "tasks": tasks, "features": features}


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _warnings(schema: FeedSchema, content: dict[str, Any]) -> Iterator[str]:
    for split, about in content["splits"].items():
        for name, task in about["tasks"].items():
            if task["is_constant"] or not task["observed_share"]:
                yield f"task {name}: split {split} has one label only"
        for name, feature in about["features"].items():
            if feature["missing_share"] == 1:
                yield f"feature {name}: missing in every row of split {split}"
        of_chance = by_chance(schema, about["rows"], content["splits"]["train"]["rows"])
        drifts = sorted(((feature["drift"], name) for name, feature in about["features"].items()), reverse=True)
        drifted = [f"{name} {value:.2f}" for value, name in drifts if value - of_chance[name] >= DRIFTED]
        if drifted and split != "train":
            shown = ", ".join(drifted[:SHOWN]) + (" ..." if len(drifted) > SHOWN else "")
            has = "1 feature has" if len(drifted) == 1 else f"{len(drifted)} features have"
            yield f"split {split}: {has} drifted from split train by {DRIFTED:g} bits: {shown}"
        for name, feature in about["features"].items():
            if (unknown := feature.get("unknown_share")) is not None and unknown >= UNKNOWN:
                yield f"feature {name}: {unknown:.0%} of its ids in split {split} are unknown"


def _markdown(content: dict[str, Any]) -> list[str]:
    lines = [f"# Data report: {content['data']}", ""]
    lines += [f"- {warning}" for warning in content["warnings"]] or ["No warning."]
    lines += ["", *(f"- {line}" for line in content["found"])]
    parts = [
        *((split, "all", about) for split, about in content["splits"].items()),
        *((about["split"], about["value"], about) for about in content["partitions"]),
    ]
    tasks = list(parts[0][2]["tasks"])
    column = content["split_column"]
    lines += ["", "## Labels: rate or mean (share of rows that count)", ""]
    lines += [f"| split | {column} | rows | {' | '.join(tasks)} |", "|---" * (3 + len(tasks)) + "|"]
    for split, value, about in parts:
        cells = []
        for task in about["tasks"].values():
            rate = task.get("label_rate", task.get("label_mean"))
            cells.append("-" if rate is None else f"{rate:.4g} ({task['observed_share']:.0%})")
        lines.append(f"| {split} | {value} | {about['rows']:,} | {' | '.join(cells)} |")
    lines += ["", "## Features, by split: missing / unknown / drift from train (Jensen-Shannon, bits)", ""]
    splits = list(content["splits"])
    lines += [f"| feature | {' | '.join(splits)} | most drifted part |", "|---" * (2 + len(splits)) + "|"]
    for name in parts[0][2]["features"]:
        cells = [_feature_cell(content["splits"][split]["features"][name]) for split in splits]
        worst = max(content["partitions"], key=lambda part: part["features"][name]["drift"])
        cells.append(f"{worst['split']} {worst['value']}: {worst['features'][name]['drift']:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _feature_cell(about: dict[str, Any]) -> str:
    shares = [about["missing_share"], about.get("unknown_share")]
    shown = [*("-" if share is None else f"{share:.1%}" for share in shares), f"{about['drift']:.3f}"]
    lengths = f", {about['mean_length']:.1f} long" if about.get("mean_length") is not None else ""
    return " / ".join(shown) + lengths
