"""A training run's folder: what training writes, and evaluate and export read.

config.json  schema.json  fitted_features.json     what was trained, defaults included
ids.json                                           what became of the ids in each table (id_report.py)
checkpoints/last  checkpoints/best                 resume point, best validation objective (checkpoints.py)
sharding_plan.txt                                  which process has which table, where there were several
log.csv  summary.json                              one line per point (history.py), status, rows, times, versions
evaluation-<split>.json                            written by evaluate
data_files.json                                    the files that it was trained on (data_record.py)
parent.json                                        what it started from, if anything (lineage.py)
inside/                                            numbers and heat maps, written by inspect
"""

import importlib.metadata
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

from model.embeddings.embeddings import Embeddings, FusedOptimizer, TableOptimizer, torchrec_fault
from model.embeddings.histories import activation_units
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Network, Ranker
from model.schema import FeedSchema
from model.strict_yaml import unknown_key
from model.untrusted_files import DOCUMENT_BYTES, read_bytes
from training.config import SplitName, TablesOptimizer, TrainingConfig
from training.distributed.ranks import ALONE, Ranks
from training.distributed.sharding import chosen_engine, new_sharder
from training.files import (
    LEFT_BY_ANY,
    entries,
    is_json_with,
    lock_file,
    refuse_foreign,
    refuse_within,
    replace_file,
)
from training.run import checkpoints, state_file, table_files

CONFIG = "config.json"
SCHEMA = "schema.json"
FITTED = "fitted_features.json"
SUMMARY = "summary.json"
LOG = "log.csv"
SLOTS = "slots"  # which ids have the rows of tables with slots
WEIGHTS, MOMENTA = "weights.", "momenta."  # how tables and their optimizers' states are named in a checkpoint
LAST = "checkpoints/last"
BEST = "checkpoints/best"
REPORT_JSON, REPORT_MARKDOWN = "data_report.json", "data_report.md"
INSIDE = "inside"
INSIDE_FILES = ("inside.json", "expert_weights.png", "gradient_conflicts.png", "policies.png", "policy_perplexity.png")
# What may be in a run's folder before its configuration: written by `report`, or by training until its first step.
_EARLY = (REPORT_JSON, REPORT_MARKDOWN, "data_index.json", "fitting", "fitted-*.json", SCHEMA, FITTED, "lightgbm.json")


