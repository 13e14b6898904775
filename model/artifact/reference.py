"""Inputs and answers of a version at its export, in bins against which serving is compared.

In: the newest rows of the data, encoded and scored (`of_features`, `of_scores`), or the artifact's files of them. Out:
`Bins`, which count values and compute the drift of such counts, the population stability index,

    PSI = sum over bins of (p - q) ln(p / q),    p served, q at export

which is 0 where nothing changed. A value above .1 is commonly read as a shift, above .25 as a large one. Bins have
about equal shares. Ids are binned by how frequent their rows were: those of one bin made up a tenth together, the rows
beyond MOST_ROWS and those never seen share the last one, the OOV row (and an empty list) has the first.

Shapes: V values, K bins, O outputs of the ranker, B rows, L list features, Q numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, model_validator

from model.artifact.artifact import REFERENCE, REFERENCE_FEATURES, Artifact, ArtifactError
from model.features.block import block_inputs
from model.features.encoder import EncodedBlock
from model.features.id_lookup import OOV_ROW
from model.schema import Block, FeedSchema
from model.strict_yaml import StrictModel

BINS = 10
MOST_ROWS = 1_000
# Of shares that are added up.
_ROUNDING = 1e-9

Counts = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


class _Bins(StrictModel):
    shares: tuple[Share, ...]

    def drift(self, counts_K: Counts) -> float:
        """The population stability index of counts against the shares.

        Half a value is added to every bin, so that an empty one gives a number."""
        bins = len(self.shares)
        total = counts_K.sum() + 0.5 * bins
        served_K = (counts_K + 0.5) / total
        reference_K = (np.asarray(self.shares) * (total - 0.5 * bins) + 0.5) / total
        return float(((served_K - reference_K) * np.log(served_K / reference_K)).sum())


class NumberBins(_Bins):
    """Values between `edges` (ascending, finite): bin k has edges[k - 1] < value <= edges[k]."""

    kind: Literal["number"] = "number"
    edges: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges make {len(self.edges) + 1} bins, got {len(self.shares)} shares")
        return self

    def quantile(self, share: float) -> float | None:
        """The lowest edge that at least a share of the values does not exceed. None where no edge is so high."""
        reached_K = np.cumsum(self.shares)[:-1] >= share - _ROUNDING
        return self.edges[int(np.argmax(reached_K))] if reached_K.any() else None

    def counts(self, values_V: NDArray[Any]) -> Counts:
        """counts_K of the values."""
        bin_V = np.searchsorted(np.asarray(self.edges), values_V, side="left")
        return np.bincount(bin_V, minlength=len(self.shares)).astype(np.float64)


class IdBins(_Bins):
    """Table rows: the OOV row, then `rows` bin by bin, then all others."""

    kind: Literal["id"] = "id"
    rows: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.shares) != len(self.rows) + 2:
            raise ValueError(f"{len(self.rows)} bins of rows and two more, got {len(self.shares)} shares")
        return self

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows in ascending order, and the bin of each."""
        flat = np.array([row for rows in self.rows for row in rows], np.int64)
        bins = np.array([number for number, rows in enumerate(self.rows, start=1) for _ in rows], np.int64)
        order = np.argsort(flat)
        return flat[order], bins[order]

    def counts(self, values_V: NDArray[Any]) -> Counts:
        """counts_K of table rows."""
        rows, bins = self._sorted
        bin_V = np.full(len(values_V), len(self.shares) - 1)
        if len(rows):
            place_V = np.minimum(np.searchsorted(rows, values_V), len(rows) - 1)
            bin_V = np.where(rows[place_V] == values_V, bins[place_V], bin_V)
        bin_V[values_V == OOV_ROW] = 0
        return np.bincount(bin_V, minlength=len(self.shares)).astype(np.float64)


Bins = Annotated[NumberBins | IdBins, Discriminator("kind")]


class FeatureReference(StrictModel):
    """The file of the features' bins, by feature."""

    features: dict[str, Bins]

    def counts(self, schema: FeedSchema, block: Block, encoded: EncodedBlock) -> dict[str, Counts]:
        """counts_K of every feature of a block that this file has."""
        return {
            name: self.features[name].counts(values_V)
            for name, values_V in values_of(schema, block, encoded)
            if name in self.features
        }


