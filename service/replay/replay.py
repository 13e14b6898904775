"""`python -m service replay LOG... --models DIR`: how rankings would move under another value model, version or policy.

In: files of the impression log, JSON lines or Parquet, and what to score and place them under. Out: a table of rank
correlation, of how many of the best candidates stay and of what scores shift by. With --json the same is a file. Lines
that are damaged or cannot be scored are counted and named, not fatal. Ids of requests and candidates are shown on
request alone.

Shapes: N candidates, K places.
"""

import argparse
import heapq
import json
import math
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from model.policies.policies import FILE_NAME
from service.base.ranking import ranking
from service.impressions.reader import Gone, Unfinished, entries, log_files
from service.impressions.record import Logged, Loss
from service.log_files.folder import closed_name
from service.metrics.ranking_distance import TOP, Mean, Movement, Shift, movement
from service.replay.estimate import Estimation, label_worths
from service.replay.joined_rewards import JoinedRewards
from service.replay.policy_replay import PolicyReplay, order_scores
from service.replay.remote_logs import LocalLogs, local_logs
from service.replay.report import print_report
from service.replay.rescoring import Rescored, Rescoring

FAULTS_KEPT = 20
MOVED_MOST = 10


class Moved(NamedTuple):
    """A request that moved, with its place in the log. `firsts` are the candidates that come first, before and now."""

    place: str
    logged: Logged
    firsts: tuple[int, int]
    movement: Movement


class Tally:
    """Sums over the replayed requests."""

    def __init__(self) -> None:
        self.replayed = 0
        self.of_other_models = 0
        self.lost = 0
        self.counts = {"damaged": 0, "unscorable": 0}
        self.faults: dict[str, list[dict[str, str]]] = {"damaged": [], "unscorable": []}
        # Whole lines of the files that are being written, and the places of half ones.
        self.open_files: dict[str, int] = {}
        self.unfinished: list[str] = []
        # Names of files that were removed before they could be read.
        self.gone: list[str] = []
        self.kendall_tau = Mean()
        self.overlaps = {k: Mean() for k in TOP}
        self.first_changes = Mean()
        self.score = Shift.empty()
        self.outputs: dict[str, Shift] = {}
        # A heap of the requests that moved most, the least of them first.
        self._moved: list[tuple[float, float, int, Moved]] = []

    def refuse(self, kind: str, place: str, fault: Exception) -> None:
        """Count a line that is damaged or cannot be scored. Names the first ones."""
        self.counts[kind] += 1
        if len(self.faults[kind]) < FAULTS_KEPT:
            self.faults[kind].append({"place": place, "fault": str(fault)})

    def add(self, place: str, logged: Logged, rescored: Rescored) -> None:
        """Add a request and its scores now."""
        self.replayed += 1
        before_N = np.array(logged.line.score)
        by_before_N, by_now_N = before_N, rescored.score_N
        if rescored.order_K is not None:
            answered = logged.line.order
            order_K = ranking(before_N, logged.line.top_k) if answered is None else np.array(answered, np.intp)
            by_before_N, by_now_N = order_scores(order_K, before_N), order_scores(rescored.order_K, rescored.score_N)
        moved = movement(by_before_N, by_now_N)
        for k, overlap in zip(TOP, moved.overlaps, strict=True):
            self.overlaps[k].add(overlap)
        self.first_changes.add(float(moved.first_changes))
        self.score.add(before_N, rescored.score_N)
        for output in dict.fromkeys([*logged.line.tasks, *rescored.answers_N]):
            before = logged.line.tasks.get(output)
            shift = self.outputs.setdefault(output, Shift.empty())
            # As float32, which answers are, on both sides: equal ones stay equal.
            before_32 = None if before is None else np.array(before, np.float32).astype(np.float64)
            shift.add(before_32, rescored.answers_N.get(output))
        if moved.kendall_tau is not None:
            self.kendall_tau.add(moved.kendall_tau)
            if moved.kendall_tau < 1.0:
                order = (-moved.overlaps[-1], -moved.kendall_tau, -self.replayed)
                firsts = int(ranking(by_before_N, 1)[0]), int(ranking(by_now_N, 1)[0])
                entry = (*order, Moved(place, logged, firsts, moved))
                (heapq.heappush if len(self._moved) < MOVED_MOST else heapq.heappushpop)(self._moved, entry)

    @property
    def moved_most(self) -> list[Moved]:
        """The requests that moved most: by how few of the best 10 stay, then by rank correlation."""
        return [entry[-1] for entry in sorted(self._moved, reverse=True)]


