"""The lines of an impression log as a reader of its own would have them, whichever kind of file they stand in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from service.base.clock import rfc3339
from service.impressions.folder import impression_files


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """All lines, oldest first."""
    found: list[dict[str, Any]] = []
    for file in impression_files(folder).whole_files():
        if file.suffix == ".jsonl":
            found += map(json.loads, file.read_bytes().splitlines())
        else:
            found += map(_line, pq.read_table(file).to_pylist())
    return found


def _line(row: dict[str, Any]) -> dict[str, Any]:
    time = rfc3339(row["time"])
    if row["lost"] is not None:
        return {"format": row["format"], "time": time, "lost": row["lost"], "reason": row["reason"]}
    line = {name: value for name, value in row.items() if name not in ("lost", "reason")}
    line |= {"time": time, "experiments": dict(row["experiments"]), "epochs": dict(row["epochs"])}
    # The digits of the answer: the fewest that tell one float32 from another.
    for name in ("tasks", "raw"):
        line[name] = {task: [float(str(np.float32(value))) for value in column] for task, column in row[name]}
    kept = {
        "user": line.pop("user_features_hash"),
        "candidate_id": line.pop("candidate_id_hash"),
        "features": line.pop("features_hash"),
    }
    ids, features, histories = line.pop("candidate_id"), line.pop("features"), line.pop("histories")
    if line.pop("user") is not None:
        line["user"] = json.loads(row["user"])
        line["candidates"] = {"id": ids, "features": json.loads(features)}
        line["histories"] = None if histories is None else json.loads(histories)
        assert set(kept.values()) == {None}
    else:
        line["hashes"] = kept
        assert histories is None
    return line
