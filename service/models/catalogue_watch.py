"""The catalogue of the version that is served (service/models/generation_watch.py)."""

from datetime import datetime
from pathlib import Path
from typing import Any

from model.artifact.item_source import layers_below
from model.scorer.scorer import Scorer
from service.models.generation_watch import GenerationWatch

_NONE = {"generation": None, "items": 0, "overlays": 0, "created": None}


class CatalogueWatch(GenerationWatch):
    """The catalogues of one model."""

    kind = "catalogue"

    def generations(self, scorer: Scorer) -> list[Path]:
        return scorer.catalogue_generations()

    def generation(self, scorer: Scorer) -> int:
        return 0 if scorer.catalogue is None else scorer.catalogue.manifest.generation

    def folders(self, place: Path) -> list[Path]:
        """Those of the generations below too: a copy of the base may end after that of its overlay."""
        try:
            below = layers_below(place)
        except ValueError:  # opening it says why
            below = []
        return [*(place.parent / str(generation) for generation in below), place]

    def needed(self, scorer: Scorer) -> list[str]:
        layers = () if scorer.catalogue is None else scorer.catalogue.layers
        return [str(layer.manifest.generation) for layer in layers]

    def take_generation(self, scorer: Scorer, place: Path) -> dict[str, Any]:
        scorer.catalogue = scorer.open_catalogue(place)
        return {"items": scorer.catalogue.items, "overlays": len(scorer.catalogue.layers) - 1}

    def measure(self, scorer: Scorer) -> None:
        """Set the metrics of the model's catalogue to those of the scorer's."""
        catalogue = scorer.catalogue
        created = 0.0 if catalogue is None else datetime.fromisoformat(catalogue.manifest.created).timestamp()
        self._metrics.catalogue_items.labels(self._model).set(0 if catalogue is None else catalogue.items)
        self._metrics.catalogue_created_at.labels(self._model).set(created)

    def entry(self, scorer: Scorer) -> dict[str, Any] | None:
        """The catalogue as /v1/models shows it, with the reason why a newer one does not serve. None without any."""
        reason = self.reason(scorer)
        if scorer.catalogue is None:
            return None if reason is None else {**_NONE, "reason": reason}
        manifest = scorer.catalogue.manifest
        return {
            "generation": manifest.generation,
            "items": scorer.catalogue.items,
            "overlays": len(scorer.catalogue.layers) - 1,
            "created": manifest.created,
            "reason": reason,
        }
