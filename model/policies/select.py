"""Selection place by place: caps, maximal marginal relevance and exploration over what may stand at each place.

In: utilities of the candidates that are left, and what the stages read of them. Out: their order, and the probability
of each place given the places before it where the order was drawn. Two phases: the head, of which utilities depend on
what is placed or places are drawn, and the tail, by descending utility under the cap.

A drawn place is the inverse of the softmax's distribution function at one random number. Utilities are taken less the
largest, so that nothing overflows. A Gumbel draw has the same distribution and takes a number for every candidate.

Inside, candidates stand by descending utility, ties by request order: the first of equal ones is the one to take.

Shapes: N candidates, D columns of a vector, K places, P of them within reach of the tail, M members of a group.
"""

from collections.abc import Hashable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.policies.draws import Draws
from model.policies.select_stages import Cap, Explore, Mmr, Select

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Codes = NDArray[np.int64]

# Of a candidate without a value: no cap counts it.
NO_GROUP = -1
_NEVER = -np.inf


class Selection(NamedTuple):
    """Rows in the order selected, the probability of each place given those before it (None unless the request
    explores), rows that the cap dropped, and at how many places it was relaxed."""

    order_K: Rows
    propensity_K: Floats | None
    dropped: Rows
    relaxed: int


def group_codes(values: Iterable[Hashable]) -> Codes:
    """code_N of values: equal ones have one code, None has NO_GROUP."""
    listed = list(values)
    code_of = dict(zip(dict.fromkeys(listed), count()))
    if None in code_of:
        code_of[None] = NO_GROUP
    return np.fromiter(map(code_of.__getitem__, listed), np.int64, len(listed))


def select(
    stages: Select,
    utility_N: Floats,
    *,
    group_N: Codes | None = None,
    vector_ND: NDArray[np.float32] | None = None,
    top_k: int | None = None,
    draws: Draws | None = None,
) -> Selection:
    """Select at most `top_k` places. `utility_N` is finite. `group_N` has the cap's groups, numbers from 0 or NO_GROUP.
    `vector_ND` has the vectors of mmr. With `draws` the request explores."""
    ranked_N: Rows = (-utility_N).argsort(kind="stable")
    num_places = len(ranked_N) if top_k is None else min(top_k, len(ranked_N))
    group_ranked_N = None if stages.cap is None or group_N is None else group_N[ranked_N]
    places = _Places(len(ranked_N), num_places, stages.cap, group_ranked_N)
    explore = None if draws is None else stages.explore
    mmr = stages.mmr if vector_ND is not None else None
    propensity: list[float] = []
    if num_places and (mmr is not None or explore is not None):
        head = _Head(_scaled(utility_N[ranked_N]), mmr, None if vector_ND is None else vector_ND[ranked_N])
        propensity = head.fill(places, explore, draws)
    places.fill_tail()
    picked_K = np.array(places.picked, np.intp)
    dropped: Rows = ranked_N[:0]
    if places.is_cut_short:
        is_left_N = np.ones(len(ranked_N), np.bool_)
        is_left_N[picked_K] = False
        dropped = ranked_N[is_left_N]
    propensity_K = None
    if explore is not None:
        propensity_K = np.ones(len(picked_K))
        propensity_K[: len(propensity)] = propensity
    return Selection(ranked_N[picked_K], propensity_K, dropped, places.relaxed)


def _scaled(utility_N: Floats) -> Floats:
    """Utilities from the least to the greatest as numbers from 0 to 1, 0 where all are equal. Quarters of them: the
    difference of two finite numbers may have no float64."""
    quarter_N = utility_N * 0.25
    least, greatest = quarter_N[-1], quarter_N[0]
    if not greatest > least:
        return np.zeros_like(quarter_N)
    scaled_N: Floats = (quarter_N - least) / (greatest - least)
    return scaled_N


