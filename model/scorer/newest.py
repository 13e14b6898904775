"""A version as a service answers by it: by the newest generation of its calibration that verifies."""

from model.artifact.artifact import ArtifactError
from model.scorer.scorer import Scorer


def take_newest_calibration(scorer: Scorer) -> list[str]:
    """Answer by the newest generation that verifies, where there is one. Returns why newer ones do not."""
    reasons = []
    for place in reversed(scorer.calibration_generations()):
        try:
            scorer.take_calibration(scorer.open_calibration(place))
            break
        except ArtifactError as error:
            reasons.append(f"{error}; it is left out")
    return reasons
