"""Weights of a user's realised value: what the judge's file says, else what the default value model weighs."""

from model.value_models.value_model import DEFAULT, ValueModels, WeightedSum
from training.judge.settings import JudgeSettings


def realised_weights(settings: JudgeSettings, models: ValueModels) -> dict[str, float]:
    """Weight of each output's observed label. Raises ValueError where the default value model is no weighted sum, so
    that it says of no label what it is worth."""
    if settings.realised is not None:
        return dict(settings.realised)
    default = models[DEFAULT].definition
    if not isinstance(default, WeightedSum):
        raise ValueError(
            f"judge.realised: is missing, and value model '{DEFAULT}' is no weighted_sum whose weights could stand for "
            "it; write what a label is worth, as realised: {click: 1.0}"
        )
    return dict(default.weights)
