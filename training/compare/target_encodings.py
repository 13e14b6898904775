"""Target encodings: an id as the mean label of the rows that have it, drawn towards the mean of all rows.

In: the code of every row's id (0 to K - 1, or -1 for an id without a code), a task's labels, and weights that are 0
where the label does not count, all [B]. Out: an `Encoding`, [B]. A row's own label never enters its encoding: it is
made from the other folds, or from earlier values of an order (days, say).

Shapes: B rows, K ids, F folds.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from model.strict_yaml import Name, StrictModel

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class EncodingsConfig(StrictModel):
    """Encoded ids: those of the schema, and `columns` of the data that the schema leaves out.

    Training rows are encoded from the other `folds`, or, where `order` names a column, from the training rows with a
    smaller value there. All other rows are encoded from all training rows. `smoothing` is the weight, in rows, of the
    mean of all rows beside an id's own.
    """

    features: Literal["all"] | tuple[Name, ...] = "all"
    columns: tuple[Name, ...] = ()
    # 5 where neither folds nor order is given.
    folds: int | None = Field(default=None, ge=2, le=1000)
    order: Name | None = None
    smoothing: float = Field(default=20.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_way(self) -> "EncodingsConfig":
        if self.order is not None and self.folds is not None:
            raise ValueError("folds and order are two ways to keep a row's label out of its encoding; give one")
        return self


class Encoding(NamedTuple):
    """The smoothed mean label (NaN where nothing is known) and the weight of the rows that it comes from, [B]."""

    mean_B: Floats
    weight_B: Floats


def out_of_fold(codes_B: Codes, labels_B: Floats, weights_B: Floats, folds_B: Codes, smoothing: float) -> Encoding:
    """Each row from the rows of the other folds. Codes are 0 or more."""
    num_folds = int(folds_B.max()) + 1
    cells_B = codes_B * num_folds + folds_B
    num_cells = (int(codes_B.max()) + 1) * num_folds

    def of_others(values_B: Floats) -> tuple[Floats, Floats]:
        """Sums over the other folds: of the row's id, and of all ids."""
        sums_KF = np.bincount(cells_B, values_B, num_cells).reshape(-1, num_folds)
        own_B = sums_KF.sum(axis=1)[codes_B] - sums_KF[codes_B, folds_B]
        all_F = sums_KF.sum() - sums_KF.sum(axis=0)
        return own_B, all_F[folds_B]

    return _smoothed(of_others(weights_B * labels_B), of_others(weights_B), smoothing)


def from_earlier(codes_B: Codes, labels_B: Floats, weights_B: Floats, order_B: Codes, smoothing: float) -> Encoding:
    """Each row from the rows with a smaller `order`. Codes are 0 or more."""

    def before(values_B: Floats) -> tuple[Floats, Floats]:
        return _sums_before(codes_B, order_B, values_B), _sums_before(np.zeros_like(codes_B), order_B, values_B)

    return _smoothed(before(weights_B * labels_B), before(weights_B), smoothing)


def from_all(codes_B: Codes, labels_B: Floats, weights_B: Floats, wanted_codes_B: Codes, smoothing: float) -> Encoding:
    """Rows that are not among the given ones, by their codes [wanted rows], -1 where the id is new."""
    num_codes = int(codes_B.max()) + 1

    def of_id(values_B: Floats) -> tuple[Floats, Floats]:
        # The last place, which -1 reads, belongs to no id.
        own_K = np.append(np.bincount(codes_B, values_B, num_codes), 0.0)
        return own_K[wanted_codes_B], np.full(len(wanted_codes_B), own_K.sum())

    return _smoothed(of_id(weights_B * labels_B), of_id(weights_B), smoothing)


def _sums_before(codes_B: Codes, order_B: Codes, values_B: Floats) -> Floats:
    """For each row the sum over rows of its code with a smaller order."""
    sorted_B = np.lexsort((order_B, codes_B))
    codes, order = codes_B[sorted_B], order_B[sorted_B]
    is_first_of_code = np.append(True, codes[1:] != codes[:-1])
    is_first_of_order = is_first_of_code | np.append(True, order[1:] != order[:-1])
    ahead = np.append(0.0, np.cumsum(values_B[sorted_B])[:-1])
    places = np.arange(len(codes))
    start_of_code = np.maximum.accumulate(np.where(is_first_of_code, places, 0))
    start_of_order = np.maximum.accumulate(np.where(is_first_of_order, places, 0))
    found_B = np.empty(len(codes))
    found_B[sorted_B] = ahead[start_of_order] - ahead[start_of_code]
    return found_B


def _smoothed(sums: tuple[Floats, Floats], weights: tuple[Floats, Floats], smoothing: float) -> Encoding:
    (sum_B, sum_of_all_B), (weight_B, weight_of_all_B) = sums, weights
    with np.errstate(invalid="ignore"):
        mean_of_all_B = sum_of_all_B / weight_of_all_B
        return Encoding((sum_B + smoothing * mean_of_all_B) / (weight_B + smoothing), weight_B)
