"""Seeds made of a run's seed and of where it stands, so that a resumed run draws what it would have drawn."""

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A seed from 0 to 2**63 - 1 that follows from non-negative numbers, in their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
