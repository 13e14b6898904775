"""A training run's folder: what training writes, and evaluate and export read.

config.json  schema.json  fitted_features.json     what was trained, defaults included
checkpoints/last.pt  checkpoints/best.pt           resume point; best validation objective
log.csv  summary.json                              one line per point (history.py); status, rows, times, versions
evaluation-<split>.json                            written by evaluate
parent.json                                        what it started from, if anything (lineage.py)
inside/                                            numbers and heat maps, written by inspect
"""

import fcntl
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.embeddings import Embeddings
from model.features import FeatureEncoder, FittedFeatures
from model.ranker import Network, Ranker
from model.schema import FeedSchema
from training import checkpoint
from training.config import TrainingConfig
from training.whole import replace_file

CONFIG = "config.json"
SCHEMA = "schema.json"
FITTED = "fitted_features.json"
SUMMARY = "summary.json"
LOG = "log.csv"
LAST = "checkpoints/last.pt"
BEST = "checkpoints/best.pt"


class Run:
    """A run's folder with its configuration, schema and fitted features."""

    def __init__(self, path: Path, config: TrainingConfig, schema: FeedSchema, fitted: FittedFeatures) -> None:
        self.path = path
        self.config = config
        self.schema = schema
        self.fitted = fitted
        self.encoder = FeatureEncoder(schema, fitted)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Opens a folder that training wrote. Raises ValueError naming what is absent or broken."""
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path}: not a training run (no {CONFIG}); give the `output` folder of a training file")
        return cls(
            path,
            TrainingConfig.from_mapping(read_json(path / CONFIG), str(path / CONFIG)),
            FeedSchema.from_mapping(read_json(path / SCHEMA), str(path / SCHEMA)),
            FittedFeatures.from_mapping(read_json(path / FITTED), str(path / FITTED)),
        )

    def write(self) -> None:
        """Writes what was decided before the first step, and removes what a run before it left behind here."""
        self.path.mkdir(parents=True, exist_ok=True)
        made_later = (*self.path.glob("evaluation-*.json"), *self.path.glob("inside/*"))
        for stale in (self.path / SUMMARY, self.path / LOG, self.path / BEST, *made_later):
            stale.unlink(missing_ok=True)
        write_json(self.path / SCHEMA, self.schema.model_dump(mode="json", exclude_none=True))
        write_json(self.path / FITTED, self.fitted.model_dump(mode="json"))
        write_json(self.path / CONFIG, self.config.dump())

    def new_ranker(self) -> Ranker:
        """A ranker with fresh weights, drawn from torch's global generator."""
        tables = self.config.optimizer.tables
        embeddings = Embeddings(
            self.schema,
            self.encoder,
            fused=None if tables.kind == "adam" else tables.kind,
            learning_rate=tables.learning_rate,
            for_each_task=self.config.network.has_own_embeddings,
        )
        return Ranker(embeddings, Network(self.config.network, embeddings.width, len(self.schema.tasks)))

    def best_ranker(self) -> Ranker:
        """The ranker of the best point, in evaluation mode. Raises ValueError where its weights do not fit."""
        ranker = self.new_ranker()
        try:
            ranker.load_state_dict(checkpoint.load(self.path / BEST)["ranker"])
        except (RuntimeError, KeyError):
            raise ValueError(
                f"{self.path / BEST}: holds the weights of another network than {CONFIG} and {SCHEMA} describe"
            ) from None
        return ranker.eval()

    def summary(self) -> dict[str, Any]:
        """Status, rows, times and versions of the run. Raises ValueError where it has not finished."""
        summary = read_json(self.path / SUMMARY) if (self.path / SUMMARY).exists() else {}
        if summary.get("status") != "finished":
            raise ValueError(f"{self.path}: this run has not finished; run train again with its file to resume it")
        return dict(summary)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a run's folder: a second run in it is refused instead of mixing two into one."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path}: another run is writing here; wait for it or choose another output") from None
        yield


def library_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    names = ("torch", "torchrec", "numpy", "pyarrow")
    return {name: importlib.metadata.version(name) for name in names}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON and replaces `path` in one step."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text and replaces `path` in one step; a full disk leaves the old file and names it."""
    replace_file(path, (text.encode(),))


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run. Raises ValueError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