def main(arguments: Sequence[str]) -> int:
    """Replay. Returns the exit status: 2 where nothing could be replayed."""
    options = _options(arguments)
    torch.set_num_threads(1)  # as in a scoring thread of the service
    try:
        with local_logs(options.log) as logs:
            return _replayed(options, logs)
    except (ValueError, OSError) as error:
        print(f"python -m service replay: {error}", file=sys.stderr)
        return 2


def _replayed(options: argparse.Namespace, logs: LocalLogs) -> int:
    try:
        files = log_files(logs.paths)
        rescoring = Rescoring(
            options.models,
            model=options.model,
            version=options.version,
            verify_key=options.verify_key,
            value_models=options.value_models,
            value_model=options.value_model,
            log=files,
        )
        placing, estimation = _policy_of(options, rescoring)
        tally = replay(files, rescoring, placing, estimation)
        tally.gone += logs.gone
        document = report(tally, rescoring, show_ids=options.show_ids)
        if placing is not None:
            document["policy"] = placing.document()
        if estimation is not None:
            document["estimate"] = estimation.document()
        print_report(document)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except ValueError as error:
        raise ValueError(logs.named(str(error))) from None
    return 0 if tally.replayed else 2


def _policy_of(options: argparse.Namespace, rescoring: Rescoring) -> tuple[PolicyReplay | None, Estimation | None]:
    """The policy to place by and what to estimate, None without that flag. Raises ValueError."""
    if options.policy is None and options.estimate is None:
        return None, None
    scorer = rescoring.policy_scorer(options.models, options.verify_key)
    file = options.policies or options.models / rescoring.model / FILE_NAME
    placing = PolicyReplay.of_file(file, options.policy, scorer)
    if options.estimate is None:
        return placing, None
    realised = dict(options.realised) or rescoring.default_worths()
    rewards = JoinedRewards(options.estimate, label_worths(scorer.schema, realised))
    return placing, Estimation(placing.policy, rewards, realised, options.places)


