"""Calibration of a published version fitted again, on the last days: `python -m training recalibrate VERSION DATA`.

In: a version and a log with its features and labels, the joined one for example. Out: the next generation,
`<models>/<name>/derived/<version>/calibration/<generation>/`, made visible by one rename, and a line of the model's
journal. A task with too few labels keeps the map that it has. Nothing else of the version changes. Services take the
generation up by themselves.

Shapes: B rows, N of them with an observed label, O outputs.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from model.artifact.artifact import CALIBRATION, file_entry, hidden_folder, seal, sync, write_manifest
from model.artifact.signature import SigningKey
from model.calibration import AnswerMap, Calibration, calibrated, own_calibration
from model.recalibration import FORMAT_VERSION, GOLDEN_ANSWERS, folder_of, generations
from model.rollout.decisions import FOUND, PUBLISHED, RECALIBRATE
from model.rollout.journal import Entry, Journal
from model.rollout.labels import FILE_NAME as LABELS
from model.rollout.labels import LabelsFile
from model.scorer.batch_scoring import score_requests
from model.scorer.newest import take_newest_calibration
from model.scorer.scorer import Scorer
from model.tasks import Task
from training.columns import floats
from training.config import DataConfig
from training.data.files import LogFiles
from training.data.kinds.columns import columns_from_arrow
from training.data.moving.days import DAY, LoggedDays, days_from
from training.data.rows import labels_of, observed_of, read_splits
from training.publish.sign import sign
from training.split_config import SplitConfig
from training.tasks import learned
from training.tasks.label_mean_map import NoLabelMeanError, fit_label_mean
from training.tasks.probability_maps import CalibrationKind, NotCalibratedError

Array = NDArray[np.float64]

log = logging.getLogger(__name__)

# The join's column of row weights, 1 over the share of requests that the log keeps.
WEIGHT = "_weight"
# Rows that are answered at once.
_ROWS = 8192


class TooFewLabelsError(ValueError):
    """No task has enough labels to calibrate by. The message says how many each has."""


@dataclass(frozen=True, slots=True)
class Days:
    """Rows that a calibration is fitted on: `days` calendar days of a column, the last of which is `end`, without those
    in `exclude`. `weight` is the column of row weights. Without it joined rows count by the join's own."""

    days: int = 1
    end: date | Literal["latest"] = "latest"
    column: str = "date"
    timezone: str = "UTC"
    exclude: frozenset[date] = frozenset()
    weight: str | None = None

    def weight_of(self, logged: LoggedDays) -> str | None:
        """The column of row weights, None where every row counts once."""
        is_joined = logged.is_joined and logged.files.type_of(WEIGHT) is not None
        return self.weight or (WEIGHT if is_joined else None)

    def kept(self, logged: LoggedDays) -> list[date]:
        """The days. Raises ValueError where all of them are left out."""
        if self.days < 1:
            raise ValueError(f"--days {self.days}: at least 1")
        end = logged.newest(self.exclude) if self.end == "latest" else self.end
        days = [day for day in days_from(end - (self.days - 1) * DAY, end) if day not in self.exclude]
        if not days:
            raise ValueError(f"every day up to {end} is left out; calibrate on more --days, or release some")
        return days


def recalibrate(
    version: Path,
    data: Path | str,
    rows: Days,
    *,
    kind: CalibrationKind | None = None,
    sign_key: SigningKey | None = None,
    even_if_judged: bool = False,
    reasons: Sequence[str] = (),
    who: str = "recalibrate",
    now: datetime | None = None,
) -> Path:
    """Publish the next generation of a version's calibration, signed if a key is given, and return its folder.

    `kind` is of the maps of probabilities. By default it is the one that the version was exported with, else platt.
    Raises ValueError for data that does not fit the version's schema, TooFewLabelsError where no task has enough
    labels, and ValueError while the version is judged (`refuse_judged`) unless `even_if_judged`."""
    torch.set_num_threads(1)
    scorer = Scorer.load(version, engine="torchscript")
    if not even_if_judged:
        refuse_judged(version)
    for reason in take_newest_calibration(scorer):
        log.warning("%s", reason)
    logged = LoggedDays(LogFiles(data), rows.column, rows.timezone)
    days = rows.kept(logged)
    weight = rows.weight_of(logged)
    table = _rows_of(scorer, data, rows, [logged.literal(day) for day in days], weight)
    weights_B = np.ones(table.num_rows) if weight is None else floats(table.column(weight))
    if not weights_B.any():
        raise ValueError(f"{data}: column '{weight}' (row weights): all {len(weights_B)} weights are 0")
    raw_BO = _raw_answers(scorer, table)
    fitted, about = _fit(scorer, table, raw_BO, kind or _kind_of(scorer), weights_B)
    mappings = fitted.bound(scorer.schema)
    content = {
        "source": Path(str(data)).name,
        "data_window": {"column": rows.column, "days": [str(day) for day in days]} | (
            {} if weight is None else {"weight": weight}
        ),
        "rows": table.num_rows,
        "tasks": about,
        "means": dict(zip(scorer.outputs, np.average(calibrated(raw_BO, mappings).astype(np.float64), axis=0,
                                                     weights=weights_B).tolist(), strict=True)),
    }  # fmt: skip
    final = publish_generation(scorer, fitted, content, sign_key)
    figures = {"tasks": about, "data_window": content["data_window"]}
    _journal(scorer, final.name, figures, reasons, who, now or datetime.now(UTC))
    log.info("published %s: %d rows of %s to %s", final, table.num_rows, days[0], days[-1])
    return final


