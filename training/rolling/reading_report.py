"""Figures of a reading -> blocks of a report: the verdict, methods, tasks, ensembles and slices.

In: results of a reading. Out: headings, paragraphs and tables. The frozen choice is tested as it stands, on two figures
that must both be ahead. All other differences are corrected after Holm.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from training.compare.document import Block, Heading, Paragraph, Table
from training.compare.measures import METRICS
from training.compare.resampling import MEAN
from training.rolling.choice_report import point_words
from training.rolling.figures import ALL, direction
from training.wording import counted

Json = dict[str, Any]


def reading_blocks(results: Json) -> Iterator[Block]:
    """All blocks of a reading's report."""
    comparison, frozen = results["comparison"], results["frozen"]
    metrics, day = comparison["metrics"], comparison["days"]["test"]
    whole = results["slices"][ALL]
    yield Heading(1, f"Comparison {comparison['name']}: {day}")
    yield Paragraph(
        f"{frozen['chosen']} was chosen on {' to '.join(comparison['days']['choose'])} and frozen on "
        f"{frozen['frozen']}, with the other methods' own choices. Each was trained up to two days before {day} with "
        f"{len(comparison['seeds'])} seeds, and its best point chosen on the day before it. Intervals are 95 %, over "
        f"seeds and users together: a crossed bootstrap of {comparison['replicates']} draws of users. Percentiles of "
        "draws of both, users and seeds, stand beside them."
    )
    yield Paragraph(_earlier(results["earlier_readings"], day))
    if frozen.get("leaks"):
        yield Paragraph(f"Leaks, before it was frozen: {frozen['leaks']}")
    yield Heading(2, "Verdict")
    yield Paragraph(verdict(results))
    for metric in metrics:
        yield Heading(2, f"Mean {METRICS[metric].title} over tasks ({METRICS[metric].better} is better)")
        yield _methods(whole["metrics"][metric]["tasks"][MEAN], comparison["baseline"])
    yield Heading(2, "Mean answer of all seeds")
    yield Paragraph("Intervals over users alone: the seeds are those that would be served.")
    yield _ensembles(results["ensembles"], metrics)
    for metric in metrics:
        yield Heading(2, f"{METRICS[metric].title} by task")
        yield _tasks(whole["metrics"][metric]["tasks"], comparison["baseline"])
    yield Heading(2, "Slices")
    yield Paragraph("Differences of means from the baseline. A task with labels of one class only is left out there.")
    yield _slices(results["slices"], metrics, comparison["baseline"])
    yield Heading(2, "What is compared")
    rows = []
    for name, method in frozen["methods"].items():
        trials = f"{method['trial']} of {method['of']}" + (f", {method['failed']} failed" if method["failed"] else "")
        rows.append([name, results["sizes"][name], trials, point_words(method["point"])])
    yield Table(["method", "size", "trial", "chosen"], rows, is_words=True)
    versions = ", ".join(f"{library} {version}" for library, version in results["libraries"].items())
    yield Paragraph(
        f"Read on {results['date']} at commit {results['commit']}, trials at {', '.join(frozen['commits'])}, "
        f"{results['cores']} cores, {versions}."
    )


def verdict(results: Json) -> str:
    """Ahead, behind or no difference shown: the frozen choice against the baseline, on every primary figure."""
    comparison, chosen = results["comparison"], results["frozen"]["chosen"]
    baseline, words, signs = comparison["baseline"], [], []
    for metric in comparison["metrics"]:
        found = results["slices"][ALL]["metrics"][metric]["tasks"][MEAN][chosen]["against_baseline"]
        words.append(f"mean {METRICS[metric].title} {_difference(found)}{_power_words(found, comparison)}")
        low, high = found["low"], found["high"]
        is_clear = low is not None and low * high > 0
        signs.append(direction(metric) * (1 if found["difference"] > 0 else -1) if is_clear else 0)
    if all(sign == 1 for sign in signs):
        said = f"{chosen} is ahead of {baseline} in every primary figure"
    elif all(sign == -1 for sign in signs):
        said = f"{chosen} is behind {baseline} in every primary figure"
    else:
        said = f"{chosen} is not shown to be ahead of {baseline}, nor behind it, in every primary figure"
    return f"{said}: {', '.join(words)}."


