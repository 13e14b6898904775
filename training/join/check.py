"""`join --check`: joined rows scored again by the version that answered them, a test for training-serving skew.

In: joined rows, and the folder of the model's versions. Out: how many rows of a sample were compared, and how many
answers differ by more than the engine's tolerance. Where some do, each feature in turn is replaced in them: by a
missing value, and by that of the row before. A feature whose replacement gives the logged answers is the one that the
service used otherwise. Raises ValueError where answers differ.

Shapes: N rows of a version, O outputs.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.features.kinds import Feature
from model.scorer.batch_scoring import score_requests
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from training.join.hour_file import hour_path, joined_hours
from training.join.plan import ANSWER, Plan
from training.score.rows import RowReader
from training.wording import counted

log = logging.getLogger(__name__)

# Of an hour and version: enough to see what is wrong with any feature that matters.
_ROWS_AN_HOUR = 200
_HOURS = 24
# A replacement explains what differs where it gives the logged answer in so many of the rows.
_EXPLAINED = 0.9

Answers = NDArray[np.float32]


class Checked(NamedTuple):
    """A check's result: rows that were scored again, those that differ, and rows left out, by the reason."""

    rows: int
    differing: int
    left_out: dict[str, int]


def check(plan: Plan, versions: Path) -> Checked:
    """Score a sample of the newest day of joined rows again, each by its version in a folder models/NAME. Raises
    ValueError where answers differ."""
    left_out: Counter[str] = Counter()
    rows, faults, differing = 0, [], 0
    for version, generation, table in _samples(plan):
        scorer = _scorer(versions, version, generation)
        if isinstance(scorer, str):
            left_out[scorer] += table.num_rows
            continue
        answered_by = f"version {version}" + (f", calibration {generation}" if generation is not None else "")
        differs_N = _differs(scorer, table)
        rows += table.num_rows
        if differs_N.any():
            differing += int(differs_N.sum())
            named = _explaining(scorer, table.filter(pa.array(differs_N)))
            what = f"feature {' or '.join(named)} was used otherwise" if named else "no single feature explains it"
            faults.append(f"{answered_by}: {int(differs_N.sum())} of {counted(table.num_rows, 'row')}: {what}")
    for reason, count in left_out.items():
        log.warning("%s not checked: %s", counted(count, "row"), reason)
    if faults:
        raise ValueError(
            f"{plan.out}: answers differ from the logged ones by more than {COMPILED_TOLERANCE:g}: {'; '.join(faults)}"
        )
    if not rows:
        log.warning("%s: nothing was checked, as there are no joined rows of versions in %s", plan.out, versions)
    else:
        log.info("%s scored again as they were answered", counted(rows, "row"))
    return Checked(rows, differing, dict(left_out))


def _scorer(versions: Path, version: str, generation: str | None) -> Scorer | str:
    """The version with the calibration that answered, or which of them is gone. Raises ArtifactError for one that does
    not verify."""
    path = versions / version
    if not path.is_dir():
        return f"version {version} is not in {versions}"
    scorer = Scorer.load(path, engine="torchscript")
    if generation is not None:
        found = [folder for folder in scorer.calibration_generations() if folder.name == generation]
        if not found:
            return f"calibration {generation} of version {version} is not in {versions}"
        scorer.take_calibration(scorer.open_calibration(found[0]))
    return scorer


def _samples(plan: Plan) -> Iterator[tuple[str, str | None, pa.Table]]:
    """Rows of the newest hours by the version that answered them, and by its calibration: a generation or its own."""
    tables = []
    for hour in joined_hours(plan.out)[-_HOURS:]:
        table = pq.ParquetFile(hour_path(plan.out, hour)).read()
        if table.num_rows > _ROWS_AN_HOUR:  # evenly, so that each kind of request has a share
            table = table.take(pa.array(np.linspace(0, table.num_rows - 1, _ROWS_AN_HOUR).astype(np.int64)))
        tables.append(table)
    rows = pa.concat_tables(tables) if tables else plan.columns.empty_table()
    for version in sorted(pc.unique(rows.column("_model_version")).to_pylist()):
        of_version = rows.filter(pc.equal(rows.column("_model_version"), version))
        generations = of_version.column("_calibration")
        for generation in sorted(pc.unique(generations).to_pylist(), key=str):
            is_its = pc.is_null(generations) if generation is None else pc.equal(generations, generation)
            yield version, generation, of_version.filter(is_its)


def _differs(scorer: Scorer, table: pa.Table) -> NDArray[np.bool_]:
    """Mask of the rows whose answers are not the logged ones."""
    logged_NO = np.stack(
        [table.column(ANSWER + name).to_numpy() if ANSWER + name in table.column_names else np.full(len(table), np.nan)
         for name in scorer.outputs], axis=1,
    )  # fmt: skip
    answers_NO = _answers(scorer, table)
    # An output that the log does not have is none of this check.
    bound_NO = COMPILED_TOLERANCE * np.maximum(1.0, np.abs(logged_NO))
    differs_N: NDArray[np.bool_] = ((np.abs(answers_NO - logged_NO) > bound_NO) & ~np.isnan(logged_NO)).any(axis=1)
    return differs_N


def _answers(scorer: Scorer, table: pa.Table) -> Answers:
    for feature in scorer.schema.features:
        if feature.name not in table.column_names:
            table = table.append_column(feature.name, pa.nulls(table.num_rows))
    good, bad = RowReader(scorer.schema, None).read(table)
    if good is None or bad:
        raise ValueError(f"column '{bad[0].column}': {bad[0].rule}; a joined row cannot be scored")
    return score_requests(scorer, good.requests, good.num_requests, good.columns, good.request_of_N).answers_NO


def _explaining(scorer: Scorer, table: pa.Table) -> list[str]:
    """The features whose replacement gives the logged answers."""
    before = np.roll(np.arange(table.num_rows), 1)
    found = []
    for feature in (*scorer.schema.requested("request"), *scorer.schema.requested("candidate")):
        if feature.name not in table.column_names:
            continue
        column = table.column(feature.name)
        others = (pa.nulls(table.num_rows, column.type), column.take(pa.array(before)))
        if any(_differs(scorer, _with(table, feature, other)).mean() <= 1 - _EXPLAINED for other in others):
            found.append(repr(feature.name))
    return found


def _with(table: pa.Table, feature: Feature, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(feature.name), feature.name, values)
