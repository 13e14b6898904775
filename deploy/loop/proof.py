"""The proof: ten days of a town, a shift of tastes, a poisoned day, a bad model, and what the loop makes of them.

In: a folder, sizes and a seed. Out: `result.json`, with realised value by day and arm, the share regained, what two
experiments said, what exploring cost, and what was called rightly, and `result.png`. The service, the join, the
analyses and the daily job are the project's own commands.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from deploy.loop.answered import answered_hours, values_by_version
from deploy.loop.arm import VALUE, Arm
from deploy.loop.asking import Backend
from deploy.loop.bad_model import publish_bad_model
from deploy.loop.curves import curves, regained
from deploy.loop.files import MODEL, LoopFiles
from deploy.loop.nights import LOOP, Nights
from deploy.loop.picture import draw
from deploy.loop.preparation import COLD, STATIC, prepare
from deploy.loop.processes import Commands, convert_log, loop_service, reference_service, wait_for_logs
from deploy.loop.questions import answer_experiments, answer_exploration, calls_of_experiments, covers, files_beside
from deploy.loop.town import Days, Town
from deploy.loop.users import load_users

LABELS_PATH = f"/v1/admin/models/{MODEL}/labels"
RESULT, PICTURE = "result.json", "result.png"
# The logs are whole when the night's job asks for them: a little before its time.
_SLACK = timedelta(minutes=1)
# What somebody does by hand after the night's job.
_LATER = timedelta(minutes=1)


@dataclass(frozen=True)
class Plan:
    """Events of the town, in days from 0. `log_rows` are the impressions that the first model learns from."""

    town: Town
    days: int
    poisoned_day: int
    bad_model_day: int
    log_rows: int


def prove(plan: Plan, root: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run the town in a folder that is not there yet. Returns the result, which is written too. Raises ChildError and
    RefusedError."""
    town, files, key = plan.town, LoopFiles(root), secrets.token_hex(16)
    files.write(town.first_day(), key, files_beside(town))
    commands = Commands(root / "commands.log")
    tell("the first model, and a cold one of the new tastes, are trained")
    prepare(files, town, plan.log_rows, commands.run)
    load_users(files, town, commands.run)
    with ExitStack() as stack:
        loop = stack.enter_context(Backend(stack.enter_context(loop_service(files)), MODEL, key))
        references = stack.enter_context(reference_service(files))
        arms = {
            name: Arm(name, stack.enter_context(Backend(references, name)), town.users) for name in (STATIC, COLD)
        } | {LOOP: Arm(LOOP, loop, town.users, by_id=True)}
        loop.send("PUT", LABELS_PATH, {"stable": "1"})
        nights = Nights(town, files, arms, plan.poisoned_day, plan.days)
        night = town.first_day()
        for day in range(plan.days):
            if day == plan.bad_model_day:
                files.set_clock(night + _LATER)
                bad = publish_bad_model(files, commands.run)
                loop.send("PATCH", LABELS_PATH, {"canary": {"version": bad, "share": 0.5}})
            night = nights.live_day(day)
            wait_for_logs(files, night - _SLACK)
            # A first day alone validates, and leaves none to train on.
            job = ("daily", files.daily) if day else ("join", files.join)
            commands.run("training", job[0], str(job[1]), "--now", night.isoformat())
            entry = loop.send("GET", f"/v1/models/{MODEL}")
            tell(f"day {day}: answered by {_shares(nights.answered_by[day])}; then {_labels(entry['labels'])}")
    tell("the experiments and what was explored are read")
    convert_log(files, commands)
    found = answer_experiments(files, town, commands.status)
    believed = range(plan.poisoned_day + 1, plan.days)
    exploration = answer_exploration(files, town, believed, commands.status, town.seed)
    result = {
        "plan": asdict(plan),
        "curves": curves(nights.ledgers, town.seed),
        "regained": regained(nights.ledgers, range(town.shift_day, plan.days), town.seed),
        "answered_by": nights.answered_by,
        "happened": {
            "two experiments": 0,
            "tastes shift": town.shift_day,
            "poisoned day": plan.poisoned_day,
            "bad model": plan.bad_model_day,
        },
        "experiments": found,
        "exploration": exploration,
        "called": {
            **journal_calls(plan, files),
            "joined rows are the town's": nights.are_joined(),
            **calls_of_experiments(found),
            "estimate covers the true value": covers(exploration),
        },
    }
    (root / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (root / PICTURE).write_bytes(draw(result))
    return result


def plan_of(given: Mapping[str, Any]) -> Plan:
    """The plan that a result has."""
    return Plan(**{**given, "town": Town(**given["town"])})


def read_journal(files: LoopFiles) -> list[dict[str, Any]]:
    """Entries of the model's journal."""
    lines = (files.models / MODEL / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class ColdStart(NamedTuple):
    """A version from fresh weights: the newest day of its night, in days from 0, and the version that served then."""

    day: int
    parent: str


def cold_start_after_shift(plan: Plan, journal: Iterable[Mapping[str, Any]]) -> ColdStart | None:
    """The first version from fresh weights that was published after the shift, None where none was."""
    days = {_date(plan.town, day): day for day in range(plan.town.shift_day, plan.days)}
    published = (entry for entry in journal if entry["step"] == "export" and entry["figures"]["start"] == "cold")
    after = [
        ColdStart(days[entry["figures"]["day"]], entry["versions"]["parent"])
        for entry in published
        if entry["figures"]["day"] in days
    ]
    return next(iter(after), None)


def journal_calls(plan: Plan, files: LoopFiles) -> dict[str, bool]:
    """Checks of a town's journal. Its impression log, which is Parquet, is read where a canary beside the bad model was
    withdrawn. Raises ChildError."""
    journal = read_journal(files)
    others = {one: stable for one, stable in _withdrawn(journal).items() if one not in _labelled_by_hand(journal)}
    hours = answered_hours(files.impressions, Days(plan.town), range(plan.days)) if others else ()
    return calls(plan, journal, values_where_both(values_by_version(hours, VALUE).values(), others))


def values_where_both(
    days: Iterable[Mapping[str, Sequence[float]]], withdrawn: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """By canary its mean value a request and stable's, on the days on which it answered. `days` are values of requests
    by version, `withdrawn` the stable version beside each canary. A canary that never answered has no value."""
    known = list(days)
    found = {}
    for canary, stable in withdrawn.items():
        both = [day for day in known if day.get(canary) and day.get(stable)]
        if both:
            of_canary, of_stable = (fmean(chain.from_iterable(day[one] for day in both)) for one in (canary, stable))
            found[canary] = (of_canary, of_stable)
    return found


def calls(
    plan: Plan, journal: Sequence[Mapping[str, Any]], values: Mapping[str, tuple[float, float]]
) -> dict[str, bool]:
    """Checks of the journal. The poisoned day alone is quarantined, the day of the shift is among what is trained on,
    the bad model is withdrawn, and no canary beside it that was worth what stable was. `values` are true values of a
    request by canary: its own, and stable's."""
    gates = {entry["figures"].get("day"): entry["decision"] for entry in journal if entry["step"] == "data_gate"}
    by_day = {day: gates.get(_date(plan.town, day)) for day in range(plan.days)}
    others = [decision for day, decision in by_day.items() if day != plan.poisoned_day]
    bad, withdrawn = _labelled_by_hand(journal), _withdrawn(journal)
    worse = {canary for canary, (own, stable) in values.items() if own < stable}
    return {
        "poisoned day quarantined": by_day[plan.poisoned_day] == "quarantine",
        "shift accepted": by_day[plan.town.shift_day] == "accept",
        "no other day quarantined": "quarantine" not in others,
        "bad model withdrawn": bool(bad) and bad <= withdrawn.keys(),
        "no good canary withdrawn": withdrawn.keys() - bad <= worse,
    }


def _withdrawn(journal: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The canaries that were withdrawn, and the stable version beside each."""
    versions = [e["versions"] for e in journal if e["step"] == "judge" and e["decision"] == "withdraw"]
    return {one["canary"]: one["stable"] for one in versions}


def _labelled_by_hand(journal: Iterable[Mapping[str, Any]]) -> set[str]:
    """The canaries that somebody labelled through the admin API: the bad model."""
    changes = [e["versions"]["after"] for e in journal if e["step"] == "labels" and e["who"] != "daily"]
    return {after["canary"]["version"] for after in changes if "canary" in after}


def _date(town: Town, day: int) -> str:
    date: datetime = town.first_day() + timedelta(days=day)
    return date.date().isoformat()


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"version {version} {count / total:.0%}" for version, count in sorted(counts.items()))


def _labels(labels: Mapping[str, Any]) -> str:
    named = {name: value if isinstance(value, str) else value["version"] for name, value in labels.items()}
    return ", ".join(f"{name} is {version}" for name, version in named.items()) or "no version is labelled"
