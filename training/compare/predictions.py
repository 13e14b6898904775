"""Answers of a cell on a split, kept as a file in its run folder, and their labels.

predictions-<split>.npz has outputs_BO (float32: logits of binary tasks, for regression the value on the scale that
is learned) and a fingerprint of the labels, so that answers are never compared with other data than they were made on.

Shapes: B rows, O outputs.
"""

import functools
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from training.compare.measures import TaskTruth
from training.config import SplitName
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, labels_of, observed_of, read_splits
from training.evaluate.evaluate import groups_of
from training.evaluate.validation import predict
from training.files import replace_file
from training.run.run import Run
from training.tasks import learned


@dataclass(frozen=True, slots=True)
class Truth:
    """A split's labels, task by task, and their fingerprint."""

    rows: int
    num_groups: int
    tasks: tuple[TaskTruth, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Split:
    rows: Rows
    truth: Truth


def prediction_file(folder: Path, split: SplitName) -> Path:
    """File of a cell's outputs on a split."""
    return folder / f"predictions-{split}.npz"


def truth_of(run: Run, split: SplitName) -> Truth:
    """The labels of a split of the run's data."""
    return _split(run, split).truth


def rows_of(run: Run, split: SplitName) -> Rows:
    """A split of the run's data, encoded."""
    return _split(run, split).rows


def write_predictions(run: Run, split: SplitName) -> Path:
    """Answer a split with the run's best ranker, and keep the answers."""
    loaded = _split(run, split)
    outputs_BO = predict(run.best_ranker(), loaded.rows)
    for task in run.schema.tasks:
        columns = run.schema.output_slices[task.name]
        outputs_BO[:, columns] = learned(task, run.fitted.targets).learned_outputs(outputs_BO[:, columns])
    return keep_outputs(run.path, split, outputs_BO, loaded.truth)


def keep_outputs(folder: Path, split: SplitName, outputs_BO: NDArray[np.float32], truth: Truth) -> Path:
    """Write a cell's outputs on a split, with the fingerprint of the labels that they answer."""
    content = io.BytesIO()
    np.savez_compressed(content, outputs_BO=outputs_BO, fingerprint=np.array(truth.fingerprint))
    path = prediction_file(folder, split)
    replace_file(path, (content.getbuffer(),))
    return path


def read_predictions(path: Path, truth: Truth) -> NDArray[np.float32]:
    """outputs_BO of a cell. Raises ValueError where the file is broken or was made on other data."""
    try:
        with np.load(path, allow_pickle=False) as content:
            outputs_BO: NDArray[np.float32] = content["outputs_BO"]
            fingerprint = str(content["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not readable ({error}); delete it and run compare again") from None
    if fingerprint != truth.fingerprint:
        raise ValueError(
            f"{path}: was made on other data than is there now; delete the experiment's folder or choose another output"
        )
    return outputs_BO


def _split(run: Run, split: SplitName) -> _Split:
    # All cells of a dataset have one schema, one data folder and so one fit: they share what was read.
    return _read(run.config.data.model_dump_json(), run.schema.model_dump_json(exclude_none=True), split, _Fitted(run))


class _Fitted:
    """A run that counts as equal to any other: the cache below is keyed by data and schema."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Fitted)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=2)
def _read(data: str, schema: str, split: SplitName, fitted: _Fitted) -> _Split:
    run = fitted.run
    table = read_splits(run.config.data, run.schema, (split,))[split]
    columns = columns_from_arrow(run.schema, table)
    rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=False)
    groups_B = np.unique(groups_of(run, table), return_inverse=True)[1].astype(np.int64)
    digest = xxhash.xxh3_128()
    tasks = []
    for task in run.schema.tasks:
        place = run.schema.output_slices[task.name]
        rows_B = np.flatnonzero(observed_of(task, table))
        labels_B = task.transformed(labels_of(task, table)[rows_B])
        for array in (rows_B, labels_B, groups_B):
            digest.update(np.ascontiguousarray(array).data)
        tasks.append(TaskTruth(task.name, task.kind, place, rows_B, labels_B, groups_B[rows_B]))
    num_groups = int(groups_B.max()) + 1
    return _Split(rows, Truth(table.num_rows, num_groups, tuple(tasks), digest.hexdigest()))
