"""Generations of what is made from a version that is served, kept at the newest one that verifies.

In: `<models>/<name>/derived/<version>/<kind>/`, polled by the polling thread. Out: the scorer's catalogue or
calibration, replaced in one assignment: a request that has begun keeps the one it took. A generation that does not
verify is left out with its reason and tried again only when its files change. The one before it serves on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from model.scorer.scorer import Scorer
from model.untrusted_files import Fingerprints, fingerprints
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics

_log = FieldLogger("models")


class GenerationWatch(ABC):
    """The generations of one kind of one model. `refresh` is called by one thread. `shown` makes a reason fit for
    clients."""

    kind: ClassVar[str]

    def __init__(self, model: str, metrics: Metrics, shown: Callable[[str], str]) -> None:
        self._model = model
        self._metrics = metrics
        self._shown = shown
        # The files of generations: as they were refused, and at the last poll.
        self._refused: dict[Path, Fingerprints] = {}
        self._seen: dict[Path, Fingerprints] = {}
        self._missing: str | None = None
        self._reasons: dict[Path, str] = {}

    @abstractmethod
    def generations(self, scorer: Scorer) -> list[Path]:
        """The published generations, oldest first."""

    @abstractmethod
    def generation(self, scorer: Scorer) -> int:
        """The generation that serves, 0 without one."""

    def folders(self, place: Path) -> list[Path]:
        """The folders that a generation is read from."""
        return [place]

    def needed(self, scorer: Scorer) -> list[str]:
        """The generations whose files serve, none without one."""
        served = self.generation(scorer)
        return [str(served)] if served else []

    @abstractmethod
    def take_generation(self, scorer: Scorer, place: Path) -> dict[str, Any]:
        """Serve a generation from now on. Returns what the log says of it. Raises what its files cause."""

    def refresh(self, scorer: Scorer) -> bool:
        """Load the newest generation that verifies, if there is one newer than the scorer's. True for a new one."""
        before, generations = self.generation(scorer), self.generations(scorer)
        self._reasons = {place: reason for place, reason in self._reasons.items() if place in generations}
        keys = [] if scorer.artifact.verify_key is None else [scorer.artifact.verify_key]
        seen, self._seen = self._seen, {}
        for place in reversed(generations):
            if int(place.name) <= self.generation(scorer):
                break
            files = (file for folder in self.folders(place) for file in folder.glob("*"))
            state = self._seen[place] = fingerprints([*files, *keys])
            refused = self._refused.get(place)
            # A slow copy has other files at every poll: it is tried again when it is over.
            is_due = refused is None or (state != refused and state == seen.get(place))
            if is_due and not self._open_generation(scorer, place):
                self._refused[place] = state
        self._check_served(scorer, generations)
        return self.generation(scorer) != before

    def reason(self, scorer: Scorer) -> str | None:
        """Reason why a newer generation than what serves does not, or that what serves is gone."""
        refused = [place for place in self._reasons if int(place.name) > self.generation(scorer)]
        return self._reasons[max(refused, key=lambda place: int(place.name))] if refused else self._missing

    def _check_served(self, scorer: Scorer, generations: list[Path]) -> None:
        before, published = self._missing, {place.name for place in generations}
        gone = [number for number in self.needed(scorer) if number not in published]
        self._missing = f"generation {gone[0]}: missing; it serves on from memory" if gone else None
        fields = {"model": self._model, "model_version": scorer.version}
        if self._missing is not None and before is None:
            _log.error(f"{self.kind} is missing; it serves on from memory", **fields, generation=gone[0])

    def _open_generation(self, scorer: Scorer, place: Path) -> bool:
        fields = {"model": self._model, "model_version": scorer.version, "generation": place.name}
        try:
            more = self.take_generation(scorer, place)
        except Exception as error:  # a bad published folder never stops the generation before it
            reason = self._shown(str(error) or repr(error))
            self._reasons = {**self._reasons, place: reason}
            self._metrics.loads.labels(f"{self.kind}_refused").inc()
            _log.fault(f"{self.kind} refused", error, **fields, reason=reason)
            return False
        self._metrics.loads.labels(f"{self.kind}_ready").inc()
        _log.info(f"{self.kind} ready", **fields, **more)
        return True
