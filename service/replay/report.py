"""Report of a replay, as tables on standard output.

In: the document that `--json` writes (service/replay/replay.py). Out: text, means with their 95 % interval over
requests.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    """Print the tables."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a file or a pipe has no width to keep to
        console.width = _WIDTH
    for line in (*_counts(document), *_faults(document)):
        console.print(_printable(line), markup=False)
    if not document["requests"]["replayed"]:
        console.print("nothing to compare")
        return
    console.print(_rankings(document["ranking"]))
    console.print(_shifts({"score": document["score"], **document["tasks"]}))
    if "estimate" in document:
        for line in _estimate(document["estimate"]):
            console.print(_printable(line), markup=False)
    if document["moved_most"]:
        console.print(_moved_most(document["moved_most"]))


def _counts(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what was replayed, by what, and what was left out."""
    requests = document["requests"]
    scored = "the answers in the log" if document["version"] is None else f"version {document['version']}"
    yield f"{document['model']}: {requests['replayed']:,} requests, by {scored}"
    if "policy" in document:
        yield from _policy(document["policy"])
    for entry in document["value_models"]:
        yield f"value model {entry['logged']} -> {entry['now']}: {entry['requests']:,} requests"
    if requests["of_other_models"]:
        yield f"{requests['of_other_models']:,} requests of other models are left out"
    if requests["lost"]:
        yield f"{requests['lost']:,} requests were lost on their way into the log"
    yield from document["notes"]
    for name, lines in document["open_files"].items():
        yield f"{name} is being written: its {lines:,} whole lines are read"


def _policy(policy: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the policy that placed them."""
    yield f"placed by {policy['name']} ({policy['version']}), of which {policy['explored']:,} requests explore"
    for stage, count in policy["dropped"].items():
        yield f"{stage} drops {count:,} candidates"
    if policy["relaxed"]:
        yield f"the cap is relaxed at {policy['relaxed']:,} places"


def _estimate(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what users would have done."""
    counts = found["requests"]
    yield f"Estimate from {counts['explored']:,} requests that explored, by their first {found['places']} places"
    if counts["not_explored"]:
        yield f"{counts['not_explored']:,} requests did not explore, and tell nothing of it"
    if counts["not_joined"]:
        yield f"{counts['not_joined']:,} that explored are left out: their hours are not joined"
    if counts["without_user"]:
        yield f"{counts['without_user']:,} have no user, and each counts as one of its own"
    worths = ", ".join(f"{name} {worth:g}" for name, worth in found["realised"].items())
    if "observed" in found:
        yield f"worth a request ({worths}), as it was explored: {_number(found['observed'])}"
    if found["refused"] is not None:
        yield f"refused: {found['refused']}"
        return
    for key, label in (("self_normalised", "self-normalised"), ("doubly_robust", "doubly robust")):
        yield f"as the policy would have it, {label}: {_number(found[key]['value'])} ({_interval(found[key])})"
    yield f"effective users: {min(found['effective_users']):,.0f}; mean weight: {_number(found['mean_weight'][-1])}"


def _faults(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what is missing, unknown, damaged or cannot be scored."""
    if gone := document["files_gone"]:
        yield f"{len(gone):,} files were removed before they were read, and are left out:"
        yield from (f"  {name}" for name in gone[:_FAULTS_SHOWN])
    for place in document["unfinished_lines"]:
        yield f"{place}: half a line, which is left out"
    for name, count in document["missing_features"].items():
        yield f"feature '{name}' is not in {count:,} requests and takes its default"
    for name, count in document["unknown_features"].items():
        yield f"feature {name!r} of {count:,} requests is not asked for and left out"
    for kind, what in (("damaged", "damaged lines"), ("unscorable", "requests that cannot be scored")):
        if document["requests"][kind]:
            yield f"{document['requests'][kind]:,} {what}:"
            yield from (f"  {fault['place']}: {fault['fault']}" for fault in document[kind][:_FAULTS_SHOWN])


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(Column(first, overflow="fold"), title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _rankings(ranking: Mapping[str, Any]) -> Table:
    table = _table("How rankings move", "ranking", "mean", "95 % interval", "requests")
    for key, label in _RANKING.items():
        mean = ranking[key]
        table.add_row(label, _number(mean["mean"]), _interval(mean), f"{mean['requests']:,}")
    return table


def _shifts(shifts: Mapping[str, Any]) -> Table:
    table = _table("How scores shift", "mean per candidate", "before", "after", "shift", "95 % interval")
    for label, shift in shifts.items():
        means = (_number(shift[part]["mean"]) for part in ("before", "after", "shift"))
        table.add_row(label, *means, _interval(shift["shift"]))
    return table


def _moved_most(requests: Sequence[Mapping[str, Any]]) -> Table:
    has_ids = "request_id" in requests[0]
    ids = {"request": "request_id", "first": "first", "first now": "first_now"} if has_ids else {}
    table = _table("Requests that move most", "line", "candidates", "tau", "best 10", *ids)
    for moved in requests:
        figures = (f"{moved['candidates']:,}", _number(moved["kendall_tau"]), _number(moved["top_10_overlap"]))
        table.add_row(_plain(moved["place"]), *figures, *(_plain(moved[key]) for key in ids.values()))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(mean: Mapping[str, Any]) -> str:
    return "" if mean["low"] is None else f"{_number(mean['low'])} to {_number(mean['high'])}"


def _plain(text: str) -> Text:
    return Text(_printable(text))  # rich obeys markup in a string


def _printable(text: str) -> str:
    # A log's content came from outside: nothing that a terminal would obey.
    return "".join(c if c.isprintable() else "?" for c in text)
