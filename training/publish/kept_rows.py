"""Validation rows that a version keeps for the acceptance of compiled packages (model/artifact/quality_rows.py).

In: a run and its validation split. Out: encoded rows drawn evenly, with the labels of each, in sets of candidates.

Shapes: B rows of the split, R rows that are kept, T tasks.
"""

import logging

import numpy as np
import pyarrow as pa

from model.artifact.quality_rows import CANDIDATES, SETS, QualityRows, most_rows, sets_of
from model.features.block import BLOCKS
from model.features.distinct import picked
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import labels_of, observed_of
from training.run.run import Run

log = logging.getLogger(__name__)

# Rows whose size that of the others is estimated by.
_SIZED_ROWS = 1000


def kept_rows(run: Run, table: pa.Table, seed: int = 0) -> QualityRows | None:
    """Rows drawn from a split, as they are served. None, with a line in the log, of a split with fewer than a set."""
    if table.num_rows < CANDIDATES:
        log.warning(
            "the validation split has %d rows, fewer than the %d of a set: no rows are kept, and a compiled package of "
            "this version cannot be accepted by quality",
            table.num_rows,
            CANDIDATES,
        )
        return None
    drawn_B = np.random.default_rng(seed).permutation(table.num_rows)
    sized = _encoded(run, table.take(drawn_B[:_SIZED_ROWS]))
    size = sum(array.nbytes for array in (*sized.request, *sized.candidate, sized.labels_RT)) / len(sized.labels_RT)
    rows = _encoded(run, table.take(np.sort(drawn_B[: most_rows(size)])))
    log.info(
        "kept %d of %d validation rows in %d sets of %d candidates, for the acceptance of compiled packages by quality",
        len(rows.labels_RT),
        table.num_rows,
        SETS,
        CANDIDATES,
    )
    return rows._replace(sets_SN=sets_of(len(rows.labels_RT), seed))


def _encoded(run: Run, table: pa.Table) -> QualityRows:
    columns = columns_from_arrow(run.schema, table)
    blocks = [run.encoder.encode(block, columns, table.num_rows, as_served=True).block for block in BLOCKS]
    # A block may view the columns of all rows: only those of its own are kept.
    every = np.arange(table.num_rows)
    request, candidate = (picked(block, every) for block in blocks)
    labels_RT = np.stack(
        [
            np.where(observed_of(task, table), labels_of(task, table), np.nan).astype(np.float32)
            for task in run.schema.tasks
        ],
        axis=1,
    )
    return QualityRows(request, candidate, labels_RT, np.zeros((0, CANDIDATES), np.int64))
