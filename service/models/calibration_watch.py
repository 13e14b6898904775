"""The calibration of a version that is loaded (service/models/generation_watch.py)."""

from pathlib import Path
from typing import Any

from model.scorer.scorer import Scorer
from service.models.generation_watch import GenerationWatch


class CalibrationWatch(GenerationWatch):
    """The calibrations of one version. One that was fitted after its export serves in the place of its own."""

    kind = "calibration"

    def generations(self, scorer: Scorer) -> list[Path]:
        return scorer.calibration_generations()

    def generation(self, scorer: Scorer) -> int:
        return int(scorer.calibration.generation or 0)

    def take_generation(self, scorer: Scorer, place: Path) -> dict[str, Any]:
        recalibration = scorer.open_calibration(place)
        scorer.take_calibration(recalibration)
        return {"rows": recalibration.manifest.rows}
