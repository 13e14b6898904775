"""The file of a join, join.yaml: which events make which labels, and from what logs.

In: a YAML file. Out: a validated, frozen `JoinFile`. Training joins by it. The service reads a copy of it beside the
model's versions, for the types of events that it names. Every fault is a ValueError that names the place and the rule.
"""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from model.strict_yaml import Name, StrictModel

FILE_NAME = "join.yaml"
SHOWN = "shown"

EventType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MOST_DAYS = 366


def _duration(given: object) -> object:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", given) if isinstance(given, str) else None
    if found is None:
        raise ValueError("expected a whole number and its unit, such as 30s, 5m, 24h or 7d")
    duration = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if duration > timedelta(days=_MOST_DAYS):
        raise ValueError(f"{given} is longer than {_MOST_DAYS} days")
    return duration


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class Label(StrictModel):
    """The label of a column. Without `value`: 1 if there is any such event, else 0, and with `undone_by` the later of
    the two decides. With `value`: what becomes of the events' values. `missing` stands where there is no event."""

    event: EventType
    value: Literal["sum", "max", "first", "last", "count"] | None = None
    undone_by: EventType | None = None
    missing: float | None = Field(default=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_way(self) -> "Label":
        if self.undone_by is not None and self.value is not None:
            raise ValueError("undone_by goes with a label of 0 and 1: leave out value")
        if self.undone_by == self.event:
            raise ValueError(f"undone_by is the event itself, {self.event}")
        return self

    @property
    def adds_up(self) -> bool:
        """True where an event that comes twice would count twice, so that each needs an `event_id`."""
        return self.value in ("sum", "count")


class JoinFile(StrictModel):
    """One join: a feed's impressions and events, and the dated rows that are made of them."""

    schema_file: str = Field(alias="schema", min_length=1)
    # Whose impressions are joined, where the logs have those of several models.
    model: str | None = Field(default=None, min_length=1)
    # Where features came from catalogues: the folder of the models, whose manifests name the item files, and the folder
    # of these files, where it is not the one that they had when the catalogue was built.
    models: str | None = Field(default=None, min_length=1)
    items: str | None = Field(default=None, min_length=1)
    impressions: str = Field(min_length=1)
    events: str = Field(min_length=1)
    out: str = Field(min_length=1)
    window: Duration = timedelta(minutes=30)
    skew: Duration = timedelta(minutes=5)
    rows: Literal["shown", "answered"] = "shown"
    features: dict[Name, Literal["shown.position"]] = Field(default_factory=dict)
    labels: dict[str, Label] = Field(min_length=1)

    @model_validator(mode="after")
    def _items_of_models(self) -> "JoinFile":
        if self.items is not None and self.models is None:
            raise ValueError("items goes with models, the folder whose manifests name the item files")
        return self

    @property
    def event_types(self) -> frozenset[str]:
        """The types that the file names, `shown` among them."""
        undone = {label.undone_by for label in self.labels.values() if label.undone_by is not None}
        return frozenset({SHOWN, *(label.event for label in self.labels.values()), *undone})

    @property
    def adding_types(self) -> frozenset[str]:
        """The types whose events need an `event_id`."""
        return frozenset(label.event for label in self.labels.values() if label.adds_up)