def own_again(
    version: Path,
    *,
    sign_key: SigningKey | None = None,
    even_if_judged: bool = False,
    who: str = "recalibrate",
    now: datetime | None = None,
) -> Path:
    """Publish the version's own calibration as the next generation, in place of one that was fitted later. Returns its
    folder. Raises ValueError where nothing was fitted later, and while the version is judged."""
    scorer = Scorer.load(version, engine="torchscript")
    if not even_if_judged:
        refuse_judged(version)
    if not generations(folder_of(scorer.artifact)):
        raise ValueError(f"{version}: has the calibration that it was exported with; there is nothing to undo")
    means = dict(zip(scorer.outputs, scorer.reference.means_O.tolist(), strict=True))
    content = {"source": "", "data_window": {}, "rows": 0, "tasks": {}, "means": means}
    final = publish_generation(scorer, own_calibration(scorer.artifact), content, sign_key)
    _journal(scorer, final.name, {"tasks": {}, "data_window": {}}, (), who, now or datetime.now(UTC))
    return final


def refuse_judged(version: Path) -> None:
    """Raise ValueError for a version that is judged: the canary, and the stable version beside it. A judgement compares
    both as they are."""
    labels = LabelsFile(version.parent / LABELS)
    labels.poll()
    canary, stable = labels.last_valid.canary, labels.last_valid.stable
    if canary is not None and version.name in (str(canary.version), str(stable)):
        raise ValueError(
            f"{version}: is judged, canary {canary.version} against stable {stable}; calibrate when that has ended, or "
            "say --even-if-judged, which makes the judgement's figures those of a mixture"
        )


def _rows_of(scorer: Scorer, data: Path | str, rows: Days, days: list[Any], weight: str | None) -> pa.Table:
    split = SplitConfig(column=rows.column, train=days, validation=[], timezone=rows.timezone)
    config = DataConfig(path=data, split=split, weight=weight)
    return read_splits(config, scorer.schema, ("train",))["train"]


def _raw_answers(scorer: Scorer, table: pa.Table) -> NDArray[np.float32]:
    """raw_BO, before any calibration, each row a request of its own."""
    schema = scorer.schema
    parts = []
    for start in range(0, table.num_rows, _ROWS):
        part = table.slice(start, _ROWS)
        columns = columns_from_arrow(schema, part)
        requests, candidates = (
            {feature.name: columns[feature.name] for feature in schema.requested(block)}
            for block in ("request", "candidate")
        )
        rows = part.num_rows
        parts.append(score_requests(scorer, requests, rows, candidates, np.arange(rows)).raw_NO)
    return np.concatenate(parts)


def _kind_of(scorer: Scorer) -> CalibrationKind:
    exported = scorer.manifest.metrics.get("calibration")
    kind: CalibrationKind = "platt"
    if isinstance(exported, dict) and exported.get("kind") in ("isotonic", "platt"):
        kind = exported["kind"]
    return kind