class _Places:
    """Places that are filled one after another, under a cap. Candidates are numbers by descending utility."""

    def __init__(self, candidates: int, wanted: int, cap: Cap | None, group_N: Codes | None) -> None:
        self.wanted = wanted
        self.picked: list[int] = []
        self.relaxed = 0
        # True where the cap dropped what was left.
        self.is_cut_short = False
        self._candidates = candidates
        self.cap = cap if group_N is not None else None
        if self.cap is None or group_N is None:
            return
        self._count, self._within = self.cap.count, self.cap.within
        self._group_N = group_N
        self._groups: list[int] = group_N.tolist()
        self._by_group_N: Rows = group_N.argsort(kind="stable")
        num_groups = int(group_N.max()) + 1
        bounds = np.searchsorted(group_N[self._by_group_N], np.arange(num_groups + 1))
        self._bounds: list[int] = bounds.tolist()
        # By group: how many of it stand in the window that ends at the place to fill.
        self._in_window = [0] * num_groups

    def members_of(self, group: int) -> Rows:
        """The candidates of a group, members_M."""
        return self._by_group_N[self._bounds[group] : self._bounds[group + 1]]

    def place(self, candidate: int) -> int:
        """Fill the place. Returns the group that has no more room now, or NO_GROUP."""
        self.picked.append(candidate)
        if self.cap is None or (group := self._groups[candidate]) < 0:
            return NO_GROUP
        self._in_window[group] += 1
        return group if self._in_window[group] == self._count else NO_GROUP

    def move_window(self) -> int:
        """Go on to the place to fill. Returns the group that has room again, or NO_GROUP."""
        leaving = len(self.picked) - self._within
        if leaving < 0 or (group := self._groups[self.picked[leaving]]) < 0:
            return NO_GROUP
        self._in_window[group] -= 1
        return group if self._in_window[group] == self._count - 1 else NO_GROUP

    def fill_tail(self) -> None:
        """Fill the places that are left by descending utility."""
        if self.is_cut_short or len(self.picked) == self.wanted:
            return
        is_left_N = np.ones(self._candidates, np.bool_)
        is_left_N[self.picked] = False
        if self.cap is None:
            self.picked += np.flatnonzero(is_left_N)[: self.wanted - len(self.picked)].tolist()
            return
        left_in_order = np.flatnonzero(is_left_N)
        if self._fits(left_in_order):
            self.picked += left_in_order[: self.wanted - len(self.picked)].tolist()
            return
        self._fill_by_heap(is_left_N)

    def _fits(self, left_in_order: Rows) -> bool:
        """True where the cap lets the rest stand as it is."""
        placed = np.concatenate([np.array(self.picked[-self._within :], np.intp), left_in_order])
        group_P = self._group_N[placed]
        order_P = group_P.argsort(kind="stable")
        sorted_P = group_P[order_P]
        is_same = (sorted_P[self._count :] == sorted_P[: -self._count]) & (sorted_P[self._count :] >= 0)
        too_near = is_same & (order_P[self._count :] - order_P[: -self._count] < self._within)
        # What the head relaxed is not the tail's.
        num_before = len(placed) - len(left_in_order)
        return not (too_near & (order_P[self._count :] >= num_before)).any()

    def _fill_by_heap(self, is_left_N: NDArray[np.bool_]) -> None:
        """The best candidate of each group that has room is in a heap, that of a group without room waits."""
        assert self.cap is not None
        groups, limit, picked = self._groups, self._count, self.picked
        left_by_group = self._by_group_N[is_left_N[self._by_group_N]]
        group_by_group = self._group_N[left_by_group]
        is_last = np.append(group_by_group[1:] != group_by_group[:-1], True)
        after_N = np.full(self._candidates, -1, np.intp)
        after_N[left_by_group] = np.where(is_last, -1, np.append(left_by_group[1:], -1))
        after: list[int] = after_N.tolist()
        firsts: list[int] = left_by_group[np.append(True, is_last[:-1])].tolist()
        heap: list[int] = []
        waiting: dict[int, int] = {}
        in_window = self._in_window
        for first in firsts:
            group = groups[first]
            if group >= 0 and in_window[group] >= limit:
                waiting[group] = first
            else:
                heap.append(first)
        heapify(heap)
        # Every step of `move_window` and `place` stands here again: a call a place would double the time.
        within, wanted = self._within, self.wanted
        for place in range(len(picked), wanted):
            if place >= within and (leaving := groups[picked[place - within]]) >= 0:
                in_window[leaving] -= 1
                if in_window[leaving] == limit - 1 and leaving in waiting:
                    heappush(heap, waiting.pop(leaving))
            if heap:
                best = heap[0]
                group, following = groups[best], after[best]
                if group >= 0:
                    in_window[group] += 1
                    if in_window[group] == limit:
                        heappop(heap)
                        if following >= 0:
                            waiting[group] = following
                        picked.append(best)
                        continue
                if following >= 0:
                    heapreplace(heap, following)
                else:
                    heappop(heap)
            elif self.cap.otherwise == "drop":
                self.is_cut_short = True
                return
            else:
                best = min(waiting.values())
                self.relaxed += 1
                group = groups[best]
                in_window[group] += 1
                if after[best] >= 0:
                    waiting[group] = after[best]
                else:
                    del waiting[group]
            picked.append(best)


class _Head:
    """The first places, of candidates by descending utility."""

    def __init__(self, scaled_N: Floats, mmr: Mmr | None, vector_ND: NDArray[np.float32] | None) -> None:
        self._scaled_N = scaled_N
        self._mmr_head = 0
        self._weight = 1.0
        if mmr is not None and vector_ND is not None:
            self._mmr_head, self._weight = mmr.head, mmr.weight
            self._unit_ND = _unit(vector_ND)
            self._weighed_ND = (1.0 - mmr.weight) * self._unit_ND

    def fill(self, places: _Places, explore: Explore | None, draws: Draws | None) -> list[float]:
        """Fill the places of the head. Returns the probabilities of those that were drawn."""
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
                assert draws is not None
                best, probability = _draw(now_N, best, steepness, draws.number_of(place), weight_N)
                propensity.append(probability)
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
        """What a difference of utilities is multiplied by. None where the head's are all equal: then the greatest are
        drawn evenly, which is where the softmax goes as the deviation goes to 0."""
        deviation = float(self._weight * self._scaled_N[: explore.head].std())
        scale = explore.temperature * deviation
        return 1.0 / scale if scale > 0 and np.isfinite(1.0 / scale) else None


def _draw(utility_N: Floats, best: int, steepness: float | None, number: float, weight_N: Floats) -> tuple[int, float]:
    """The candidate that a number in [0, 1) draws, and its probability. Writes to `weight_N`."""
    if steepness is None:
        np.equal(utility_N, utility_N[best], out=weight_N)
    else:
        np.subtract(utility_N, utility_N[best], out=weight_N)
        np.multiply(weight_N, steepness, out=weight_N)
        np.exp(weight_N, out=weight_N)
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
