"""Sample ratio: are the arms as large as they were to be? Where not, something loses users of one of them.

In: users of each arm, and the arms' shares. Out: evidence against the shares, which may be read at every look.

Shapes: A arms.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

# Users that a prior of the shares is worth: it finds a share that is off by about a tenth.
_PRIOR = 1000.0


def sample_ratio_evidence(users_A: Sequence[int], shares_A: Sequence[float]) -> float:
    """Evidence against arms that were drawn by their shares, as a Bayes factor.

    By chance it exceeds x, at any look, with probability 1/x at most (Lindon and Malek, "Anytime-valid inference for
    multinomial count data", 2022)."""
    counts, shares = np.asarray(users_A, np.float64), np.asarray(shares_A, np.float64)
    prior = _PRIOR * shares
    mixed = special.gammaln(prior + counts).sum() - special.gammaln(prior).sum()
    mixed += special.gammaln(prior.sum()) - special.gammaln(prior.sum() + counts.sum())
    return float(np.exp(min(mixed - counts @ np.log(shares), 700.0)))
