"""A line of the impression log as the service writes it, for logs of simulated requests.

tests/service/impressions/test_line.py compares its keys with those of a service's own line.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any


def stamp(time: datetime) -> str:
    """A time as logs have it."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def impression_line(
    request_id: str,
    time: str,
    model: str,
    *,
    user_hash: str,
    user: dict[str, Any],
    candidates: dict[str, Any],
    score: Sequence[float],
    tasks: dict[str, Any],
    **changed: Any,
) -> dict[str, Any]:
    """A line of format 2: all candidates are answered, in the order of the request. `time` is a `stamp`."""
    return {
        "format": 2,
        "time": time,
        "request_id": request_id,
        "model": model,
        "model_version": "0",
        "calibration": None,
        "value_model": "default",
        "value_model_version": "9f2c01ab",
        "policy": None,
        "policy_version": None,
        "experiments": {},
        "epochs": {},
        "fell_back": [],
        "user_hash": user_hash,
        "share": 1.0,
        "top_k": None,
        "catalogue": None,
        "user": user,
        "candidates": candidates,
        "histories": None,
        "score": score,
        "tasks": tasks,
        "raw": {},
        "order": list(range(len(score))),
        "propensity": None,
        **changed,
    }
