"""A feed whose days come of both logs, for kills of the whole loop: join, judge, cycle with recalibration, forget.

In: a folder. Out: a `JoinedFeed`: lines of both logs by day, drawn from the law of tests/training_data.py, answered by
the labels as they are, the files of the cycle, and nights in which every job runs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

import yaml

from model.artifact.artifact import Artifact
from model.rollout.decisions import DAILY, FOUND, PUBLISHED, RECALIBRATE, WAIT
from model.user import user_hash
from tests.impression_lines import impression_line, stamp
from tests.training.daily.nights import ROWS, SCHEMA, Feed, as_is, day, inverted, night
from tests.training_data import USERS, feed_table
from training.daily.cycle import run_cycle, run_judge
from training.daily.cycle_file import Cycle
from training.join.forget import forget
from training.join.join import Settings, join
from training.join.plan import Plan

KEY = b"a key of sixteen bytes or more"
# Each user of the law is so many, alike in taste.
ALIKE = 20
# The labels change after midnight and before the first request.
HOURS = (3, 22)
HOUR = timedelta(hours=1)
USER, CANDIDATE = ("user_id", "history", "tab"), ("video", "duration")


@dataclass(frozen=True)
class JoinedFeed(Feed):
    """A feed in a folder, with its logs."""

    def write_files(self, **changes: Any) -> None:
        """Write the training file, the join's and the cycle's."""
        join_file = {
            "schema": str(self.folder / "schema.yaml"),
            "impressions": str(self.folder / "impressions"),
            "events": str(self.folder / "events"),
            "out": str(self.folder / "data"),
            "labels": {"is_click": {"event": "click"}, "watch_ms": {"event": "watch", "value": "sum"}},
        }
        (self.folder / "join.yaml").write_text(yaml.safe_dump(join_file), encoding="utf-8")
        judge = {"horizon": "3h", "at_most": "20h", "max_worse": 0.4, "on_timeout": "promote", "realised": {"click": 1}}
        super().write_files(
            **{
                "join": str(self.folder / "join.yaml"),
                "publish": {"label": "canary", "share": 0.5},
                "judge": judge,
                "recalibrate": {"days": 2},
                **changes,
            }
        )
        schema = self.folder / "schema.yaml"
        schema.write_text(SCHEMA.replace("buckets: 100,", "buckets: 4000,"), encoding="utf-8")
        training = yaml.safe_load((self.folder / "training.yaml").read_text())
        training["data"]["weight"] = "_weight"
        (self.folder / "training.yaml").write_text(yaml.safe_dump(training, sort_keys=False), encoding="utf-8")

    def write_logs(self, number: int, *, is_bad: bool = False, is_lower: bool = False) -> None:
        """Write a day's lines. Labels of a bad one are inverted. Of a lower one three in ten clicks are not made."""
        table = (inverted if is_bad else as_is)(feed_table(ROWS, seed=100 + number))
        lines = [*self._lines(number, table.to_pylist(), is_lower=is_lower)]
        for log, chosen in (
            ("impressions", [one for one, _ in lines]),
            ("events", [e for _, few in lines for e in few]),
        ):
            (self.folder / log).mkdir(exist_ok=True)
            text = "".join(json.dumps(line) + "\n" for line in chosen)
            (self.folder / log / f"{log}-{number}.jsonl").write_text(text, encoding="utf-8")

    def _lines(
        self, number: int, rows: list[dict[str, Any]], *, is_lower: bool
    ) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        labels = self.labels if self.models.is_dir() else None
        midnight = datetime.combine(day(number), time(), UTC)
        for place, row in enumerate(rows):
            user = row["user_id"] + USERS * (place % ALIKE)
            at = midnight + HOURS[0] * HOUR + (HOURS[1] - HOURS[0]) * HOUR * place / len(rows)
            version = labels.stable if labels is not None else 0
            if labels is not None and labels.canary is not None and place % 2:  # ALIKE is even: a user has one version
                version = labels.canary.version
            name = f"r{number}-{place}"
            own = {
                "format": 1,
                "request_id": name,
                "id": "c",
                "model": "clips",
                "time": stamp(at + timedelta(seconds=9)),
            }
            kinds = [("shown", 1.0), ("watch", row["watch_ms"])]
            if row["is_click"] and not (is_lower and place % 10 < 3):
                kinds.append(("click", 1.0))
            events = [
                {
                    **own,
                    "type": kind,
                    "value": value,
                    "position": 0,
                    "event_id": f"{name}-{kind}",
                    "received": own["time"],
                }
                for kind, value in kinds
            ]
            yield _request(name, at, user, str(version), row), events

    def run_night(self, number: int) -> str:
        """Run every job of a night, as an hourly join and judge, the cycle and a deletion would."""
        cycle, plan = Cycle.load(self.file), Plan.load(self.folder / "join.yaml")
        now = night(number)
        self._begin("join")
        join(plan, Settings(now=now - HOUR, until=now - 2 * HOUR))
        self._begin("judge")
        run_judge(cycle, now - HOUR)
        self._begin("daily")
        outcome = run_cycle(cycle, now)
        self._begin("forget")
        forget(plan, str(number), KEY)
        return outcome

    def _begin(self, job: str) -> None:
        (self.folder / "job").write_text(job, encoding="utf-8")

    def place(self) -> str:
        """Place of the night: the job that began last, of the cycle with the journal's last step."""
        job = super().place()
        path = self.folder / "job"
        begun = path.read_text(encoding="utf-8") if path.is_file() else "none"
        return f"daily after {job}" if begun == "daily" else begun

    def ended(self) -> dict[str, Any]:
        """Outcome of a night: labels, decisions, and bytes by file."""
        return {
            "labels": self.labels,
            # Looks that decided nothing, and how a generation was entered, depend on how often a night was run.
            "decisions": [
                (entry.step, PUBLISHED if entry.step == RECALIBRATE and entry.decision == FOUND else entry.decision,
                 entry.figures.get("day"), entry.versions.get("calibration"))
                for entry in self.entries if entry.step != DAILY and entry.decision != WAIT
            ],
            "versions": {number: Artifact.open(self.models / str(number)).manifest.files for number in self.versions()},
            **{
                str(path.relative_to(self.folder)): path.read_bytes()
                for pattern in ("impressions/*", "events/*", "data/date=*/*", "data/_join/counts.json",
                                "models/clips/derived/*/calibration/*/calibration.json")
                for path in sorted(self.folder.glob(pattern))
            },
        }  # fmt: skip


def _request(name: str, at: datetime, user: int, version: str, row: dict[str, Any]) -> dict[str, Any]:
    return impression_line(
        name,
        stamp(at),
        "clips",
        model_version=version,
        user_hash=user_hash(KEY, str(user)),
        user={**{feature: row[feature] for feature in USER}, "user_id": user},
        candidates={"id": ["c"], "features": {feature: [row[feature]] for feature in CANDIDATE}},
        score=[0.5],
        tasks={"click": [0.5], "watch": [2000.0]},
    )
