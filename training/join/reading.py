"""Counts of what one generation of staged lines was read from, as `read.json` and `done.json` have them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from training.join.plan import hour_name, hour_named


@dataclass(slots=True)
class Reading:
    """Counts of a generation. Hours are those of impressions, or of the receipt of events."""

    impressions: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    model: str | None = None
    # The last hour that was joined when it was read.
    joined: int | None = None
    bad_lines: int = 0
    # Requests and events of other models, requests of users that are forgotten, and files that vanished.
    left_out: Counter[str] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)
    late_requests: Counter[int] = field(default_factory=Counter)
    # By the last hour in which their impression can lie, then by the hour of receipt.
    late_events: dict[int, Counter[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts as a file has them."""
        return {
            "impressions": self.impressions,
            "events": self.events,
            "model": self.model,
            "joined": None if self.joined is None else hour_name(self.joined),
            "bad_lines": self.bad_lines,
            "left_out": dict(self.left_out),
            "lost": named(self.lost),
            "late_requests": named(self.late_requests),
            "late_events": {hour_name(hour): named(of_hour) for hour, of_hour in sorted(self.late_events.items())},
        }

    @classmethod
    def of_json(cls, given: dict[str, Any]) -> "Reading":
        """The counts of a file that this module wrote."""
        return cls(
            given["impressions"],
            given["events"],
            given["model"],
            None if given["joined"] is None else hour_named(given["joined"]),
            given["bad_lines"],
            Counter(given["left_out"]),
            _counted(given["lost"]),
            _counted(given["late_requests"]),
            {hour_named(hour): _counted(of_hour) for hour, of_hour in given["late_events"].items()},
        )


def named(counts: Counter[int]) -> dict[str, int]:
    """Counts by the names of hours, in their order."""
    return {hour_name(hour): count for hour, count in sorted(counts.items())}


def _counted(counts: dict[str, int]) -> Counter[int]:
    return Counter({hour_named(hour): count for hour, count in counts.items()})
