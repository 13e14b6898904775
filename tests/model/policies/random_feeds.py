"""Random stages and candidates, small enough that all that may happen does."""

from typing import Any

import numpy as np

from model.policies.select_stages import Select
from tests.model.policies.slow_select import Feed


def stages(**parts: Any) -> Select:
    return Select.model_validate(parts)


def random_stages(rng: np.random.Generator) -> Select:
    parts: dict[str, Any] = {}
    while not parts:
        if rng.random() < 0.7:
            count = int(rng.integers(1, 4))
            within = count + int(rng.integers(1, 6))
            parts["cap"] = {
                "per": "creator",
                "count": count,
                "within": within,
                "else": ["relax", "drop"][rng.integers(2)],
            }
        if rng.random() < 0.6:
            parts["mmr"] = {
                "lambda": float(rng.choice([0.25, 0.5, 0.75, 1])),
                "head": int(rng.integers(1, 14)),
                "by": "id",
            }
        if rng.random() < 0.5:
            temperature = float(rng.choice([0.05, 0.5, 3.0]))
            parts["explore"] = {"temperature": temperature, "head": int(rng.integers(1, 14)), "share": 0.5}
    return stages(**parts)


def random_feed(rng: np.random.Generator, *, is_exact: bool) -> Feed:
    """Candidates with few creators, one of them often. Exact ones have utilities without any rounding, and many of
    them equal: scores from 0 to 1 in 16ths, cosines in quarters."""
    rows = int(rng.integers(1, 13))
    groups = np.minimum(rng.geometric(0.5, rows) - 2, 4).tolist()
    if not is_exact:
        return Feed(rng.normal(size=rows).tolist(), groups, rng.normal(size=(rows, 3)).astype(np.float32).tolist())
    scores = rng.integers(0, 17, rows) / 16
    scores[rng.integers(rows)], scores[rng.integers(rows)] = 0, 1
    if not (scores.min() == 0 and scores.max() == 1):
        scores[:] = 0.5
    vectors = rng.choice([-1.0, 1.0], (rows, 4)) * 2.0 ** rng.integers(-2, 3, (rows, 1))
    vectors[rng.random(rows) < 0.3, 1:] = 0
    vectors[rng.random(rows) < 0.2] = 0
    return Feed((rng.choice([-2.0, 1.0]) + scores).tolist(), groups, vectors.tolist())
