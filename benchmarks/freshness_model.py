"""A small model of what users like, for simulations that retrain it often: who likes which item, and which places are
looked at.

In: rows that were shown, of users, items, places and labels. Out: candidates in the order of their value at the top
place, the sum of the labels' probabilities. A logit is a bias, the user's, the item's, the match of their vectors, and
for each place what it adds. It is warm from one training to the next.

Shapes: B rows, R requests, N candidates, K places that are shown, T labels, U users, I items, P places, D columns of a
vector.
"""

import copy
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Integers = NDArray[np.int64]

_BATCH = 512
_RATE = 0.01
_DECAY = 1e-5


class Rows(NamedTuple):
    """Rows that were shown."""

    users_B: Integers
    items_B: Integers
    places_B: Integers
    labels_BT: NDArray[np.float32]

    @classmethod
    def of(cls, parts: list["Rows"]) -> "Rows":
        """The rows of all parts."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class LikesModel(nn.Module):
    """Logits of T labels."""

    def __init__(self, users: int, items: int, places: int, labels: int, seed: int, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._labels, self._width = labels, width
        self.bias_T = nn.Parameter(torch.full((labels,), -1.0))
        self.user_UT = nn.Parameter(torch.zeros(users, labels))
        self.item_IT = nn.Parameter(torch.zeros(items, labels))
        self.place_PT = nn.Parameter(torch.zeros(places, labels))
        self.user_UD = nn.Parameter(0.1 * torch.randn(users, labels * width, generator=generator))
        self.item_ID = nn.Parameter(0.1 * torch.randn(items, labels * width, generator=generator))
        self._steps = torch.optim.Adam(self.parameters(), lr=_RATE, weight_decay=_DECAY)

    def at_top(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits [..., T] at the top place."""
        shape = (*items.shape, self._labels, self._width)
        match = (self.user_UD[users].reshape(shape) * self.item_ID[items].reshape(shape)).sum(dim=-1)
        return self.bias_T + self.user_UT[users] + self.item_IT[items] + match

    def learn(self, rows: Rows, passes: int, order: np.random.Generator) -> None:
        """Train on rows, in so many passes of a random order."""
        users, items, places = (torch.from_numpy(column) for column in rows[:3])
        labels_BT = torch.from_numpy(rows.labels_BT)
        for _ in range(passes):
            picked_B = torch.from_numpy(order.permutation(len(users)))
            for part in torch.split(picked_B, _BATCH):
                place_BT = self.place_PT[places[part]] - self.place_PT[0]
                logits_BT = self.at_top(users[part], items[part]) + place_BT
                loss = nn.functional.binary_cross_entropy_with_logits(logits_BT, labels_BT[part])
                self._steps.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._steps.step()

    @torch.no_grad()
    def order(self, users_R: Integers, items_RN: Integers, places: int) -> Integers:
        """The best candidates of each request, best first, as numbers of candidates."""
        users_RN = torch.from_numpy(np.repeat(users_R[:, None], items_RN.shape[1], axis=1))
        value_RN = self.at_top(users_RN, torch.from_numpy(items_RN)).sigmoid().sum(dim=-1)
        order_RK: Integers = value_RN.argsort(dim=1, descending=True, stable=True)[:, :places].numpy()
        return order_RK

    def copied(self) -> Self:
        """A model of the same weights and moments, trained apart from this one."""
        return copy.deepcopy(self)
