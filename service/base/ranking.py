"""Order of candidates by their combined scores.

Shapes: N candidates, K of them kept.
"""

import numpy as np
from numpy.typing import NDArray


def ranking(score_N: NDArray[np.float64], top_k: int | None) -> NDArray[np.intp]:
    """Positions of the best `top_k` candidates (None or more than N: all), best first, ties by request order."""
    order_N: NDArray[np.intp] = (-score_N).argsort(kind="stable")
    return order_N[:top_k]
