"""Writes what an image experiment found: results.json, results.md, report.html (self-contained), pictures/*.png.

In: the content of results.json (training/images/results.py).
"""

from pathlib import Path
from typing import Any

from training.compare.document import Block, Heading, Image, Paragraph, Table, write_document
from training.images import plots
from training.images.results import RISING
from training.run.run import write_json

Json = dict[str, Any]

RESULTS = "results.json"
# Epochs that the table of accuracy by epoch has.
POINTS = 8


def write_report(folder: Path, results: Json) -> Path:
    """Write all files into `folder`. Returns the page's path."""
    figures = _figures(results)
    images = [Image(text, png, name) for name, (text, png) in figures.items()]
    write_json(folder / RESULTS, results)
    blocks = [*_blocks(results), *([Heading(2, "Figures")] if images else []), *images]
    if not images:
        fewest = results["settings"]["figure_epochs"]
        blocks.append(Paragraph(f"Figures of policies are left out: they are of trainings of {fewest} epochs or more."))
    return write_document(folder, results["name"], blocks)


def _figures(results: Json) -> dict[str, tuple[str, bytes]]:
    """File name -> what it shows, and the PNG. None of a training that is too short for them."""
    found: dict[str, tuple[str, bytes]] = {}
    if results["settings"]["epochs"] < results["settings"]["figure_epochs"]:
        return found
    for name, method in results["methods"].items():
        label = method["label"]
        if method["perplexity"]:
            title = f"{label}: perplexity by epoch"
            found[f"perplexity-{name}"] = (
                title,
                plots.perplexity(method["perplexity"], method["placebo_perplexity"], title),
            )
        if method["cosines"]:
            title = f"{label}: likeness of the tasks' policies"
            found[f"similarity-{name}"] = title, plots.similarities(method["cosines"], title)
    counted = results["module_counts"]
    if counted and counted["accuracies"]:
        title = f"{counted['label']}: accuracy and number of modules"
        found["module-counts"] = title, plots.module_counts(counted["accuracies"], title)
    return found


def _blocks(results: Json) -> list[Block]:
    methods: dict[str, Json] = results["methods"]
    rows = ", ".join(f"{count:,} {split}" for split, count in results["rows"].items())
    choice = (
        "the epoch with the best mean validation accuracy answers"
        if results["rows"]["validation"]
        else "nothing is chosen, the last epoch answers"
    )
    blocks: list[Block] = [
        Heading(1, results["name"]),
        Paragraph(
            f"{len(results['tasks'])} tasks; rows: {rows}; {results['settings']['epochs']} epochs. "
            f"Accuracy on the test rows in percent; of each seed the mean over tasks, and {choice}."
        ),
        Heading(2, "Accuracy"),
        Table(
            ("method", "mean ± sd", "95 % interval", "best", "paper", "gain", "seeds", "parameters", "seconds"),
            [
                (
                    method["label"],
                    _with_spread(method["accuracy"]),
                    _interval(method["accuracy"]),
                    _percent(method["accuracy"]["best"]),
                    "-" if method["paper"] is None else f"{method['paper']['mean']} ± {method['paper']['sd']}",
                    "-" if method["gain"] is None else f"{100 * method['gain']:+.2f}",
                    str(method["accuracy"]["n"]),
                    f"{method['parameters']:,}",
                    f"{method['seconds']:.0f}",
                )
                for method in methods.values()
            ],
        ),
        Paragraph(_undertrained(methods)),
        Heading(2, "Accuracy by epoch"),
        _by_epoch(results),
    ]
    if results["hypotheses"]:
        blocks += [
            Heading(2, "Is the difference real?"),
            Paragraph("Two-sample t-test, one tail, equal variances: is the first method's mean above the second's?"),
            Table(
                ("better", "than", "t", "df", "p"),
                [
                    (test["better"], test["than"], _number(test["t"]), str(test["df"]), _number(test["p"]))
                    for test in results["hypotheses"]
                ],
            ),
        ]
    blocks += [
        Heading(2, "Accuracy by task"),
        Table(
            ("task", *(method["label"] for method in methods.values())),
            [
                (task, *(_with_spread(method["tasks"][task]) for method in methods.values()))
                for task in results["tasks"]
            ],
        ),
    ]
    if results["failures"]:
        blocks += [Heading(2, "Failed"), Table(("cell", "fault"), list(results["failures"].items()), is_words=True)]
    waiting = [cell for cell in results["unfinished"] if cell not in results["failures"]]
    if waiting:
        blocks.append(Paragraph(f"Not finished yet: {', '.join(waiting)}."))
    return blocks


def _undertrained(methods: dict[str, Json]) -> str:
    if any(method["gain"] is None for method in methods.values()):
        return "Fewer than four epochs do not say whether a method is undertrained."
    names = [method["label"] for method in methods.values() if method["is_undertrained"]]
    rule = (
        "Gain: points of accuracy of the last quarter of the epochs over the quarter before. A method that gains more "
        f"than {100 * RISING:.1f} is undertrained, and more epochs may change its place"
    )
    return f"{rule}: {', '.join(names)}." if names else f"{rule}. None is."


def _by_epoch(results: Json) -> Table:
    """Accuracy after some of the epochs, evenly spaced, the last among them."""
    epochs = results["settings"]["epochs"]
    shown = sorted({-(-epochs * number // POINTS) for number in range(1, POINTS + 1)})
    split = "validation" if results["rows"]["validation"] else "test"
    return Table(
        (f"{split} rows, mean over seeds", *(f"epoch {epoch}" for epoch in shown)),
        [
            (method["label"], *(_percent(method["accuracy_by_epoch"][epoch - 1]) for epoch in shown))
            for method in results["methods"].values()
        ],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _with_spread(entry: Json) -> str:
    return _percent(entry["mean"]) + ("" if entry["sd"] is None else f" ± {_percent(entry['sd'])}")


def _interval(entry: Json) -> str:
    return "-" if entry["low"] is None else f"{_percent(entry['low'])} to {_percent(entry['high'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
