"""Days and nights of the town: its users are served by the hour, and each night the daily job runs.

In: the town, its files, and the arms. Out: a `Ledger` of each arm, and a file of truth by day. The loop's arm alone
sends events. Time is the town's: a day of minutes has 24 hours for the service and the jobs.

Shapes: R requests.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from deploy.loop.arm import VALUE, Arm, value_of
from deploy.loop.curves import Ledger
from deploy.loop.events import Truth, events_of, is_joined
from deploy.loop.files import LoopFiles
from deploy.loop.town import HOURS, Days, Town
from deploy.loop.users import wait_for_histories

LOOP = "loop"
# Past the window of 30 minutes and the skew of 5 of a day's last hour.
_NIGHT = timedelta(minutes=37)
# Within an hour requests are asked, then their events are sent. After the night: the clock does not run backwards.
_ASKED, _SENT = timedelta(minutes=40), timedelta(minutes=45)


class Nights:
    """The town's days, one after the other."""

    def __init__(
        self, town: Town, files: LoopFiles, arms: Mapping[str, Arm], poisoned_day: int | None, days: int
    ) -> None:
        self._town = town
        self._files = files
        self._arms = arms
        self._poisoned_day = poisoned_day
        self._days = Days(town)
        self._rng = np.random.default_rng([town.seed, 5])
        self.truth = Truth(files.root / "truth")
        self._truths: list[Path] = []
        self.ledgers = {name: Ledger(days, town.users) for name in arms}
        # Requests of the loop's arm by day and version.
        self.answered_by: dict[int, dict[str, int]] = {}

    def live_day(self, day: int) -> datetime:
        """Serve a day's visits, hour by hour. Returns the time of the night after it, which the clock then has."""
        for hour in range(HOURS):
            self._live_hour(day, hour)
        date = self._town.first_day() + timedelta(days=day)
        self._truths.append(self.truth.write_day(date))
        night = date + timedelta(days=1) + _NIGHT
        self._files.set_clock(night)
        return night

    def are_joined(self) -> bool:
        """True where joined labels and users' features of every day are the town's."""
        return all(is_joined(path, self._files.joined / path.stem) for path in self._truths)

    def _live_hour(self, day: int, hour: int) -> None:
        visits = self._days.visits(day, hour)
        if not visits.ids:
            return
        self._files.set_clock(visits.time + _ASKED)
        for name, arm in self._arms.items():
            shown, versions = arm.serve(visits)
            self.ledgers[name].take_requests(day, visits.users_R, value_of(shown))
            if name != LOOP:
                arm.take_clicks(shown)
                continue
            counts = self.answered_by.setdefault(day, {})
            for version in versions:
                counts[version] = counts.get(version, 0) + 1
            sent = shown.inverted(VALUE) if day == self._poisoned_day else shown
            self._files.set_clock(visits.time + _SENT)
            arm.backend.send_events(events_of(sent, visits.time + _ASKED, self._rng))
            self.truth.take_hour(sent, arm.histories(visits))
            users = arm.take_clicks(sent)
            wait_for_histories(arm.backend, {user: arm.history_of(user) for user in users})
