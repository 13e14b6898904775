"""Places of an order that are filled one after another, under a cap.

In: how many candidates there are, by descending utility, and the groups that the cap counts. Out: the candidates
picked, at how many places the cap was relaxed, and whether it dropped what was left.

Shapes: N candidates, P places within reach of the tail, M members of a group.
"""

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from model.policies.select_stages import Cap

Rows = NDArray[np.intp]
Codes = NDArray[np.int64]

# Of a candidate without a value: no cap counts it.
NO_GROUP = -1


class Places:
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
