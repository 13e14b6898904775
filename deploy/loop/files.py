"""Files of the town's feed: what a team writes to have its loop run, in one folder.

In: the folder and the town. Out: the training files, join.yaml, daily.yaml, state.yaml, the value model, a key of the
admin API and one that stands for users in logs.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from deploy.loop.arm import VALUE
from deploy.loop.events import LABELS
from deploy.loop.town import ACTIVITY, HISTORY, USER
from training.datasets.feed_world import MAX_HISTORY

MODEL = "feed"
SCHEMA = Path("configs/schemas/simulated.yaml")
STATE = {
    "key": USER,
    "fields": [ACTIVITY],
    "append": {HISTORY: {"event": "click", "value": "item_id", "keep": MAX_HISTORY}},
}


@dataclass(frozen=True)
class LoopFiles:
    """Paths in the loop's folder."""

    root: Path

    @property
    def models(self) -> Path:
        """Models that the loop publishes and the service serves."""
        return self.root / "models"

    @property
    def references(self) -> Path:
        """Models that the loop is compared with, each of one version."""
        return self.root / "references"

    @property
    def impressions(self) -> Path:
        """The impression log."""
        return self.root / "logs" / "impressions"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.root / "logs" / "events"

    @property
    def joined(self) -> Path:
        """Training rows that the join makes."""
        return self.root / "data" / "feed"

    @property
    def clock(self) -> Path:
        """The time of the town."""
        return self.root / "clock"

    @property
    def join(self) -> Path:
        """The join's file."""
        return self.root / "join.yaml"

    @property
    def daily(self) -> Path:
        """The daily job's file."""
        return self.root / "daily.yaml"

    @property
    def train(self) -> Path:
        """The training file of the daily job."""
        return self.root / "train.yaml"

    @property
    def keys(self) -> Path:
        """Keys of the service."""
        return self.root / "keys.yaml"

    @property
    def users(self) -> Path:
        """Features of users as a warehouse exports them."""
        return self.root / "data" / "users.parquet"

    @property
    def state(self) -> str:
        """URL of the state store."""
        return f"sqlite:///{self.root / 'state' / 'state.db'}"

    @property
    def reports(self) -> Path:
        """Answers to the team's questions."""
        return self.root / "reports"

    @property
    def user_hash_key(self) -> Path:
        """The key of user hashes."""
        return self.root / "user_hash.key"

    def set_clock(self, time: datetime) -> None:
        """Turn the town's clock, by a rename: a reader sees one time or the other."""
        part = self.clock.with_suffix(".part")
        part.write_text(time.isoformat(timespec="milliseconds").replace("+00:00", "Z") + "\n")
        part.replace(self.clock)

    def write(self, start: datetime, key: str, beside: Mapping[str, object]) -> None:
        """Write all of them. `key` is that of the backend and the admin, `beside` are files beside the model by their
        names."""
        state = self.root / "state"
        for folder in (self.models / MODEL, self.references, self.impressions, self.events, state, self.users.parent):
            folder.mkdir(parents=True)
        self.set_clock(start)
        self.user_hash_key.write_text(secrets.token_hex(32))
        self.user_hash_key.chmod(0o600)
        entry = {
            "name": "town",
            "scopes": ["score", "metrics", "events", "admin", "state"],
            "sha256": hashlib.sha256(key.encode()).hexdigest(),
        }
        _write(self.keys, {"keys": [entry]})
        for name, content in beside.items():
            _write(self.models / MODEL / name, content)
        _write(self.models / MODEL / "state.yaml", STATE)
        joined = {
            "schema": str(SCHEMA.resolve()),
            "model": MODEL,
            "impressions": str(self.impressions),
            "events": str(self.events),
            "out": str(self.joined),
            "features": {"position": "shown.position"},
            "labels": LABELS,
        }
        _write(self.join, joined)
        _write(self.models / MODEL / "join.yaml", joined)
        split = {"column": "date", "end": "latest", "train": {"days": 5}, "validation": {"days": 1}}
        _write(self.train, training(self.joined, split, self.root / "runs" / "daily"))
        _write(
            self.daily,
            {
                "models": str(self.models),
                "model": MODEL,
                "train": str(self.train),
                "join": str(self.join),
                "start": {"warm": "daily", "cold": "weekly"},
                # Which items are shown is each model's choice: their drift is no fault of the day.
                "data_gate": {"min_rows": 1_000, "max_psi": 5.0},
                # A town's day has too few likes and hides to tell two models apart more finely.
                "quality_gate": {"max_worse": 0.2},
                "publish": {"label": "canary", "share": 0.5},
                # Days of minutes have too few users to tell two models apart: docs/loop.md says why these.
                "judge": {"horizon": "3h", "at_most": "20h", "on_timeout": "promote", "realised": VALUE},
            },
        )


def training(path: Path, split: dict[str, Any], output: Path) -> dict[str, Any]:
    """A training file of the town."""
    return {
        "schema": str(SCHEMA.resolve()),
        "data": {"path": str(path), "split": split, "group_by": USER},
        "network": {"fusion": {"kind": "adatt_sp", "levels": [32, 16], "experts_per_task": 1}, "tower": [16]},
        "optimizer": {
            "tables": {"kind": "rowwise_adagrad", "learning_rate": 0.05},
            "dense": {"kind": "adam", "learning_rate": 0.002},
        },
        # A day has 10,000 rows. Larger batches are so few steps that some towns' first model learns next to nothing.
        "batch_size": 256,
        "epochs": 8,
        "early_stopping": {"patience": 2},
        "output": str(output),
    }


def _write(path: Path, document: object) -> None:
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