class Run:
    """A run's folder with its configuration, schema and fitted features."""

    def __init__(self, path: Path, config: TrainingConfig, schema: FeedSchema, fitted: FittedFeatures) -> None:
        self.path = path
        self.config = config
        self.schema = schema
        self.fitted = fitted
        self.encoder = FeatureEncoder(schema, fitted, in_training=True)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a folder that training wrote. Raises ValueError naming what is absent or broken."""
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path}: not a training run (no {CONFIG}); give the `output` folder of a training file")
        return cls(
            path,
            TrainingConfig.from_mapping(read_json(path / CONFIG), str(path / CONFIG)),
            FeedSchema.from_mapping(read_json(path / SCHEMA), str(path / SCHEMA)),
            FittedFeatures.from_mapping(read_json(path / FITTED), str(path / FITTED)),
        )

    def write(self) -> None:
        """Write what was decided before the first step, and remove what a run before it left behind here."""
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in (SUMMARY, LOG, BEST, *made_of_a_finished_run()):
            (self.path / stale).unlink(missing_ok=True)
        write_json(self.path / SCHEMA, self.schema.model_dump(mode="json", exclude_none=True))
        write_json(self.path / FITTED, self.fitted.model_dump(mode="json"))
        write_json(self.path / CONFIG, self.config.dump())

    def new_ranker(self, ranks: Ranks = ALONE) -> Ranker:
        """A ranker with fresh weights, drawn from torch's global generator. Over several processes tables are sharded,
        and begin with the same weights. Raises ValueError for a table or an engine that is not there."""
        tables, config = self.config.optimizer.tables, self.config.embeddings
        known = [table.name for table in self.schema.tables]
        for name in config.tables:
            if name not in known:
                raise ValueError(f"embeddings.tables: {unknown_key(name, known, 'table')}")
        # One process on a CPU computes what is saved from training on any device: `evaluate` and `export` need no GPU.
        engine = chosen_engine(self.config, ranks)
        sharder = new_sharder(self.config, ranks) if engine == "torchrec" else None
        embeddings = Embeddings(
            self.schema,
            self.encoder,
            fused=_fused(tables),
            learning_rate=tables.learning_rate,
            own={
                name: TableOptimizer(_fused(table.optimizer), table.optimizer.learning_rate)
                for name, table in config.tables.items()
                if table.optimizer is not None
            },
            for_each_task=self.config.network.has_own_embeddings,
            engine=engine,
            device=ranks.device,
            shard=sharder,
        )
        if sharder is not None:
            ranks.first_does(lambda: sharder.write(self.path))
        schema = self.schema
        units = activation_units(schema, len(schema.tasks) if self.config.network.has_own_embeddings else 1)
        network = Network(
            self.config.network, embeddings.width, schema.output_counts, schema.given, schema.base_logits, units
        )
        return Ranker(embeddings, network.to(ranks.device))

    def best_ranker(self) -> Ranker:
        """The ranker of the best point, in evaluation mode. Raises ValueError where its weights do not fit."""
        ranker, best = self.new_ranker(), self.path / BEST
        weights = {f"{WEIGHTS}{name}": weight for name, weight in ranker.embeddings.table_weights().items()}
        try:
            checkpoints.verified(best)
            state = state_file.load(best / checkpoints.STATE)
            ranker.network.load_state_dict(state["network"])
            table_files.read(best, weights)
            for name, id_map in ranker.embeddings.id_maps.maps.items():
                id_map.load_state_dict(state[SLOTS][name])
        except (RuntimeError, KeyError):
            raise ValueError(
                f"{best}: has the weights of another network than {CONFIG} and {SCHEMA} describe"
            ) from None
        return ranker.eval()

    def summary(self) -> dict[str, Any]:
        """Status, rows, times and versions of the run. Raises ValueError where it has not finished."""
        summary = read_json(self.path / SUMMARY) if (self.path / SUMMARY).exists() else {}
        if summary.get("status") != "finished":
            raise ValueError(f"{self.path}: this run has not finished; run train again with its file to resume it")
        return dict(summary)


def refuse_no_run(config: TrainingConfig) -> None:
    """Raise ValueError for an output folder that is the data's, or is neither empty nor a run."""
    path = config.output
    refuse_within(path, config.data.path)
    refuse_foreign(path, "training run", is_own=lambda: _is_run(path))


def _is_run(path: Path) -> bool:
    if not (path / CONFIG).is_file():
        # Locked by a run that was killed early, or reported on.
        early = (*LEFT_BY_ANY, *_EARLY)
        is_ours = (path / ".lock").is_file() or is_json_with(path / REPORT_JSON, "split_column", "partitions")
        return is_ours and all(any(fnmatch(name, pattern) for pattern in early) for name in entries(path))
    try:
        TrainingConfig.from_mapping(read_json(path / CONFIG), str(path / CONFIG))
    except ValueError:
        return False
    return True


def made_of_a_finished_run() -> list[str]:
    """The files in a run's folder that other commands make of it once it has finished."""
    evaluations = [f"evaluation-{split}.json" for split in get_args(SplitName)]
    return [*evaluations, *(f"{INSIDE}/{name}" for name in INSIDE_FILES)]


def _fused(tables: TablesOptimizer) -> FusedOptimizer | None:
    return None if tables.kind == "adam" else tables.kind


def locked(path: Path) -> AbstractContextManager[None]:
    """Holds a run's folder: a second run in it is refused instead of mixing two into one. Raises ValueError."""
    taken = ValueError(f"{path}: another run is writing here; wait for it or choose another output")
    return lock_file(path / ".lock", taken)


def library_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers. Without TorchRec tables are plain torch's."""
    names = ("torch", *(("torchrec",) if torchrec_fault is None else ()), "numpy", "pyarrow")
    return {name: importlib.metadata.version(name) for name in names}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON and replaces `path` in one step."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text and replaces `path` in one step. A full disk leaves the old file and names it."""
    replace_file(path, (text.encode(),))


def read_json(path: Path) -> Any:
    """Read a JSON file of a run. Raises ValueError naming it."""
    try:
        return json.loads(read_bytes(path, DOCUMENT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
