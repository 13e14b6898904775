"""Inputs of a version at its export, in words: ranges of numbers, ids that it knows, shares of those that it does not.

In: a loaded version, whose reference has bins of encoded values, about a tenth of the newest rows each. Out: a sentence
by feature, in raw values, for who sends requests.
"""

from collections.abc import Sequence

import numpy as np

from model.artifact.reference import NumberBins
from model.features.block import BLOCKS, block_inputs
from model.features.fitted import FittedFeatures, NumberStep
from model.scorer.scorer import Scorer

_LOW, _HIGH = 0.1, 0.9
_DIGITS = 3
# A longer vocabulary is counted, not named.
_MOST_NAMED = 20


def seen_inputs(scorer: Scorer) -> dict[str, str]:
    """Sentences about a version's requested features. One that has nothing to say of it is left out."""
    seen = _known_ids(scorer)
    for block in BLOCKS:
        numbers = {number.name for number in block_inputs(scorer.schema, block).numbers}
        for feature in scorer.schema.requested(block):
            bins = scorer.reference.features.features.get(feature.name)
            if bins is None:
                continue
            if not isinstance(bins, NumberBins):
                unseen = f"{bins.shares[0]:.2%} of the values at export had no row of their own"
                seen[feature.name] = "; ".join(filter(None, [seen.get(feature.name), unseen]))
            elif feature.name in numbers and (told := _range(bins, scorer.encoder.fitted, feature.name)):
                seen[feature.name] = told
    return seen


def _known_ids(scorer: Scorer) -> dict[str, str]:
    """The ids that have rows of their own, by feature."""
    known: dict[str, str] = {}
    for table in scorer.schema.tables:
        if table.buckets is not None:
            known |= dict.fromkeys(table.features, "ids are hashed: none is unknown")
            continue
        told = f"{scorer.encoder.rows_of_table[table.name] - 1:,} ids are known"
        if isinstance(table.vocabulary, tuple) and len(table.vocabulary) <= _MOST_NAMED:
            told = f"known ids: {', '.join(map(str, table.vocabulary))}"
        known |= dict.fromkeys(table.features, told)
    return known


def _range(bins: NumberBins, fitted: FittedFeatures, name: str) -> str | None:
    """The range that at least 80 % of the rows had, in raw values."""
    encoded = bins.quantile(_LOW), bins.quantile(_HIGH)
    if None in encoded:
        return None
    low, high = _raw(np.array(encoded, np.float64), fitted.numbers.get(name, ()))
    return f"at least 80 % of the rows at export had {low if low == high else f'{low} to {high}'}"


def _raw(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], steps: Sequence[NumberStep]) -> list[str]:
    """Encoded values as raw ones."""
    for step in reversed(steps):
        values = step.invert(values)
    return [f"{_rounded(value):,.12g}" for value in values.tolist()]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
