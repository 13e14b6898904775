"""The lines of an impression log as a reader of its own would have them, whichever kind of file they stand in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from service.impressions.folder import impression_files


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """All lines, oldest first. What a Parquet row does not have is left out."""
    found: list[dict[str, Any]] = []
    for file in impression_files(folder).whole_files():
        if file.suffix == ".jsonl":
            found += map(json.loads, file.read_bytes().splitlines())
        else:
            found += map(_line, pq.read_table(file).to_pylist())
    return found


def _line(row: dict[str, Any]) -> dict[str, Any]:
    line = {name: value for name, value in row.items() if value is not None or name == "top_k"}
    line["time"] = row["time"].isoformat(timespec="milliseconds")
    # The digits of the answer: the fewest that tell one float32 from another.
    line["tasks"] = {task: [float(str(np.float32(value))) for value in column] for task, column in row["tasks"]}
    if row["user"] is not None:
        line["user"] = json.loads(row["user"])
        line["candidates"] = {"id": line.pop("candidate_id"), "features": json.loads(line.pop("features"))}
    else:
        names = ("user", "candidate_id", "features")
        line["hashes"] = {name: line.pop(f"{name}_hash") for name in names}
    return {"format": 1, **line}