def _power_words(found: Json, comparison: Json) -> str:
    if found["minimum_detectable"] is None:
        return ""
    return (
        f" (with power {comparison['power']:g} this day and {found['seeds']} seeds find "
        f"{found['minimum_detectable']:.5f} or more)"
    )


def _earlier(readings: list[Json], day: str) -> str:
    if not readings:
        return f"{day} was not read before."
    names = ", ".join(dict.fromkeys(reading["by"] for reading in readings))
    return f"{day} was read {counted(len(readings), 'time')} before ({names}). It confirms, and is no unseen day."


def _methods(entries: Mapping[str, Json], baseline: str) -> Table:
    rows = []
    for name, entry in entries.items():
        half = "" if entry["low"] is None else f" +- {entry['high'] - entry['mean']:.5f}"
        row = [name, str(entry["n"]), f"{entry['mean']:.5f}{half}"]
        rows.append([*row, *_against(entry, name == baseline)])
    head = [
        "method",
        "seeds",
        "mean over seeds",
        "difference",
        "p",
        "p, Holm",
        "percentiles of both",
        "found with power",
    ]
    return Table(head, rows)


def _against(entry: Json, is_baseline: bool) -> list[str]:
    if is_baseline:
        return ["baseline", "", "", "", ""]
    found = entry["against_baseline"]
    drawn = "-" if found["drawn_low"] is None else f"{found['drawn_low']:+.5f}..{found['drawn_high']:+.5f}"
    least = "-" if found["minimum_detectable"] is None else f"{found['minimum_detectable']:.5f}"
    return [_difference(found), _p(found["p"]), _p(found["p_holm"]), drawn, least]


def _tasks(tables: Mapping[str, Mapping[str, Json]], baseline: str) -> Table:
    rows = []
    for task, entries in tables.items():
        for name, entry in entries.items() if task != MEAN else ():
            found = entry.get("against_baseline")
            against = (
                ["baseline", "", ""] if found is None else [_difference(found), _p(found["p"]), _p(found["p_holm"])]
            )
            rows.append([task, name, f"{entry['mean']:.5f}", *against])
    return Table(["task", "method", "mean over seeds", "difference", "p", "p, Holm"], rows, is_words=True)


def _ensembles(ensembles: Json, metrics: list[str]) -> Table:
    rows = []
    for name in ensembles[metrics[0]][MEAN]:
        row = [name]
        for metric in metrics:
            found = ensembles[metric][MEAN][name]
            row += [f"{found['value']:.5f}", _difference(found) if found["difference"] is not None else "baseline"]
        rows.append(row)
    head = ["method", *(word for metric in metrics for word in (f"mean {METRICS[metric].title}", "difference"))]
    return Table(head, rows)


def _slices(slices: Json, metrics: list[str], baseline: str) -> Table:
    rows = []
    for name, part in slices.items():
        most = max(part["rows"].values())
        for metric in metrics:
            tasks = part["metrics"][metric].get("tasks")
            left_out = ", ".join(part["metrics"][metric]["left_out"]) or "-"
            for method, entry in {} if tasks is None else tasks[MEAN].items():
                if method != baseline:
                    against = _difference(entry["against_baseline"])
                    rows.append(
                        [name, f"{most:,}", f"{part['users']:,}", METRICS[metric].title, method, against, left_out]
                    )
    head = ["slice", "rows", "users", "metric", "method", "difference", "tasks left out"]
    return Table(head, rows, is_words=True)


def _difference(found: Json) -> str:
    interval = "" if found["low"] is None else f" ({found['low']:+.5f}..{found['high']:+.5f})"
    return f"{found['difference']:+.5f}{interval}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
