"""Calibration of what serves, on one day: whose answers are surely off from what users did.

In: the figures of a version's answers on a day (day_figures.py). Out: a sentence for each output that is off.
"""

import math

from training.judge.data_gate import MIN_LABELS, SURE
from training.judge.day_figures import AnswerFigures


def outputs_off(figures: AnswerFigures, beyond: float) -> list[str]:
    """Outputs whose sum of answers is surely over `beyond` times that of labels, or under 1 / `beyond` times it.
    Sure is what the 95 % interval over users says. Outputs with few labels are never among them."""
    found = []
    for task in figures.values():
        for output, sums in task.outputs.items():
            if sums.labels < MIN_LABELS or not sums.answers > 0:
                continue
            ratio, margin = sums.answers / sums.labels, math.exp(SURE * sums.error)
            if ratio / margin > beyond or ratio * margin < 1 / beyond:
                found.append(
                    f"{output}: calibration is {ratio:.3f}, between {ratio / margin:.3f} and {ratio * margin:.3f}; "
                    f"between {1 / beyond:.3f} and {beyond:.3f} it is left as it is"
                )
    return found
