"""Settings of gates and judge, as the cycle's file writes them (docs/loop.md). Shares and ratios have no unit."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from model.join_file import Duration
from model.strict_yaml import StrictModel

Share = Annotated[float, Field(gt=0, lt=1)]
# A ratio above 1, which also bounds its inverse.
Ratio = Annotated[float, Field(gt=1, le=1000, allow_inf_nan=False)]


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    if not bounds[0] < 1 < bounds[1]:
        raise ValueError(f"{name}: expected [low, high] around 1, got [{bounds[0]:g}, {bounds[1]:g}]")


Bound = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class DataGate(StrictModel):
    """Rules of a new day. What breaks one is a reason to leave the day out."""

    min_rows: Annotated[int, Field(ge=1)] = 10_000
    max_psi: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    label_rate_ratio: tuple[Bound, Bound] = (0.5, 2.0)
    champion_ne_ratio: Ratio = 1.25
    champion_calibration: tuple[Bound, Bound] = (0.5, 2.0)
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        _check_range("label_rate_ratio", self.label_rate_ratio)
        _check_range("champion_calibration", self.champion_calibration)
        return self


class QualityGate(StrictModel):
    """Rule of a challenger: no task's NE is worse than a champion's by this share of it."""

    max_worse: Share = 0.02


class Guards(StrictModel):
    """Faults of a canary's answers that withdraw it whatever users did.

    They are an NE above so many times stable's, and calibration off by so many times while stable's is nearer to 1."""

    ne_ratio: Ratio = 1.1
    calibration: Ratio = 1.25


class JudgeSettings(StrictModel):
    """Rules of a canary. `realised` weighs outputs' observed labels into a user's value within `horizon` of exposure.
    Without it the weights of the default value model count. `alpha` is the chance of a false withdrawal, and that of a
    false promotion."""

    horizon: Duration
    max_worse: Share = 0.05
    at_most: Duration
    on_timeout: Literal["withdraw", "promote"] = "withdraw"
    realised: Annotated[dict[str, FiniteFloat], Field(min_length=1)] | None = None
    guards: Guards = Guards()
    alpha: Annotated[float, Field(gt=0, le=0.1)] = 0.05

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.at_most <= self.horizon:
            raise ValueError("at_most must be longer than horizon, within which no user's value is whole")
        return self
