"""The catalogue of the version that is served (service/models/generation_watch.py)."""

from datetime import datetime
from pathlib import Path
from typing import Any

from model.scorer.scorer import Scorer
from service.models.generation_watch import GenerationWatch


class CatalogueWatch(GenerationWatch):
    """The catalogues of one model."""

    kind = "catalogue"

    def generations(self, scorer: Scorer) -> list[Path]:
        return scorer.catalogue_generations()

    def generation(self, scorer: Scorer) -> int:
        return 0 if scorer.catalogue is None else scorer.catalogue.manifest.generation

    def take_generation(self, scorer: Scorer, place: Path) -> dict[str, Any]:
        scorer.catalogue = scorer.open_catalogue(place)
        return {"items": scorer.catalogue.manifest.items}

    def measure(self, scorer: Scorer) -> None:
        """Set the metrics of the model's catalogue to those of the scorer's."""
        manifest = None if scorer.catalogue is None else scorer.catalogue.manifest
        created = 0.0 if manifest is None else datetime.fromisoformat(manifest.created).timestamp()
        self._metrics.catalogue_items.labels(self._model).set(0 if manifest is None else manifest.items)
        self._metrics.catalogue_created_at.labels(self._model).set(created)

    def entry(self, scorer: Scorer) -> dict[str, Any] | None:
        """The catalogue as /v1/models shows it, with the reason why a newer one does not serve. None without any."""
        reason = self.reason(scorer)
        if scorer.catalogue is None:
            return None if reason is None else {"generation": None, "items": 0, "created": None, "reason": reason}
        manifest = scorer.catalogue.manifest
        shown = {"generation": manifest.generation, "items": manifest.items, "created": manifest.created}
        return {**shown, "reason": reason}
