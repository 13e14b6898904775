"""Data report of a log, before anything is trained on it: `python -m training report CONFIG`.

In: a training file. Out: data_report.json and data_report.md in its output folder: rows, label rates and observed
shares by task, missing and unknown values and list lengths by feature, for each split and each value of the split
column, and how far each of these has drifted from the training split. One pass over the log in bounded memory, after
one over the training split where nothing was fitted beforehand.
"""

import logging
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from model.features.encoder import FittedFeatures
from model.schema import FeedSchema
from training.config import SplitName, TrainingConfig
from training.data.index import LogIndex, index_of
from training.data.reader import LogReader
from training.fit.chains import MOST_WITHOUT, chain_lines, chains_of_labels, is_broken
from training.fit.id_report import UNKNOWN
from training.fit.partitions import count_log
from training.fit.tally import ChainCounts, LabelCounts, PartCounts, by_chance, drift, known_lookups
from training.fit.vocabulary import fitted_of_file
from training.run.resumption import with_windows_of_run
from training.run.run import REPORT_JSON, REPORT_MARKDOWN, locked, refuse_no_run, write_json, write_text
from training.tasks import learned

log = logging.getLogger(__name__)

# Jensen-Shannon divergence, bits, from which a feature is named: about where PSI, 8 ln 2 times as much, is at its
# usual 0.25.
DRIFTED = 0.05
SHOWN = 5
# A label so large, and so many times the mean of the others, is taken for a fault of its row.
ABSURD, ABSURD_RATIO = 1e9, 1e6


@dataclass(frozen=True, slots=True)
class DataReport:
    """A report: its content, as JSON, and the warnings for the user."""

    content: dict[str, Any]
    warnings: tuple[str, ...]

    def log_warnings(self) -> None:
        """Log the warnings."""
        for warning in self.warnings:
            log.warning("%s", warning)

    def write(self, folder: Path) -> Path:
        """Write both files, and return the Markdown's path."""
        write_json(folder / REPORT_JSON, self.content)
        write_text(folder / REPORT_MARKDOWN, "\n".join(_markdown(self.content)) + "\n")
        return folder / REPORT_MARKDOWN


def report_of_file(config: TrainingConfig, *, show: bool = True) -> Path:
    """Reports on a training file's data into its output folder, and returns the Markdown's path. Raises ValueError for
    faults in the data."""
    refuse_no_run(config)
    config = with_windows_of_run(config)
    schema = config.feed_schema()
    reader = LogReader(config.data, schema)
    index = index_of(reader)
    index.found(reader.files, config.data.group_by).log_counts()
    with locked(config.output):
        fitted = fitted_of_file(config, schema, index.content(), show=show)
        report = data_report(reader, index, fitted, show=show)
        report.log_warnings()
        return report.write(config.output)


def data_report(
    reader: LogReader, index: LogIndex, fitted: FittedFeatures | None = None, *, show: bool = True
) -> DataReport:
    """Read the log once. Without what was `fitted`, unknown ids are counted for vocabularies of the schema alone.

    Raises ValueError for faults in the data and for a task whose training labels are all alike."""
    schema = reader.schema
    lookups = known_lookups(schema, fitted)
    counted = count_log(reader, index, lookups, show=show)
    train = counted.splits["train"]
    refuse_constant_labels(schema, train.labels)
    content = {
        "data": str(reader.config.path),
        "content": index.content(),
        "given": {task.name: task.given for task in schema.tasks},
        "chains": [
            line
            for split, counts in counted.splits.items()
            for line in chain_lines(schema, chains_of_labels(counts.labels), f"split {split}")
        ],
        "split_column": reader.selector.column,
        "split_values": counted.values,
        "left_out": index.skipped,
        "found": index.found(reader.files, reader.config.group_by).lines(),
        "splits": {split: _described(schema, counts, train, lookups) for split, counts in counted.splits.items()},
        "partitions": [
            {"split": split, "value": value, **_described(schema, counts, train, lookups)}
            for (split, value), counts in sorted(counted.parts.items(), key=lambda item: _in_order(*item[0]))
        ],
    }
    warnings = (*counted.leaks, *_warnings(schema, content))
    return DataReport({**content, "warnings": list(warnings)}, warnings)


def _in_order(split: SplitName, value: str) -> tuple[int, bool, float, str]:
    """Split as training takes them, numbers by size."""
    is_number = value.removeprefix("-").isdecimal()
    return get_args(SplitName).index(split), not is_number, float(value) if is_number else 0.0, value


