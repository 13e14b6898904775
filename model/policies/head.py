"""The first places of an order, whose utilities depend on what is placed, or which are drawn.

In: utilities of candidates, by descending utility, and the vectors of mmr. Out: filled places, and the probability of
each that was drawn, given the places before it.

A drawn place is the inverse of the softmax's distribution function at one random number. Utilities are taken less the
largest, so that nothing overflows. A Gumbel draw has the same distribution and takes a number for every candidate.

Shapes: N candidates, D columns of a vector, K places, M members of a group.
"""

import numpy as np
from numpy.typing import NDArray

from model.policies.draws import Draws
from model.policies.places import Places
from model.policies.select_stages import Explore, Mmr

Floats = NDArray[np.float64]

_NEVER = -np.inf


class Head:
    """The first places, of candidates by descending utility."""

    def __init__(self, scaled_N: Floats, mmr: Mmr | None, vector_ND: NDArray[np.float32] | None) -> None:
        self._scaled_N = scaled_N
        self._mmr_head = 0
        self._weight = 1.0
        if mmr is not None and vector_ND is not None:
            self._mmr_head, self._weight = mmr.head, mmr.weight
            self._unit_ND = _unit(vector_ND)
            self._weighed_ND = (1.0 - mmr.weight) * self._unit_ND

    def fill(
        self, places: Places, explore: Explore | None, draws: Draws | None = None, followed: "Followed | None" = None
    ) -> list[float]:
        """Fill the places of the head. Returns the probabilities of those that were drawn. A followed order decides
        instead of the greatest utility and of the draws, as far as it has a probability."""
        drawn = 0 if explore is None else explore.head
        head = min(places.wanted, max(self._mmr_head, drawn))
        steepness = None if explore is None else self._steepness(explore)
        # Utilities but for the similarity. -inf: placed, and in `open_N` without room too.
        left_N = self._weight * self._scaled_N
        open_N = left_N.copy()
        utility_N, nearest_N, weight_N = np.empty_like(left_N), np.empty_like(left_N), np.empty_like(left_N)
        has_cap, has_nearest = places.cap is not None, False
        propensity: list[float] = []
        for place in range(head):
            if place == self._mmr_head and place:
                has_nearest = False
                left_N[:] = np.where(left_N == _NEVER, _NEVER, self._scaled_N)
                open_N[:] = np.where(open_N == _NEVER, _NEVER, self._scaled_N)
            if has_cap and (freed := places.move_window()) >= 0:
                members_M = places.members_of(freed)
                open_N[members_M] = left_N[members_M]
            now_N = np.subtract(open_N, nearest_N, out=utility_N) if has_nearest else open_N
            best = int(now_N.argmax())
            if now_N[best] == _NEVER:
                assert places.cap is not None
                if places.cap.otherwise == "drop":
                    places.is_cut_short = True
                    break
                places.relaxed += 1
                now_N = np.subtract(left_N, nearest_N, out=utility_N) if has_nearest else left_N
                best = int(now_N.argmax())
            if place < drawn:
                _weigh(now_N, best, steepness, weight_N)
                if followed is not None:
                    best = followed.read_drawn(weight_N)
                else:
                    assert draws is not None
                    best, probability = _draw(weight_N, draws.number_of(place))
                    propensity.append(probability)
            elif followed is not None:
                best = followed.read_chosen(best)
            if best < 0:
                break
            full = places.place(best)
            left_N[best] = open_N[best] = _NEVER
            if full >= 0:
                open_N[places.members_of(full)] = _NEVER
            if place + 1 < self._mmr_head:
                similarity_N = self._weighed_ND @ self._unit_ND[best]
                if has_nearest:
                    np.maximum(nearest_N, similarity_N, out=nearest_N)
                else:
                    nearest_N, has_nearest = similarity_N, True
        return propensity

    def _steepness(self, explore: Explore) -> float | None:
        """Factor of a difference of utilities. None where the head's are all equal: then the greatest are
        drawn evenly, which is where the softmax goes as the deviation goes to 0."""
        deviation = float(self._weight * self._scaled_N[: explore.head].std())
        scale = explore.temperature * deviation
        return 1.0 / scale if scale > 0 and np.isfinite(1.0 / scale) else None


class Followed:
    """An order that is followed under other stages, as far as they give it a probability.

    Kept are the probability of each place given those before it, and the mean of `value_N` over what could stand there.
    Candidates are numbers by descending utility, -1 for one that the stages do not have."""

    def __init__(self, order: list[int], value_N: Floats) -> None:
        self._order = order
        self._value_N = value_N
        self.probabilities: list[float] = []
        self.means: list[float] = []

    def read_drawn(self, weight_N: Floats) -> int:
        """The order's candidate at a place that is drawn by these weights. -1 where none would draw it."""
        wanted, total = self._order[len(self.means)], float(weight_N.sum())
        self.means.append(float(weight_N @ self._value_N) / total)
        self.probabilities.append(float(weight_N[wanted]) / total if wanted >= 0 else 0.0)
        return wanted if self.probabilities[-1] > 0 else -1

    def read_chosen(self, best: int) -> int:
        """The order's candidate at a place that has this one. -1 where it is another."""
        wanted = self._order[len(self.means)]
        self.means.append(float(self._value_N[best]))
        self.probabilities.append(float(wanted == best))
        return wanted if wanted == best else -1

    @property
    def has_ended(self) -> bool:
        """True once a place had probability 0."""
        return bool(self.probabilities) and self.probabilities[-1] == 0


def _weigh(utility_N: Floats, best: int, steepness: float | None, weight_N: Floats) -> None:
    """Write the weights of the softmax, 1 for the greatest utility, to `weight_N`."""
    if steepness is None:
        np.equal(utility_N, utility_N[best], out=weight_N)
        return
    np.subtract(utility_N, utility_N[best], out=weight_N)
    np.multiply(weight_N, steepness, out=weight_N)
    np.exp(weight_N, out=weight_N)


def _draw(weight_N: Floats, number: float) -> tuple[int, float]:
    """The candidate that a number in [0, 1) draws, and its probability."""
    below_N = weight_N.cumsum()
    total = float(below_N[-1])
    # A number is at most 1 - 2^-52, so that the product is less than the total.
    drawn = int(below_N.searchsorted(number * total, "right"))
    return drawn, float(weight_N[drawn]) / total


def _unit(vector_ND: NDArray[np.float32]) -> Floats:
    """Vectors of length 1. One of length 0 is similar to none."""
    wide_ND = vector_ND.astype(np.float64)
    length_N = np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND))
    length_N[length_N == 0] = 1.0
    unit_ND: Floats = wide_ND / length_N[:, None]
    return unit_ND


def scaled(utility_N: Floats) -> Floats:
    """Utilities from the least to the greatest as numbers from 0 to 1, 0 where all are equal. Quarters of them: the
    difference of two finite numbers may have no float64."""
    quarter_N = utility_N * 0.25
    least, greatest = quarter_N[-1], quarter_N[0]
    if not greatest > least:
        return np.zeros_like(quarter_N)
    scaled_N: Floats = (quarter_N - least) / (greatest - least)
    return scaled_N