class Reference(NamedTuple):
    """References of one artifact: `means_O` of the answers, `scores` by output, and `features`."""

    means_O: NDArray[np.float64]
    scores: dict[str, NumberBins]
    features: FeatureReference

    @classmethod
    def read(cls, artifact: Artifact, outputs: Sequence[str]) -> "Reference":
        """Raise ArtifactError naming the file that is no reference of these outputs."""
        place = artifact.path / REFERENCE
        histograms = artifact.read_json(REFERENCE)
        try:
            means_O = np.array([float(histograms[output]["mean"]) for output in outputs])
            scores = {output: of_scores(**_histogram(histograms[output])) for output in outputs}
        except (KeyError, TypeError, ValueError):
            means_O, scores = np.array([np.nan]), {}
        if not np.isfinite(means_O).all():
            raise ArtifactError(f"{place}: needs a finite `mean` and a histogram of every output: {', '.join(outputs)}")
        place = artifact.path / REFERENCE_FEATURES
        try:
            features = FeatureReference.from_mapping(artifact.read_json(REFERENCE_FEATURES), str(place))
            return cls(means_O, scores, features)
        except ArtifactError:
            raise
        except ValueError as error:
            raise ArtifactError(str(error)) from None


def _histogram(content: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    edges, counts = (np.asarray(content[key], np.float64) for key in ("edges", "counts"))
    if len(edges) != len(counts) + 1 or not (np.isfinite(edges).all() and (counts >= 0).all() and counts.sum() > 0):
        raise ValueError("edges and counts do not fit")
    return {"edges": edges, "counts": counts}


def of_features(schema: FeedSchema, blocks: Mapping[Block, EncodedBlock]) -> FeatureReference:
    """The bins of all requested features, from the encoded newest rows."""
    return FeatureReference(
        features={
            name: _id_bins(values_V) if values_V.dtype == np.int64 else _number_bins(values_V)
            for block, encoded in blocks.items()
            for name, values_V in values_of(schema, block, encoded)
        }
    )


def of_scores(edges: NDArray[np.float64], counts: NDArray[np.float64]) -> NumberBins:
    """About BINS bins of equal share from a finer histogram (K + 1 edges, K counts)."""
    total = counts.sum()
    chosen: list[int] = []
    for number, below in enumerate(counts.cumsum()[:-1]):
        if below >= total * (len(chosen) + 1) / BINS and below < total:
            chosen.append(number)
    parts = np.split(counts, np.asarray(chosen, np.int64) + 1) if chosen else [counts]
    return NumberBins(
        edges=tuple(float(edges[number + 1]) for number in chosen),
        shares=tuple(float(part.sum() / total) for part in parts),
    )


def values_of(schema: FeedSchema, block: Block, encoded: EncodedBlock) -> Iterator[tuple[str, NDArray[Any]]]:
    """The encoded values of each feature of a block that requests give. An empty list is one OOV row."""
    ids, lists, numbers = block_inputs(schema, block)
    asked = {feature.name for feature in schema.requested(block)}
    for position, name in enumerate(ids):
        if name in asked:
            yield name, encoded.ids_BK[:, position]
    start = 0
    for name, lengths_B in zip((one.name for one in lists), encoded.list_lengths_LB, strict=True):
        end = start + int(lengths_B.sum())
        if name in asked:
            empty = np.full(int((lengths_B == 0).sum()), OOV_ROW)
            yield name, np.concatenate((encoded.list_values_V[start:end], empty))
        start = end
    for position, number in enumerate(numbers):
        if number.feature in asked:
            yield number.name, encoded.numbers_BQ[:, position]


def _number_bins(values_V: NDArray[Any]) -> NumberBins:
    inner = np.quantile(values_V, np.linspace(0, 1, BINS + 1)[1:-1], method="inverted_cdf")
    edges = tuple(float(edge) for edge in np.unique(inner))
    bins = NumberBins(edges=edges, shares=(0.0,) * (len(edges) + 1))
    return NumberBins(edges=edges, shares=_shares(bins.counts(values_V)))


def _id_bins(values_V: NDArray[Any]) -> IdBins:
    # One half chooses the rows and the other tells their shares: of those that chose them, rare rows would have more
    # than any later traffic gives them.
    choosing_V, counted_V = (values_V[0::2], values_V[1::2]) if len(values_V) > 1 else (values_V, values_V)
    rows, counts = np.unique(choosing_V[choosing_V != OOV_ROW], return_counts=True)
    order = np.lexsort((rows, -counts))[:MOST_ROWS]  # the most frequent first, ties by row
    middle = (counts[order].cumsum() - 0.5 * counts[order]) / max(1, counts.sum())
    groups = [tuple(map(int, rows[order][(middle * BINS).astype(int) == number])) for number in range(BINS)]
    filled = tuple(group for group in groups if group)
    bins = IdBins(rows=filled, shares=(0.0,) * (len(filled) + 2))
    return IdBins(rows=filled, shares=_shares(bins.counts(counted_V)))


def _shares(counts: Counts) -> tuple[float, ...]:
    return tuple((counts / max(1.0, counts.sum())).tolist())