def refuse_constant_labels(schema: FeedSchema, train: Mapping[str, LabelCounts]) -> None:
    """Raise ValueError for a task that has nothing to learn in the training split, and warns of a label beside which
    all others vanish."""
    for task in schema.tasks:
        observed, totals, least, most, _ = train[task.name]
        if not observed:
            raise ValueError(f"task {task.name}: no row of split train has a label (mask '{task.mask}' is never 1)")
        if least == most:
            label = learned(task).label_words(least)
            raise ValueError(
                f"task {task.name}: label '{task.label}' is {label} in all {observed:,} rows of split train that "
                "count; fix the column, or leave the task out (tasks: [...])"
            )
        # Of all but one row: their own sum may be lost in the rounding of the largest label.
        mean_of_others = max(totals[0] - most, 0.0) / max(observed - 1, 1)
        if most > ABSURD and most > ABSURD_RATIO * mean_of_others:
            log.warning(
                "task %s: label '%s' is %g in a row of split train, over %g times the mean of all others, which vanish "
                "beside it; fix that row, or leave it out",
                task.name, task.label, most, ABSURD_RATIO,
            )  # fmt: skip


def _described(
    schema: FeedSchema, part: PartCounts, train: PartCounts, has_vocabulary: Container[str]
) -> dict[str, Any]:
    drifts = drift(schema, part, train)
    tasks, features = {}, {}
    for task in schema.tasks:
        labels, reference = part.labels[task.name], train.labels[task.name]
        rates, of_train = _rates(labels), _rates(reference)
        pairs = zip(rates, of_train, strict=True)
        ratios = [rate / other if rate is not None and other else None for rate, other in pairs]
        tasks[task.name] = {
            "observed_share": _share(labels.observed, part.rows),
            **learned(task).label_report(rates),
            "against_train": ratios[0] if len(ratios) == 1 else dict(zip(task.outputs, ratios, strict=True)),
            "is_constant": labels.least == labels.most,
            **({} if labels.chain is None else {"chain": labels.chain._asdict()}),
        }
    for feature in schema.features:
        counts = part.features[feature.name]
        about: dict[str, Any] = {"missing_share": _share(counts.missing, part.rows), "drift": drifts[feature.name]}
        if feature.name in has_vocabulary:
            about["unknown_share"] = _share(counts.unknown, counts.values)
        if feature.is_list:
            about |= {
                "mean_length": _share(counts.values, part.rows),
                "longest": counts.longest,
                "cut_share": _share(counts.cut, part.rows),
            }
        features[feature.name] = about
    return {"rows": part.rows, "tasks": tasks, "features": features}


def _rates(labels: LabelCounts) -> list[float | None]:
    return [_share(total, labels.observed) for total in labels.totals]


def _share(count: float, of: int) -> float | None:
    return count / of if of else None


def _warnings(schema: FeedSchema, content: dict[str, Any]) -> Iterator[str]:
    for split, about in content["splits"].items():
        for name, task in about["tasks"].items():
            if task["is_constant"] or not task["observed_share"]:
                yield f"task {name}: split {split} has one label only"
            if "chain" in task and is_broken(ChainCounts(**task["chain"])):
                refused = "; training refuses such a chain" if split == "train" else ""
                share = f"over {MOST_WITHOUT:.0%} of its positives in split {split}"
                yield f"task {name}: {share} are without what it is given{refused}"
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
    column = content["split_column"]
    lines += ["", *(f"- {line}" for line in content["found"]), f"- split column '{column}': {content['split_values']}"]
    parts = [
        *((split, "all", about) for split, about in content["splits"].items()),
        *((about["split"], about["value"], about) for about in content["partitions"]),
    ]
    tasks = list(parts[0][2]["tasks"])
    lines += ["", "## Labels: rate, mean or shares of classes (share of rows that count)", ""]
    lines += [f"| split | {column} | rows | {' | '.join(tasks)} |", "|---" * (3 + len(tasks)) + "|"]
    for split, value, about in parts:
        cells = [
            f"{_label_cell(task)} ({task['observed_share']:.0%})" if task["observed_share"] else "-"
            for task in about["tasks"].values()
        ]
        lines.append(f"| {split} | {value} | {about['rows']:,} | {' | '.join(cells)} |")
    if content["chains"]:
        lines += ["", "## Chains: positives without the outcome that they are given", ""]
        lines += [f"- {line}" for line in content["chains"]]
    lines += ["", "## Features, by split: missing / unknown / drift from train (Jensen-Shannon, bits)", ""]
    splits = list(content["splits"])
    lines += [f"| feature | {' | '.join(splits)} | most drifted part |", "|---" * (2 + len(splits)) + "|"]
    for name in parts[0][2]["features"]:
        cells = [_feature_cell(content["splits"][split]["features"][name]) for split in splits]
        worst = max(content["partitions"], key=lambda part: part["features"][name]["drift"])
        cells.append(f"{worst['split']} {worst['value']}: {worst['features'][name]['drift']:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _label_cell(about: dict[str, Any]) -> str:
    if "class_shares" in about:
        return ", ".join(f"{name} {share:.1%}" for name, share in about["class_shares"].items())
    return f"{about.get('label_rate', about.get('label_mean')):.4g}"


def _feature_cell(about: dict[str, Any]) -> str:
    shares = [about["missing_share"], about.get("unknown_share")]
    shown = [*("-" if share is None else f"{share:.1%}" for share in shares), f"{about['drift']:.3f}"]
    lengths = f", {about['mean_length']:.1f} long" if about.get("mean_length") is not None else ""
    return " / ".join(shown) + lengths
