"""results -> results.json, results.md with pictures/, report.html, and the tables printed at the end."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from training.compare import inside, over_training
from training.compare.contrasts import contrast_blocks
from training.compare.curves import curve_blocks
from training.compare.document import Block, Heading, Image, Paragraph, Table, write_document
from training.compare.measures import METRICS
from training.compare.plots import differences, quality_against_cost
from training.compare.resampling import MEAN
from training.compare.scoring_cost import CANDIDATES
from training.compare.search_report import chosen_on_validation
from training.run.run import write_json

RESULTS = "results.json"
# Tasks side by side in a table, with an interval over seeds and users and without: more would be wider than a page of
# 1,280 pixels.
TASKS_ABREAST = {True: 1, False: 2}

Json = dict[str, Any]


def write_report(folder: Path, results: Json) -> Path:
    """Write the files into `folder` and return the page's path."""
    write_json(folder / RESULTS, results)
    return write_document(folder, results["experiment"]["name"], list(_blocks(results, folder)))


def print_tables(results: Json) -> None:
    """Print the blocks that a terminal can show: per dataset the verdicts and the test tables."""
    print_blocks(_blocks(results))


def print_blocks(blocks: Iterable[Block]) -> None:
    """Print blocks, pictures left out."""
    console = Console(highlight=False)
    console.width = max(console.width, 150)
    for block in blocks:
        match block:
            case Heading(_, text):
                console.print(f"\n[bold]{text}[/bold]")
            case Paragraph(text):
                console.print(text, markup=False)
            case Table(head, rows, is_words):
                table = RichTable()
                table.add_column(head[0], no_wrap=True)
                for name in head[1:]:
                    table.add_column(name, justify="left" if is_words else "right")
                for row in rows:
                    table.add_row(*row)
                console.print(table)
            case Image():
                continue


def _blocks(results: Json, folder: Path | None = None) -> Iterator[Block]:
    """All blocks, with pictures of the runs in `folder`. Without one, what a terminal can show."""
    brief = folder is None
    experiment, cells = results["experiment"], results["cells"]
    yield Heading(1, f"Comparison {experiment['name']}")
    yield Paragraph(
        f"{cells['finished']} of {cells['planned']} cells are finished. Training them took "
        f"{cells['training_seconds'] / 60:.0f} minutes in all, one thread each. Epochs were chosen on the validation "
        "split. The test split was read once training was over. Intervals are 95 %: +- over seeds by Student's t, on "
        "the test split one interval over seeds and users together, by a crossed bootstrap "
        f"({experiment['replicates']} draws of users). p belongs to that interval, on the validation split to the "
        "paired t-test over seeds, and is corrected after Holm for the number of networks."
    )
    if cells["finished"] < cells["planned"]:
        yield Paragraph(
            "This report is partial: networks may differ in their number of seeds, given in each table, and the test "
            "split of the finished cells was read before the others were trained."
        )
    for cell, fault in results["failures"].items():
        yield Paragraph(f"Failed: {cell}: {fault}")
    for name, dataset in results["datasets"].items():
        yield from _dataset(name, dataset, experiment, brief=brief)
        if folder is not None:
            yield from over_training.blocks(dataset, experiment["baseline"])
            yield from inside.blocks(dataset, folder)
    if not brief:
        versions = ", ".join(f"{library} {version}" for library, version in results["libraries"].items())
        yield Paragraph(
            f"Made on {results['date']} on {results['cores']} cores with {versions}. "
            f"Raw numbers, seed by seed: {RESULTS}."
        )


