"""The proof: ten days of a town, a shift of tastes, a poisoned day, a bad model, and what the loop makes of them.

In: a folder, sizes and a seed. Out: `result.json`, with realised value by day and arm, the share regained, what two
experiments said, what exploring cost, and what was called rightly, and `result.png`. The service, the join, the
analyses and the daily job are the project's own commands.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deploy.loop.arm import Arm
from deploy.loop.asking import Backend
from deploy.loop.bad_model import publish_bad_model
from deploy.loop.curves import curves, regained
from deploy.loop.files import MODEL, LoopFiles
from deploy.loop.nights import LOOP, Nights
from deploy.loop.picture import draw
from deploy.loop.preparation import COLD, STATIC, prepare
from deploy.loop.processes import Commands, convert_log, loop_service, reference_service, wait_for_logs
from deploy.loop.questions import answer_experiments, answer_exploration, calls_of_experiments, covers, files_beside
from deploy.loop.town import Town
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
        bad, night = None, town.first_day()
        for day in range(plan.days):
            if day == plan.bad_model_day:
                files.set_clock(night + _LATER)
                bad = publish_bad_model(files, commands.run)
                canary = {"version": bad, "share": 0.5}
                loop.send("PATCH", LABELS_PATH, {"canary": canary})
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
    journal = read_journal(files)
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
            **calls(plan, journal, bad),
            "joined rows are the town's": nights.are_joined(),
            **calls_of_experiments(found),
            "estimate covers the true value": covers(exploration),
        },
    }
    (root / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (root / PICTURE).write_bytes(draw(result))
    return result


def read_journal(files: LoopFiles) -> list[dict[str, Any]]:
    """Entries of the model's journal."""
    lines = (files.models / MODEL / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def calls(plan: Plan, journal: list[dict[str, Any]], bad: str | None) -> dict[str, bool]:
    """Checks of the journal. The poisoned day alone is quarantined, the day of the shift is among what is trained on,
    and the bad model is withdrawn."""
    gates = {entry["figures"].get("day"): entry["decision"] for entry in journal if entry["step"] == "data_gate"}
    by_day = {day: gates.get(_date(plan.town, day)) for day in range(plan.days)}
    withdrawn = {
        entry["versions"].get("canary")
        for entry in journal
        if entry["step"] == "judge" and entry["decision"] == "withdraw"
    }
    others = [decision for day, decision in by_day.items() if day != plan.poisoned_day]
    return {
        "poisoned day quarantined": by_day[plan.poisoned_day] == "quarantine",
        "shift accepted": by_day[plan.town.shift_day] == "accept",
        "no other day quarantined": "quarantine" not in others,
        "bad model withdrawn": bad in withdrawn,
        "no other canary withdrawn": withdrawn <= {bad},
    }


def _date(town: Town, day: int) -> str:
    date: datetime = town.first_day() + timedelta(days=day)
    return date.date().isoformat()


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"version {version} {count / total:.0%}" for version, count in sorted(counts.items()))


def _labels(labels: Mapping[str, Any]) -> str:
    named = {name: value if isinstance(value, str) else value["version"] for name, value in labels.items()}
    return ", ".join(f"{name} is {version}" for name, version in named.items()) or "no version is labelled"
