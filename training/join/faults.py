"""Lines that a join cannot read: counted by file, the first of them named."""

import logging
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

_NAMED = 5


@dataclass(slots=True)
class BadLines:
    """Lines of a log that are none, over all of its files."""

    count: int = 0
    by_file: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, line: int, reason: str) -> None:
        """Count a line of the file at `place`. The first of all are logged, with the reason."""
        self.count += 1
        self.by_file[place] = self.by_file.get(place, 0) + 1
        if self.count <= _NAMED:
            log.warning("%s:%d: left out: %s", place, line, reason)
        elif self.count == _NAMED + 1:
            log.warning("further lines are left out and counted, not named")
