"""Report of a replay, as tables on standard output.

In: the document that `--json` writes (service/replay/replay.py). Out: text, means with their 95 % interval over
requests.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_RANKING = {
    "kendall_tau": "Kendall's tau",
    "top_1_overlap": "shared of the best 1",
    "top_5_overlap": "shared of the best 5",
    "top_10_overlap": "shared of the best 10",
    "first_changes": "requests with another first",
}
_FAULTS_SHOWN = 10
_WIDTH = 160


def print_report(document: Mapping[str, Any]) -> None:
    """Prints the tables."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a file or a pipe has no width to keep to
        console.width = _WIDTH

    def print_line(line: str) -> None:
        console.print(_printable(line), markup=False)

    requests = document["requests"]
    scored = "the answers in the log" if document["version"] is None else f"version {document['version']}"
    print_line(f"{document['model']}: {requests['replayed']:,} requests, by {scored}")
    for entry in document["value_models"]:
        print_line(f"value model {entry['logged']} -> {entry['now']}: {entry['requests']:,} requests")
    if requests["of_other_models"]:
        print_line(f"{requests['of_other_models']:,} requests of other models are left out")
    for note in document["notes"]:
        print_line(note)
    for name, lines in document["open_files"].items():
        print_line(f"{name} is being written: its {lines:,} whole lines are read")
    for place in document["unfinished_lines"]:
        print_line(f"{place}: half a line, which is left out")
    for name, count in document["missing_features"].items():
        print_line(f"feature '{name}' is not in {count:,} requests and takes its default")
    for name, count in document["unknown_features"].items():
        print_line(f"feature {name!r} of {count:,} requests is not asked for and left out")
    for kind, what in (("damaged", "damaged lines"), ("unscorable", "requests that cannot be scored")):
        if requests[kind]:
            print_line(f"{requests[kind]:,} {what}:")
            for fault in document[kind][:_FAULTS_SHOWN]:
                print_line(f"  {fault['place']}: {fault['fault']}")
    if not requests["replayed"]:
        print_line("nothing to compare")
        return

    ranking = Table("ranking", title="How rankings move", title_justify="left")
    for heading in ("mean", "95 % interval", "requests"):
        ranking.add_column(heading, justify="right")
    for key, label in _RANKING.items():
        mean = document["ranking"][key]
        ranking.add_row(label, _number(mean["mean"]), _interval(mean), f"{mean['requests']:,}")
    console.print(ranking)

    shifts = Table("mean per candidate", title="How scores shift", title_justify="left")
    for heading in ("before", "after", "shift", "95 % interval"):
        shifts.add_column(heading, justify="right")
    for label, shift in {"score": document["score"], **document["tasks"]}.items():
        means = (_number(shift[part]["mean"]) for part in ("before", "after", "shift"))
        shifts.add_row(label, *means, _interval(shift["shift"]))
    console.print(shifts)

    if document["moved_most"]:
        most = Table(Column("line", overflow="fold"), title="Requests that move most", title_justify="left")
        has_ids = "request_id" in document["moved_most"][0]
        for heading in ("candidates", "tau", "best 10", *(("request", "first", "first now") if has_ids else ())):
            most.add_column(heading, justify="right", overflow="fold")
        for moved in document["moved_most"]:
            ids = (_plain(moved[key]) for key in ("request_id", "first", "first_now")) if has_ids else ()
            figures = (f"{moved['candidates']:,}", _number(moved["kendall_tau"]), _number(moved["top_10_overlap"]))
            most.add_row(_plain(moved["place"]), *figures, *ids)
        console.print(most)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(mean: Mapping[str, Any]) -> str:
    return "" if mean["low"] is None else f"{_number(mean['low'])} to {_number(mean['high'])}"


def _plain(text: str) -> Text:
    return Text(_printable(text))  # rich obeys markup in a string


def _printable(text: str) -> str:
    # A log's content came from outside: nothing that a terminal would obey.
    return "".join(c if c.isprintable() else "?" for c in text)