def _dataset(name: str, dataset: Json, experiment: Json, *, brief: bool) -> Iterator[Block]:
    baseline, verdict = experiment["baseline"], experiment["verdict"]
    yield Heading(2, f"Dataset {name}")
    if not brief:
        yield Paragraph("; ".join(_split_words(split, found) for split, found in dataset["splits"].items()) + ".")
    yield Heading(3, "What is compared")
    yield cost_table(dataset["cost"])
    if not brief:
        yield Paragraph(
            "Multiply-adds are those of the dense network's matrix products. Training rows are those of forward, "
            "backward and step, without reading data, with one thread on the machine of this report."
        )
        if any("leaves" in cost for cost in dataset["cost"].values()):
            yield Paragraph("Boosted trees: the leaves of all tasks' models.")
    yield from chosen_on_validation(dataset.get("search", {}), verdict["metric"])
    yield Heading(3, f"Verdicts against {baseline}")
    if dataset["verdicts"]:
        rows = [
            [network, found["verdict"], found["text"], "; ".join(found["cautions"]) or "-"]
            for network, found in dataset["verdicts"].items()
        ]
        yield Table(["network", "verdict", "why", "cautions"], rows, is_words=True)
    else:
        metric = METRICS[verdict["metric"]].title
        yield Paragraph(f"None: {metric} is undefined on the test split, or {baseline} has no finished seed.")
    if dataset["choice"] is not None:
        yield Paragraph(
            f"Best mean {METRICS[verdict['metric']].title} on the validation split, what one would choose before the "
            f"test: {dataset['choice']}."
        )
    for found in dataset["undefined"]:
        yield Paragraph(
            f"{METRICS[found['metric']].title} of {found['task']} is undefined on the {found['split']} split: "
            f"{found['reason']}. The task is left out of its table and mean."
        )
    for split in ("test",) if brief else ("test", "validation"):
        for metric, table in dataset["tables"][split].items():
            yield Heading(3, f"{METRICS[metric].title}, {split} split{_direction(metric)}")
            yield from metric_tables(table, dataset["seeds"], baseline, is_test=split == "test", brief=brief)
            png = differences(table, baseline, METRICS[metric].title) if split == "test" and not brief else None
            if png is not None:
                yield Image(f"differences of {METRICS[metric].title} from {baseline}", png)
    yield from contrast_blocks(dataset["contrasts"])
    yield from curve_blocks(dataset["curves"])
    yield from _scoring(dataset, verdict["metric"], baseline, brief=brief)


def _scoring(dataset: Json, metric: str, baseline: str, *, brief: bool) -> Iterator[Block]:
    """Quality beside what scoring costs."""
    scoring, title = dataset["scoring"], f"mean {METRICS[metric].title} (validation)"
    entries = dataset["tables"]["validation"].get(metric, {}).get(MEAN, {})
    most = str(max(CANDIDATES))
    rows = []
    for name, cost in sorted(scoring["costs"].items(), key=lambda one: one[1][most]["ms"]):
        entry = entries.get(name)
        rows.append(
            [
                name,
                *(f"{cost[str(count)]['ms']:.3f}" for count in CANDIDATES),
                f"{cost[most]['ratio']:.2f}",
                "-" if entry is None else f"{entry['mean']:.5f}",
                "yes" if name in scoring["front"] else "",
            ]
        )
    yield Heading(3, "Quality beside the cost of scoring")
    counts = [f"ms of {count} candidates" for count in CANDIDATES]
    yield Table(["network", *counts, f"times {baseline}'s at {most}", title, "on the front"], rows)
    if not brief:
        yield Paragraph(
            "CPU milliseconds of the scripted network's own products, or of all tasks' trees, in one thread: medians "
            "of interleaved blocks. No other network equals one of the front in both cost and quality. Trees are not "
            "served and are not on it."
        )
    if scoring["budget"] is not None:
        yield Paragraph(_budget_words(scoring["budget"]))
    if not brief and entries:
        ms = {name: cost[most]["ms"] for name, cost in scoring["costs"].items()}
        yield Image(
            f"{title} against milliseconds", quality_against_cost(entries, ms, scoring["front"], title, int(most))
        )


def _budget_words(budget: Json) -> str:
    under = f"Under the budget of {budget['ms']:g} ms for {budget['candidates']} candidates"
    if budget["best"] is None:
        return f"{under} there is no network."
    text = f"{under} {budget['best']} is best on the validation split."
    if budget["chosen"] == budget["best"]:
        return f"{text} No cheaper one is as good: it is the choice."
    found = budget["against_best"][budget["chosen"]]
    return (
        f"{text} {budget['chosen']} is the choice: the cheapest whose paired interval against it includes 0 "
        f"({found['difference']:+.5f}, {found['low']:+.5f}..{found['high']:+.5f})."
    )


