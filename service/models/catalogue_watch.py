"""The catalogue of the version that is served, kept at the newest generation that verifies.

In: `<models>/<name>/derived/<version>/catalogue/`, polled by the polling thread. Out: the scorer's `catalogue`,
replaced in one assignment: a request that has begun keeps the one it took. A generation that does not verify is left
out with its reason and tried again only when its files change. The one before it serves on.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from model.scorer.scorer import Scorer
from model.untrusted_files import Fingerprints, fingerprints
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics

_log = FieldLogger("models")


class CatalogueWatch:
    """The catalogues of one model. `refresh` is called by one thread. `shown` makes a reason fit for clients."""

    def __init__(self, model: str, metrics: Metrics, shown: Callable[[str], str]) -> None:
        self._model = model
        self._metrics = metrics
        self._shown = shown
        # The files of generations: as they were refused, and at the last poll.
        self._refused: dict[Path, Fingerprints] = {}
        self._seen: dict[Path, Fingerprints] = {}
        self._missing: str | None = None
        self._reasons: dict[Path, str] = {}

    def refresh(self, scorer: Scorer) -> None:
        """Load the newest generation that verifies, if there is one newer than the scorer's."""
        generations = scorer.catalogue_generations()
        self._reasons = {place: reason for place, reason in self._reasons.items() if place in generations}
        keys = [] if scorer.artifact.verify_key is None else [scorer.artifact.verify_key]
        seen, self._seen = self._seen, {}
        for place in reversed(generations):
            if int(place.name) <= _generation(scorer):
                break
            state = self._seen[place] = fingerprints([*place.glob("*"), *keys])
            refused = self._refused.get(place)
            # A slow copy has other files at every poll: it is tried again when it is over.
            is_due = refused is None or (state != refused and state == seen.get(place))
            if is_due and not self._open_generation(scorer, place):
                self._refused[place] = state
        self._check_served(scorer, generations)

    def _check_served(self, scorer: Scorer, generations: list[Path]) -> None:
        served, before = str(_generation(scorer)), self._missing
        is_there = scorer.catalogue is None or served in [place.name for place in generations]
        self._missing = None if is_there else f"generation {served}: missing; it serves on from memory"
        fields = {"model": self._model, "model_version": scorer.version, "generation": served}
        if self._missing is not None and before is None:
            _log.error("catalogue is missing; it serves on from memory", **fields)

    def measure(self, scorer: Scorer) -> None:
        """Set the metrics of the model's catalogue to those of the scorer's."""
        manifest = None if scorer.catalogue is None else scorer.catalogue.manifest
        created = 0.0 if manifest is None else datetime.fromisoformat(manifest.created).timestamp()
        self._metrics.catalogue_items.labels(self._model).set(0 if manifest is None else manifest.items)
        self._metrics.catalogue_created_at.labels(self._model).set(created)

    def entry(self, scorer: Scorer) -> dict[str, Any] | None:
        """The catalogue as /v1/models shows it, with the reason why a newer one does not serve. None without any."""
        refused = [place for place in self._reasons if int(place.name) > _generation(scorer)]
        reason = self._reasons[max(refused, key=lambda place: int(place.name))] if refused else self._missing
        if scorer.catalogue is None:
            return None if reason is None else {"generation": None, "items": 0, "created": None, "reason": reason}
        manifest = scorer.catalogue.manifest
        shown = {"generation": manifest.generation, "items": manifest.items, "created": manifest.created}
        return {**shown, "reason": reason}

    def _open_generation(self, scorer: Scorer, place: Path) -> bool:
        fields = {"model": self._model, "model_version": scorer.version, "generation": place.name}
        try:
            scorer.catalogue = scorer.open_catalogue(place)
        except Exception as error:  # a bad published folder never stops the generation before it
            reason = self._shown(str(error) or repr(error))
            self._reasons = {**self._reasons, place: reason}
            self._metrics.loads.labels("catalogue_refused").inc()
            _log.fault("catalogue refused", error, **fields, reason=reason)
            return False
        self._metrics.loads.labels("catalogue_ready").inc()
        _log.info("catalogue ready", **fields, items=scorer.catalogue.manifest.items)
        return True


def _generation(scorer: Scorer) -> int:
    return 0 if scorer.catalogue is None else scorer.catalogue.manifest.generation
