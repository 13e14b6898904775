"""A bad model, published by hand: trained on the opposite of what users did, past the gates of the daily job.

In: the log that the first model learned from. Out: the next version of the loop's model.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deploy.loop.arm import VALUE
from deploy.loop.files import MODEL, LoopFiles, training
from deploy.loop.preparation import SPLIT, STATIC, RunCommand, export, train

_BAD = "bad"


def publish_bad_model(files: LoopFiles, run: RunCommand) -> str:
    """Train and publish it. Returns its version. Raises ChildError."""
    log = files.root / "data" / _BAD
    log.mkdir()
    for path in sorted((files.root / "data" / STATIC).glob("*.parquet")):
        pq.write_table(_inverted(pq.read_table(path)), log / path.name)
    trained = train(files, training(log, SPLIT, files.root / "runs" / _BAD), run)
    export(trained, files.models, MODEL, run)
    return str(max(int(path.name) for path in _versions(files)))


def _inverted(table: pa.Table) -> pa.Table:
    for label in VALUE:
        place = table.schema.get_field_index(label)
        table = table.set_column(place, label, pa.array(1 - table.column(label).to_numpy()))
    return table


def _versions(files: LoopFiles) -> list[Path]:
    return [path for path in (files.models / MODEL).iterdir() if path.name.isdecimal()]