def _split_words(split: str, found: Json) -> str:
    tasks = ", ".join(
        f"{name} {task['positives']:,} positives of {task['rows']:,}"
        if "positives" in task
        else f"{name} {task['rows']:,}"
        for name, task in found["tasks"].items()
    )
    return f"{split}: {found['rows']:,} rows, {found['users']:,} users ({tasks})"


def _direction(metric: str) -> str:
    better = METRICS[metric].better
    return " (1 is calibrated)" if better is None else f" ({better} is better)"


def metric_tables(
    table: Mapping[str, Json], seeds: Mapping[str, list[int]], baseline: str, *, is_test: bool, brief: bool
) -> Iterator[Table]:
    """One row per network, a table for every few tasks, the mean over tasks first. The test split's have an interval
    over seeds and users and its p, the validation split's p is over seeds.

    `brief`, for a terminal, is one table without intervals that compares in the mean over tasks alone."""
    # The mean of one task is that task.
    shown = [task for task in table if task != MEAN]
    shown = [MEAN, *shown] if MEAN in table and len(shown) > 1 else shown
    found = {
        task: [entry["against_baseline"] for entry in table[task].values() if "against_baseline" in entry]
        for task in shown
    }
    with_users = is_test and not brief and any(found.values())  # a metric without a better direction is not compared
    abreast = len(shown) if brief else TASKS_ABREAST[with_users]
    for start in range(0, len(shown), abreast):
        head, columns = ["network", "seeds"], []
        for task in shown[start : start + abreast]:
            is_compared = bool(found[task]) and (not brief or task == shown[0])
            columns.append((table[task], is_compared))
            head += ["mean over tasks" if task == MEAN else task]
            head += ["difference %", "p", *(["over seeds and users"] if with_users else [])] if is_compared else []
        rows = []
        for network, finished in seeds.items():
            row = [network, str(len(finished))]
            for entries, is_compared in columns:
                row.append(_value(entries[network], brief=brief))
                if is_compared:
                    found_here = entries[network].get("against_baseline")
                    is_baseline = network == baseline
                    row += _compared(found_here, is_baseline=is_baseline, is_test=is_test, brief=brief)
            rows.append(row)
        yield Table(head, rows)


def _compared(found: Json | None, *, is_baseline: bool, is_test: bool, brief: bool) -> list[str]:
    with_users = is_test and not brief
    if found is None:
        return ["baseline" if is_baseline else "-", "", *([""] if with_users else [])]
    p = found["both_p_holm" if is_test else "p_holm"]
    cells = [_percent(found, brief=brief), "-" if p is None else f"{p:.2g}"]
    if with_users:
        low, high = found["both_low"], found["both_high"]
        cells.append("-" if low is None else f"{low:+.5f}..{high:+.5f}")
    return cells


def _value(entry: Json, *, brief: bool) -> str:
    half = "" if brief or entry["low"] is None else f" +- {entry['high'] - entry['mean']:.5f}"
    return f"{entry['mean']:.5f}{half}"


def _percent(found: Json, *, brief: bool) -> str:
    if found["percent"] is None:
        return "-"
    if brief or found["low"] is None or not found["difference"]:
        return f"{found['percent']:+.3f}"
    # The interval of the difference, in percent of the baseline.
    half = abs((found["high"] - found["difference"]) * found["percent"] / found["difference"])
    return f"{found['percent']:+.3f} +- {half:.3f}"


def cost_table(costs: Mapping[str, Json]) -> Table:
    rows = []
    for name, cost in costs.items():
        rows.append(
            [
                name,
                _dense(cost),
                _count(cost["embedding_parameters"]),
                _count(cost["multiply_adds_per_row"]),
                _count(cost["training_rows_per_cpu_second"]),
            ]
        )
    head = ["network", "dense parameters", "embedding parameters", "multiply-adds per row"]
    return Table([*head, "training rows per CPU s"], rows)


def _dense(cost: Json) -> str:
    if cost["parameters"] is None:
        return f"{cost['leaves']:,.0f} leaves"
    low, high = cost["parameters_range"]
    return f"{low:,}" if low == high else f"{cost['parameters']:,.0f} ({low:,}..{high:,})"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
