"""The tables and the picture of `make bench-serving`, from its raw figures."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import report
from benchmarks.serving_services import (
    BARE,
    COMPILED,
    COMPILED_ROWS,
    FRAME,
    MLSERVER,
    TORCHSCRIPT,
    TORCHSCRIPT_ROWS,
    USUAL,
)
from benchmarks.serving_stages import MODEL_STAGES
from training.inspect.plots import as_png

PICTURE = "serving.png"
# How a line is drawn, by the last word of its way to ask: rows, columns, catalogue ids.
STYLES = {"rows": "--", "columns": "-", "ids": ":"}
# What the growth of cost is stated for.
FROM, TO = "100", "1000"
OURS = {
    TORCHSCRIPT: ("torchscript", "columns"),
    TORCHSCRIPT_ROWS: ("torchscript", "rows"),
    COMPILED: ("compiled", "columns"),
    COMPILED_ROWS: ("compiled", "rows"),
}


def body_of(data: dict[str, Any]) -> list[str]:
    """The lines of the result's page."""
    note = f" {data['note'].rstrip('.')}." if data["note"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in data["mlserver"].items())
    left_out = [f"Left out: {what} ({reason})." for what, reason in data["left_out"].items()]
    cores = data["cores"]
    where = "the load generator on another" if cores["servers"] != cores["client"] else "the load generator beside them"
    return [
        "One user and N candidates of the reference feed. All services run on one core with one torch thread, "
        f"{where}, {data['turns']} paired turns, in which each service is loaded in its turn. Figures are medians "
        "(least to most) over turns. All but feedrank run the network as it was trained, on whole rows. feedrank's own "
        "export computes the user's part once. Largest difference between answers: "
        f"{data['largest_score_difference']:.1g}.{note}",
        "",
        *left_out,
        *([""] if left_out else []),
        *_cost(data),
        "",
        f"![CPU time of a request, by candidates]({PICTURE})",
        "",
        *_growth(data),
        "Latency and throughput with 1 and with 8 requests in flight, and the load generator's own CPU time:",
        "",
        *_latency(data),
        "",
        *_stages(data),
        *(["", f"MLServer's environment: {versions}, without worker process and request log."] if versions else []),
    ]


def _cost(data: dict[str, Any]) -> list[str]:
    peers = [USUAL, *([MLSERVER] if MLSERVER in _services(data) else [])]
    rows = []
    for size, ways in data["sizes"].items():
        for name in _services(data):
            way = ways[name]
            mine = way["1"]["cpu_ms"]
            ratios = [_spread(_ratios(ways[peer]["1"]["cpu_ms"], mine)) for peer in peers]
            rows.append([size, name, _spread(mine), *ratios])
    than = ["times cheaper than the usual service", *(["than MLServer"] if len(peers) > 1 else [])]
    return report.table(["N", "service", "CPU ms per request", *than], rows)


def _growth(data: dict[str, Any]) -> list[str]:
    if FROM not in data["sizes"] or TO not in data["sizes"]:
        return []
    factor = int(TO) / int(FROM)
    rows = []
    for name in _services(data):
        many, few = (data["sizes"][size][name]["1"]["cpu_ms"] for size in (TO, FROM))
        rows.append([name, _spread([ratio / factor for ratio in _ratios(many, few)])])
    return [
        f"What a candidate costs in a request of {TO}, against one of {FROM} (1 is the same):",
        "",
        *report.table(["service", f"per candidate, {TO} / {FROM}"], rows),
        "",
    ]


def _latency(data: dict[str, Any]) -> list[str]:
    rows = []
    for size, ways in data["sizes"].items():
        for name in _services(data):
            cells = []
            for many in ("1", "8"):
                one = ways[name][many]
                speed = statistics.median(one["requests_per_second"])
                cells += [f"{speed:,.0f}", f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}"]
            rows.append([size, name, *cells, f"{ways[name]['8']['client_cpu_ms']:.2f}"])
    head = [f"{what}, {many}" for many in (1, 8) for what in ("requests/s", "p50 ms", "p99 ms")]
    return report.table(["N", "service", *head, "client CPU ms, 8"], rows)


def _stages(data: dict[str, Any]) -> list[str]:
    measured = data["stages"]
    flop = measured["flop_per_candidate"]
    rows, roofline = [], []
    stages: list[str] = []
    for size, at in measured["sizes"].items():
        gemm = at["gemm_flops_per_second"]
        trained = int(size) * flop["as_trained"] / (at["as_trained_us"] / 1e6)
        roofline.append(
            [size, "as trained", f"{at['as_trained_us'] / 1e3:.2f}", f"{trained / 1e9:.1f}", f"{gemm / 1e9:.1f}"]
        )
        for name, (engine, shape) in OURS.items():
            parts = at["stages_us"].get(engine, {}).get(shape)
            if parts is None:
                continue
            stages = list(parts)
            bare, frame, total = (
                statistics.median(data["sizes"][size][way]["1"]["cpu_ms"]) * 1e3
                for way in (BARE[shape], FRAME[shape], name)
            )
            data_path = sum(parts[stage] for stage in parts if stage not in MODEL_STAGES)
            rest = total - frame - sum(parts.values())
            rows.append([size, name, *(f"{us:.0f}" for us in (bare, frame, *parts.values(), rest, frame + data_path))])
            if shape == "columns":
                speed = int(size) * flop["needed"] / (parts["network"] / 1e6)
                per_second = [f"{value / 1e9:.1f}" for value in (speed, gemm)]
                roofline.append([size, f"feedrank {engine}", f"{parts['network'] / 1e3:.2f}", *per_second])
    outputs, inputs = measured["gemm_shape"]
    return [
        "Where a request to feedrank spends its CPU time, in microseconds. The frame (HTTP, event loop, the way to a "
        "scoring thread and back) is a server of its own in the same turns, which remembers its answers. The HTTP "
        "server alone, of which the frame is a part more, is another that remembers them on its event loop. The stages "
        "are timed in this order, whole requests in one process. The rest is what the whole server spends beyond both. "
        "The last column is the frame and the data path: all but user part, look-ups, network and rest.",
        "",
        *report.table(["N", "request", "HTTP server alone", "frame", *stages, "rest", "all but the model"], rows),
        "",
        f"The network alone, one thread. It takes {flop['needed'] / 1e6:.2f} MFLOP a candidate once the user's part is "
        f"there, {flop['as_trained'] / 1e6:.2f} as trained (whole rows, look-ups included). The last column is one "
        f"float32 product of this run, N rows by its largest weight ({inputs} by {outputs}).",
        "",
        *report.table(["N", "network", "ms", "GFLOP/s", "GFLOP/s of the product"], roofline),
    ]


def picture(data: dict[str, Any]) -> bytes:
    """CPU time against the number of candidates, a line a service, as a PNG."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [int(size) for size in data["sizes"]]
    for name in _services(data):
        medians = [statistics.median(ways[name]["1"]["cpu_ms"]) for ways in data["sizes"].values()]
        axes.plot(sizes, medians, marker="o", linestyle=STYLES[name.rpartition(" ")[2]], label=name)
    axes.set(xscale="log", yscale="log", xlabel="candidates of a request", ylabel="CPU ms of the server per request")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    return as_png(figure)


def _services(data: dict[str, Any]) -> list[str]:
    """Those that score, in the order of their turns."""
    return [name for name in next(iter(data["sizes"].values())) if name not in (*FRAME.values(), *BARE.values())]


def _ratios(others: Sequence[float], mine: Sequence[float]) -> list[float]:
    return [other / value for other, value in zip(others, mine, strict=True)]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
