"""Fitting piece by piece against fitting the whole at once, and that against numpy."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest

from model.features.fitted import FittedFeatures, FittingPass, count_ids
from model.features.kinds.columns import Column
from model.schema import FeedSchema
from tests.model.feeds import Rows, columns_of, everything, random_rows, schema_of

CHAINS = ("[quantile]", "[standardise, quantile]", "[log1p, quantile]", "[quantile, standardise]",
          "[log1p, standardise]", "[standardise, log1p, standardise]")  # fmt: skip


def of_chain(chain: str) -> FeedSchema:
    return schema_of(
        f"name: f\nfeatures: [{{name: x, side: candidate, kind: number, transform: {chain}, missing: 3}}]\n"
        "tasks: [{name: click, kind: binary, label: clicked}]"
    )


def pieces_of(schema: FeedSchema, rows: Rows, cuts: Sequence[int]) -> list[Mapping[str, Column]]:
    return [
        columns_of(schema, {name: values[start:end] for name, values in rows.items()}) for start, end in pairwise(cuts)
    ]


def labels(schema: FeedSchema, count: int, seed: int) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    generator = np.random.default_rng(seed)
    return {
        task.name: task.transformed(generator.lognormal(size=count))
        for task in schema.tasks
        if task.scaling is not None
    }


def assert_close(one: FittedFeatures, other: FittedFeatures) -> None:
    assert one.vocabularies == other.vocabularies
    assert one.numbers.keys() == other.numbers.keys()
    for name, steps in other.numbers.items():
        for got, step in zip(one.numbers[name], steps, strict=True):
            assert got.transform == step.transform
            np.testing.assert_allclose([got.mean, got.scale], [step.mean, step.scale], rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(got.knots, step.knots, rtol=1e-12, atol=1e-12)
    for name, scale in other.targets.items():
        np.testing.assert_allclose(
            [one.targets[name].mean, one.targets[name].scale], [scale.mean, scale.scale], rtol=1e-12
        )
        assert one.targets[name].upper == scale.upper


@pytest.mark.parametrize("in_processes", [False, True])
def test_a_split_in_pieces_fits_as_the_whole(in_processes: bool) -> None:
    schema = everything()
    count = 400
    rows = random_rows(np.random.default_rng(0), count)
    targets = labels(schema, count, 1)
    cuts = [0, 1, 50, 50, 170, 400]
    whole = FittedFeatures.fit(schema, columns_of(schema, rows), targets)
    fitting = FittingPass(schema)
    for columns, (start, end) in zip(pieces_of(schema, rows, cuts), pairwise(cuts), strict=True):
        part = FittingPass(schema) if in_processes else fitting
        part.update(columns, {name: values[start:end] for name, values in targets.items()})
        if in_processes:
            again = FittingPass(schema)
            again.restore(part.arrays())
            fitting.merge(again)
    assert fitting.rows == count
    assert_close(fitting.finish(), whole)


@pytest.mark.parametrize("task", ["play_time", "depth"])
@pytest.mark.parametrize(("values", "upper"), [
    ([3.0, 70.0, 12.0], 70.0),                                # few labels: the largest
    ([*range(1, 101), 1e30, 1e30], 930.0),                    # some that are absurd: ten times the tenth largest
    ([0.0] * 1000 + [5e3, 800.0], 5e3),                       # mostly zeros: the largest, not a quantile
    ([0.0] * 50, 0.0),
    ([1e39] * 20, 1e30),                                      # sums of answers still fit a float32
])  # fmt: skip
def test_the_upper_bound_of_a_task_is_of_its_labels(task: str, values: list[float], upper: float) -> None:
    schema = everything()
    targets = {task.name: task.transformed(np.array(values)) for task in schema.tasks if task.scaling is not None}
    columns = columns_of(schema, random_rows(np.random.default_rng(0), len(values)))
    found = FittedFeatures.fit(schema, columns, targets).targets[task].upper
    assert found == pytest.approx(upper, rel=1e-6)
    assert np.float32(found) == found


@pytest.mark.parametrize("chain", CHAINS)
def test_fitted_transforms_are_those_of_the_values_one_after_the_other(chain: str) -> None:
    """Each step fitted by numpy on what the steps before it made of all values."""
    schema = of_chain(chain)
    raw = np.random.default_rng(0).gamma(2.0, 50.0, 3001).round(1)
    given: list[object] = [None if value > 300 else float(value) for value in raw]
    fitting = FittingPass(schema)
    for columns in pieces_of(schema, {"x": given}, [0, 700, 3001]):
        fitting.update(columns, {})
    values = np.where(raw > 300, 3.0, raw)
    for step in fitting.finish().numbers["x"]:
        if step.transform == "standardise":
            np.testing.assert_allclose([step.mean, step.scale], [values.mean(), values.std()], rtol=1e-12, atol=1e-13)
        if step.transform == "quantile":
            knots = np.quantile(values, np.linspace(0, 1, 101), method="inverted_cdf")
            np.testing.assert_allclose(step.knots, knots, rtol=1e-12, atol=1e-12)
        transformed = step.apply(values)
        inner = np.ones(len(values), np.bool_)
        if step.transform == "quantile":  # beyond its outer knots it keeps nothing
            inner = (values > step.knots[0]) & (values < step.knots[-1])
        np.testing.assert_allclose(step.invert(transformed)[inner], values[inner], rtol=1e-9, atol=1e-9)
        values = transformed


@pytest.mark.parametrize("size", [1, 2, 99, 100, 101, 700, 12345])
def test_knots_are_numpys_quantiles(size: int) -> None:
    schema = of_chain("quantile")
    values = np.random.default_rng(size).normal(size=size)
    fitting = FittingPass(schema)
    fitting.update({"x": Column(values)}, {})
    expected = np.quantile(values, np.linspace(0, 1, 101), method="inverted_cdf")
    assert fitting.finish().numbers["x"][0].knots == tuple(expected.tolist())
    assert fitting.rank_errors == {"x": 0}


def test_a_vocabulary_of_too_many_ids_keeps_the_common_ones() -> None:
    """Kept ids were seen min_count times, and none is lost that was seen min_count times more than the undercount."""
    schema = schema_of(
        "name: f\nfeatures: [{name: x, side: candidate, kind: id, vocabulary: fitted, min_count: 5, dim: 4}]\n"
        "tasks: [{name: click, kind: binary, label: clicked}]"
    )
    generator = np.random.default_rng(0)
    values = generator.permutation(np.concatenate([np.repeat(np.arange(100), 50), np.arange(1000, 21000)]))
    fitting = FittingPass(schema, most_ids=500)
    for piece in np.split(values, 20):
        fitting.update({"x": Column(piece)}, {})
    undercount = fitting.counts["x"].undercount
    assert 0 < undercount < 45
    assert fitting.finish().vocabularies["x"] == tuple(range(100))


def test_strings_given_once_count_as_often_as_they_stand() -> None:
    """A log's strings come as places in a list of all. A null's place may be anywhere, and a value may be in no row."""
    [table] = schema_of(
        "name: f\nfeatures: [{name: x, side: candidate, kind: id, dtype: string, buckets: 9, dim: 4}]\n"
        "tasks: [{name: click, kind: binary, label: clicked}]"
    ).tables
    codes_V = np.array([2, 0, 2, 3, 0, 2, 0], np.int32)
    is_null = np.array([False, False, False, False, False, False, True])
    coded = Column(["a", "never", "é", "b"], is_null, None, codes_V)
    plain = Column(["é", "a", "é", "b", "a", "é", ""], is_null)
    for column in (coded, plain):
        counts = count_ids([table], {"x": column})["x"]
        ids, times = counts.entries()
        assert (list(ids), times.tolist(), counts.total) == (["a", "b", "é"], [2, 1, 3], 6)


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(ValueError, match="the training split has no row"):
        FittingPass(of_chain("quantile")).finish()
