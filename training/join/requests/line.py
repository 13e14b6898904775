"""One line of the impression log as a join reads it: the fields that say what answered, and beside them its columns.

In: JSON. Out: `Line`, whose columns (features, scores, answers) are read over, or of `Decoders.whole` all of it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from training.join.plan import Plan

# What a request has that is no scalar: its columns.
NEEDED_COLUMNS = ("score", "tasks", "user", "candidates", "order")


class Line(msgspec.Struct):
    """A line, by its scalars."""

    format: int
    time: str
    lost: int | None = None
    request_id: str | None = None
    model: str | None = None
    model_version: str | None = None
    calibration: str | None = None
    value_model_version: str | None = None
    policy_version: str | None = None
    experiments: dict[str, str] | None = None
    epochs: dict[str, str] | None = None
    fell_back: list[str] | None = None
    user_hash: str | int | None = None
    share: float | None = None
    catalogue: str | bool | None = None
    hashes: Any = None


class Decoders:
    """Decoders of the lines of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.request_features = [feature for feature in plan.logged if feature.side != "candidate"]
        self.candidate_features = [feature for feature in plan.logged if feature.side == "candidate"]
        user = _values_of([feature.name for feature in self.request_features], Any)
        features = _values_of([feature.name for feature in self.candidate_features], list[Any] | None)
        tasks = _values_of(plan.schema.outputs, list[float] | None)
        candidates: Any = msgspec.defstruct("Candidates", [("id", list[str]), ("features", features)])
        columns: list[tuple[str, Any, Any]] = [
            ("user", user | None, None),
            ("candidates", candidates | None, None),
            ("score", list[float] | None, None),
            ("tasks", tasks | None, None),
            ("order", list[int] | None, None),
            ("propensity", list[float] | None, None),
        ]
        self.whole_type: Any = msgspec.defstruct("WholeLine", columns, bases=(Line,))
        self.scalars = msgspec.json.Decoder(Line)
        self.whole = msgspec.json.Decoder(self.whole_type)


def value_of(values: Any, place: int) -> Any:
    """Values that a line has of the feature or output at a place, None where it has none."""
    return getattr(values, f"f{place}")


def _values_of(names: Sequence[str], kind: Any) -> Any:
    """A struct of the features or outputs alone, by their places: what else a line has is read over."""
    fields = {f"f{place}": name for place, name in enumerate(names)}
    return msgspec.defstruct("Values", [(field, kind, None) for field in fields], rename=fields)


def check_scalars(line: Line) -> None:
    """Raise ValueError where a request does not say what a row needs."""
    for name in ("request_id", "model", "model_version"):
        if getattr(line, name) is None:
            raise ValueError(f"no {name}")
    if line.share is None:
        raise ValueError("no share, the part of requests that the log keeps")
    if not 0 < line.share <= 1:
        raise ValueError("share: not a number above 0, at most 1")
    if isinstance(line.user_hash, int):
        raise ValueError("user_hash: expected 32 hexadecimal digits")


def check_columns(line: Any) -> None:
    """Raise ValueError where a request that was read whole lacks one of its columns."""
    for name in NEEDED_COLUMNS:
        if getattr(line, name) is None:
            raise ValueError("no order, the rows as answered" if name == "order" else f"no {name}")