def _fit(
    scorer: Scorer, table: pa.Table, raw_BO: NDArray[np.float32], kind: CalibrationKind, weights_B: Array
) -> tuple[Calibration, dict[str, Any]]:
    """Every task's map, and by task what it changes on these rows."""
    before_BO = calibrated(raw_BO, scorer.calibration.mappings).astype(np.float64)
    maps = dict(scorer.calibration.calibration.tasks)
    about: dict[str, Any] = {}
    fitted = 0
    for task in scorer.schema.tasks:
        columns = scorer.schema.output_slices[task.name]
        observed_B = observed_of(task, table) & (weights_B > 0)
        labels_N = labels_of(task, table)[observed_B]
        weights_N = weights_B[observed_B]
        weights_N = weights_N / weights_N.mean() if len(weights_N) else weights_N
        raw_NO = raw_BO[observed_B, columns].astype(np.float64)
        try:
            mapping = _map_of(scorer, task, kind, labels_N, raw_NO, weights_N)
        except (NotCalibratedError, NoLabelMeanError) as error:
            log.warning("task %s keeps its calibration: %s", task.name, error)
            about[task.name] = {"rows": len(labels_N), "kept": str(error)}
            continue
        maps[task.name] = mapping
        fitted += 1
        after_NO = mapping(raw_NO if task.is_probability and len(task.outputs) > 1 else raw_NO[:, 0])
        about[task.name] = {
            "rows": len(labels_N),
            "before": _measured(task, labels_N, before_BO[observed_B, columns], weights_N),
            "after": _measured(task, labels_N, after_NO.reshape(len(labels_N), -1), weights_N),
        }
    if not fitted:
        raise TooFewLabelsError(
            f"{scorer.artifact.path}: no task has enough labels in {table.num_rows} rows ("
            f"{'; '.join(one['kept'] for one in about.values())}); calibrate on more --days"
        )
    return Calibration(tasks=maps), about


def _map_of(
    scorer: Scorer, task: Task, kind: CalibrationKind, labels_N: Array, raw_NO: Array, weights_N: Array
) -> AnswerMap:
    own = learned(task, scorer.encoder.fitted.targets)
    if task.is_probability:
        return own.fit_map(kind, labels_N, raw_NO, weights_N)
    return fit_label_mean(labels_N, raw_NO[:, 0], own.scale.upper, weights_N)


def _measured(task: Task, labels_N: Array, answers_NO: Array, weights_N: Array) -> dict[str, Any]:
    if task.is_probability:
        return learned(task).calibration_of(labels_N, answers_NO, weights_N)
    return {"calibration_ratio": float(weights_N @ answers_NO[:, 0] / (weights_N @ labels_N))}


def publish_generation(
    scorer: Scorer, fitted: Calibration, content: dict[str, Any], sign_key: SigningKey | None
) -> Path:
    """Publish a calibration as the next generation of a version's, checked as a reader will. `content` is what the
    manifest says of it beside its files. Returns its folder."""
    family = folder_of(scorer.artifact)
    with hidden_folder(family) as folder:
        (folder / CALIBRATION).write_text(json.dumps(fitted.model_dump(mode="json"), allow_nan=False) + "\n")
        golden = _golden_answers(scorer, fitted)
        (folder / GOLDEN_ANSWERS).write_text(json.dumps(golden, allow_nan=False) + "\n")
        final = family / str(max(generations(family), default=0) + 1)
        about = {
            "format_version": FORMAT_VERSION,
            "kind": "calibration",
            "generation": int(final.name),
            "name": scorer.manifest.name,
            "version": scorer.manifest.version,
            "parent": scorer.manifest.checksum,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **content,
            "files": {name: file_entry(folder / name) for name in (CALIBRATION, GOLDEN_ANSWERS)},
        }
        write_manifest(folder, about)
        if sign_key is not None:
            sign(folder, sign_key)
        scorer.open_calibration(folder)  # as a reader will
        seal(folder)
        folder.rename(final)  # over the generation of a faster job this fails, for that folder is not empty
        sync(family)
    return final


def _golden_answers(scorer: Scorer, fitted: Calibration) -> list[dict[str, list[float]]]:
    mappings = fitted.bound(scorer.schema)
    answers = [calibrated(raw_NO, mappings).astype(np.float64) for raw_NO in scorer.raw_golden_answers()]
    return [dict(zip(scorer.outputs, answers_NO.T.tolist(), strict=True)) for answers_NO in answers]


def note_found_generations(scorer: Scorer, who: str, now: datetime) -> None:
    """Enter generations that the journal does not know: their job was killed before its line."""
    _journal(scorer, None, {}, (), who, now)


def _journal(
    scorer: Scorer, published: str | None, figures: dict[str, Any], reasons: Sequence[str], who: str, now: datetime
) -> None:
    """A line for the generation that was published now, and one for each that the journal does not know."""
    journal = Journal(scorer.artifact.path.parent)
    known = {
        (entry.versions.get("version"), entry.versions.get("calibration"))
        for entry in journal.read().entries
        if entry.step == RECALIBRATE
    }
    for generation in map(str, generations(folder_of(scorer.artifact))):
        if (scorer.version, generation) in known:
            continue
        is_own = generation == published
        journal.append(
            Entry(
                time=now,
                step=RECALIBRATE,
                decision=PUBLISHED if is_own else FOUND,
                reasons=tuple(reasons) if is_own else (),
                figures=figures if is_own else {},
                versions={"version": scorer.version, "calibration": generation},
                who=who,
            )
        )