def replay(
    files: Sequence[Path],
    rescoring: Rescoring,
    placing: PolicyReplay | None = None,
    estimation: Estimation | None = None,
) -> Tally:
    """Replay every line of the files. Shows a bar on a terminal. Raises OSError for a file that cannot be read,
    ValueError for a Parquet file that is damaged."""
    tally = Tally()
    console = Console(stderr=True)
    columns = (TextColumn("replay"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=sum(file.stat().st_size for file in files if file.exists()))
        tally.open_files = {file.name: 0 for file in files if closed_name(file) is not None}
        for place, logged, size in chain.from_iterable(map(entries, files)):
            progress.advance(bar, size)
            if isinstance(logged, Unfinished):
                tally.unfinished.append(place)
                continue
            if isinstance(logged, Gone):
                tally.gone.append(place)
                continue
            name = place.rpartition(":")[0]
            if name in tally.open_files:
                tally.open_files[name] += 1
            if isinstance(logged, Loss):
                tally.lost += logged.lost
                continue
            if isinstance(logged, ValueError):
                tally.refuse("damaged", place, logged)
                continue
            if logged.line.model != rescoring.model:
                tally.of_other_models += 1
                continue
            try:
                rescored = rescoring(logged)
                if placing is not None:
                    given = placing.placing(logged, rescored.score_N, rescored.answers_N)
                    rescored = rescored._replace(order_K=placing.place(given).order_K)
                    if estimation is not None:
                        estimation.add(logged, given)
                tally.add(place, logged, rescored)
            except ValueError as error:
                tally.refuse("unscorable", place, error)
    return tally


def report(tally: Tally, rescoring: Rescoring, *, show_ids: bool) -> dict[str, Any]:
    """All results, for JSON, with ids only where they are requested."""
    return {
        "model": rescoring.model,
        "version": rescoring.version,
        "value_models": [
            {"logged": f"{name} {version}", "now": f"{new_name} {new_version}", "requests": requests}
            for (name, version, new_name, new_version), requests in rescoring.value_models.most_common()
        ],
        "requests": {
            "replayed": tally.replayed,
            "of_other_models": tally.of_other_models,
            "lost": tally.lost,
            **tally.counts,
        },
        **tally.faults,
        "open_files": tally.open_files,
        "unfinished_lines": tally.unfinished,
        "files_gone": tally.gone,
        "notes": rescoring.notes,
        "missing_features": dict(rescoring.missing.most_common()),
        "unknown_features": dict(rescoring.unknown.most_common(FAULTS_KEPT)),
        "ranking": {
            "kendall_tau": tally.kendall_tau.document(),
            **{f"top_{k}_overlap": mean.document() for k, mean in tally.overlaps.items()},
            "first_changes": tally.first_changes.document(),
        },
        "score": tally.score.document(),
        "tasks": {output: shift.document() for output, shift in tally.outputs.items()},
        "moved_most": [_entry(moved, show_ids) for moved in tally.moved_most],
    }


def _entry(moved: Moved, show_ids: bool) -> dict[str, Any]:
    ids = moved.logged.ids
    first, now = (ids[row] for row in moved.firsts)
    shown = {"request_id": moved.logged.line.request_id, "first": first, "first_now": now} if show_ids else {}
    kendall_tau, overlaps, first_changes = moved.movement
    by_k = {f"top_{k}_overlap": overlap for k, overlap in zip(TOP, overlaps, strict=True)}
    counts = {"candidates": len(ids), "kendall_tau": kendall_tau, **by_k, "first_changes": first_changes}
    return {"place": moved.place, **counts, **shown}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m service replay",
        description="Score and place logged requests under another value model, version or policy and say how rankings "
        "would move.",
    )
    parser.add_argument(
        "log", nargs="+", metavar="LOG", help="files of the impression log, or its folder, or a URL of fsspec"
    )
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="folder of published models; --value-models alone needs none"
    )
    parser.add_argument("--model", metavar="NAME", help="which model's requests; needed where DIR has several")
    parser.add_argument(
        "--version", type=int, metavar="N", help="score requests again by this version (default: keep logged answers)"
    )
    parser.add_argument(
        "--value-models", type=Path, metavar="FILE", help="value models to score by (default: the model's own file)"
    )
    parser.add_argument(
        "--value-model", metavar="NAME", help="the one of them to score by (default: of the name in the log)"
    )
    parser.add_argument("--policy", metavar="NAME", help="the policy to place by (default: descending score)")
    parser.add_argument(
        "--policies", type=Path, metavar="FILE", help="policies to place by (default: the model's own file)"
    )
    parser.add_argument(
        "--estimate",
        metavar="DIR",
        help="joined rows, any path of fsspec: estimate what users would have done, from requests that explored",
    )
    parser.add_argument(
        "--realised",
        type=_worth,
        action="append",
        default=[],
        metavar="OUTPUT=WORTH",
        help="what a task's label, or one of its classes, is worth, again and again (default: the weights of the "
        "value model 'default')",
    )
    parser.add_argument(
        "--places", type=_places, metavar="K", help="estimate what is done at the first K places (default: all shown)"
    )
    parser.add_argument(
        "--verify-key", type=Path, metavar="FILE", help="read only what an Ed25519 public key of this file has signed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found to this file too")
    parser.add_argument("--show-ids", action="store_true", help="name requests and candidates that moved most")
    options = parser.parse_args(arguments)
    if options.models is None and (options.value_models is None or options.version is not None):
        parser.error("--models: needed, but for --value-models without --version")
    if options.models is None and (options.policy is not None or options.estimate is not None):
        parser.error("--models: needed, for --policy and --estimate read features as a version does")
    if options.policies is not None and options.policy is None:
        parser.error("--policy: needed, it names one of --policies")
    if options.estimate is None and (options.realised or options.places is not None):
        parser.error("--estimate: needed, --realised and --places belong to it")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: no folder '{options.json.parent}'; it must exist")
    return options


def _worth(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        worth = float(number)
    except ValueError:
        worth = math.nan
    if not name or not math.isfinite(worth):
        raise argparse.ArgumentTypeError(f"'{text}' is no output and its worth, such as click=1 or rating.good=2")
    return name, worth


def _places(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) == int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of places, 1 or more")
    return int(text)
