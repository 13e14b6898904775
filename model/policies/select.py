"""Selection place by place: caps, maximal marginal relevance and exploration over what may stand at each place.

In: utilities of the candidates that are left, and what the stages read of them. Out: their order, and the probability
of each place given the places before it where the order was drawn. Two phases: the head, of which utilities depend on
what is placed or places are drawn, and the tail, by descending utility under the cap.

Inside, candidates stand by descending utility, ties by request order: the first of equal ones is the one to take.

Shapes: N candidates, D columns of a vector, K places.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.policies.draws import Draws
from model.policies.head import Floats, Followed, Head, scaled
from model.policies.places import Codes, Places, Rows
from model.policies.select_stages import Select


class Selection(NamedTuple):
    """Rows in the order selected. `propensity_K` is the probability of each place given those before it, None unless
    the request explores. `dropped` are rows that the cap dropped. It was relaxed at `relaxed` places."""

    order_K: Rows
    propensity_K: Floats | None
    dropped: Rows
    relaxed: int


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
    ranked_N, places, head = _prepared(stages, utility_N, group_N, vector_ND, top_k)
    explore = None if draws is None else stages.explore
    propensity: list[float] = []
    if head is not None:
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


class Conditionals(NamedTuple):
    """Probability of each place of an order given the places before it, under other stages than it was made by.

    Beside it the mean of a value over what could stand there. Both are 0 behind a place of probability 0."""

    probability_K: Floats
    mean_K: Floats


def conditionals(
    stages: Select | None,
    utility_N: Floats,
    order_K: Rows,
    value_N: Floats,
    *,
    group_N: Codes | None = None,
    vector_ND: NDArray[np.float32] | None = None,
    explores: bool,
) -> Conditionals:
    """Probabilities of an order for stages that explore in each request, or in none. Without stages it is by utility.
    `order_K` has rows of the utilities, -1 for a candidate that they do not have."""
    ranked_N, places, head = _prepared(stages, utility_N, group_N, vector_ND, len(order_K))
    number_of_N = np.full(len(ranked_N) + 1, -1, np.intp)
    number_of_N[ranked_N] = np.arange(len(ranked_N))
    followed = Followed(number_of_N[order_K].tolist(), value_N[ranked_N])
    explore = stages.explore if explores and stages is not None else None
    if head is not None:
        head.fill(places, explore, followed=followed)
    num_head = len(places.picked)
    if not followed.has_ended:
        places.fill_tail()
        for best in places.picked[num_head:]:
            if followed.read_chosen(best) < 0:
                break
    found = Conditionals(np.zeros(len(order_K)), np.zeros(len(order_K)))
    found.probability_K[: len(followed.means)] = followed.probabilities
    found.mean_K[: len(followed.means)] = followed.means
    return found


class Prefixes(NamedTuple):
    """Probability of the first places of an order, up to each, under a policy that explores in a share of its requests.

    Beside it the mean of a value over what could stand at each place, times the probability of the places above it."""

    probability_K: Floats
    expected_K: Floats


def prefixes(
    stages: Select | None,
    utility_N: Floats,
    order_K: Rows,
    value_N: Floats,
    *,
    group_N: Codes | None = None,
    vector_ND: NDArray[np.float32] | None = None,
) -> Prefixes:
    """`conditionals` of requests that explore and of those that do not, multiplied up and mixed by the share."""
    share = stages.explore.share if stages is not None and stages.explore is not None else 0.0
    mixed = Prefixes(np.zeros(len(order_K)), np.zeros(len(order_K)))
    for explores, part in ((True, share), (False, 1 - share)):
        if part > 0:
            found = conditionals(
                stages, utility_N, order_K, value_N, group_N=group_N, vector_ND=vector_ND, explores=explores
            )
            of_first_K = found.probability_K.cumprod()
            mixed.probability_K[:] += part * of_first_K
            mixed.expected_K[:] += part * np.append(1.0, of_first_K)[: len(order_K)] * found.mean_K
    return mixed


def _prepared(
    stages: Select | None,
    utility_N: Floats,
    group_N: Codes | None,
    vector_ND: NDArray[np.float32] | None,
    top_k: int | None,
) -> tuple[Rows, Places, Head | None]:
    """The candidates by descending utility, their places, and the head, None without a place to fill."""
    ranked_N: Rows = (-utility_N).argsort(kind="stable")
    num_places = len(ranked_N) if top_k is None else min(top_k, len(ranked_N))
    cap = None if stages is None else stages.cap
    places = Places(len(ranked_N), num_places, cap, None if cap is None or group_N is None else group_N[ranked_N])
    if stages is None or not num_places or (stages.mmr is None and stages.explore is None):
        return ranked_N, places, None
    has_mmr = stages.mmr is not None and vector_ND is not None
    head = Head(
        scaled(utility_N[ranked_N]),
        stages.mmr if has_mmr else None,
        vector_ND[ranked_N] if has_mmr and vector_ND is not None else None,
    )
    return ranked_N, places, head
