"""One of several classes as it is learned: labels of a log, loss and gradient by hand, scikit-learn's measures."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from numpy.typing import NDArray
from sklearn import metrics as oracle

from model.schema import FeedSchema
from model.tasks import MulticlassTask
from training.data.arrow import LogColumns, labels_of
from training.metrics.multiclass import evaluate_multiclass, softmax
from training.step.balancing.losses import TaskLosses
from training.tasks import KINDS, learned

SCHEMA = FeedSchema.from_mapping(
    yaml.safe_load("""
name: feed
features: [{name: x, side: candidate, kind: number}]
tasks:
  - {name: click,  kind: binary,     label: a}
  - {name: rating, kind: multiclass, label: stars, classes: {1: bad, 2: fair, 3: good}, mask: is_rated}
  - {name: watch,  kind: regression, label: ms}
  - {name: mood,   kind: multiclass, label: mood, classes: [calm, loud]}
"""),
    "test",
)
RATING, MOOD = SCHEMA.tasks[1], SCHEMA.tasks[3]
ROWS, CLASSES = 400, 3

Floats = NDArray[np.float64]


def answered(seed: int = 0) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Labels, logits that know something of them, and users."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, ROWS, p=(0.6, 0.3, 0.1)).astype(np.float64)
    logits = rng.normal(0, 1, (ROWS, CLASSES)) + 1.5 * np.eye(CLASSES)[labels.astype(int)]
    return labels, logits, rng.integers(0, 40, ROWS)


@pytest.mark.parametrize(
    "stars",
    [
        pa.array([1, 3, None, 2, 7], pa.int32()),
        pa.array([1.0, 3.0, np.nan, 2.0, 7.0]),
        pa.array([1, 3, None, 2, 7], pa.int64()).dictionary_encode(),
    ],
)
def test_labels_are_indices_of_classes(stars: pa.Array) -> None:
    labels = learned(RATING).labels(pa.chunked_array([stars]))
    np.testing.assert_array_equal(labels, [0, 2, np.nan, 1, -1])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_labels_of_a_string_column(kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.array(["loud", "calm", None, "odd"], kind)])
    np.testing.assert_array_equal(learned(MOOD).labels(column), [1, 0, np.nan, -1])
    np.testing.assert_array_equal(learned(MOOD).labels(pa.chunked_array([pa.nulls(2)])), [np.nan, np.nan])


def test_a_string_column_has_the_values_of_a_mapping() -> None:
    column = pa.chunked_array([["3", "1", "good", None]])
    np.testing.assert_array_equal(learned(RATING).labels(column), [2, 0, -1, np.nan])


def test_a_column_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="is int64, and classes has texts, which are values of a string column"):
        learned(MOOD).labels(pa.chunked_array([[1, 2]]))
    texts = MulticlassTask(name="t", kind="multiclass", label="t", classes={"very calm": "calm", 2: "loud"})
    with pytest.raises(ValueError, match="is double, and classes has texts"):
        learned(texts).labels(pa.chunked_array([[2.0]]))


def log(stars: list[int | None], moods: list[str], rated: list[int]) -> pa.Table:
    rows = len(stars)
    columns = {"x": [0.0] * rows, "a": [0, 1] * (rows // 2), "stars": stars, "is_rated": rated}
    return pa.table({**columns, "ms": [1.0] * rows, "mood": moods})


def test_a_value_that_is_no_class_is_a_fault_of_its_row_where_the_mask_is_1() -> None:
    table = log([1, 9, None, 9], ["calm", "loud", "calm", "odd"], [1, 1, 0, 0])
    _, _, faults = LogColumns(SCHEMA).read(table, "log")
    assert {fault.column: str(fault.fault) for fault in faults} == {
        "column 'stars' (task rating)": "row 1: must be one of 1, 2, 3, got 9; 1 such row",
        "column 'mood' (task mood)": "row 3: must be one of calm, loud, got 'odd'; 1 such row",
    }
    assert [list(fault.fault.is_bad_B) for fault in faults] == [[False, True, False, False], [False] * 3 + [True]]
    np.testing.assert_array_equal(labels_of(RATING, log([2, 3, None, 9], ["calm"] * 4, [1, 1, 0, 0])), [1, 2, 0, 0])


def test_loss_and_gradient_are_those_of_softmax_cross_entropy() -> None:
    rng = np.random.default_rng(1)
    logits, rows = rng.normal(0, 2, (9, 7)), np.arange(9)
    targets = np.stack(
        [rng.integers(0, 2, 9), rng.integers(0, 3, 9), rng.normal(0, 1, 9), rng.integers(0, 2, 9)], axis=1
    )
    observed = np.ones((9, 4))
    observed[:4, 1] = 0
    weights = rng.uniform(0.5, 2, 9)
    logits_BO = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    arrays = (torch.tensor(array, dtype=torch.float32) for array in (targets, observed, weights))
    losses_T = TaskLosses(SCHEMA)(logits_BO, *arrays)
    (gradient_BO,) = torch.autograd.grad(losses_T[1], logits_BO)
    expected_gradient = np.zeros_like(logits)
    for task, columns in ((1, slice(1, 4)), (3, slice(5, 7))):
        powers = np.exp(logits[:, columns])
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        label = targets[:, task].astype(int)
        counts = weights * observed[:, task] / (weights * observed[:, task]).sum()
        # float32 against float64: a few units in the last place.
        assert float(losses_T[task].detach()) == pytest.approx(
            -(counts * np.log(probabilities[rows, label])).sum(), rel=1e-5
        )
        if task == 1:
            expected_gradient[:, columns] = counts[:, None] * (probabilities - np.eye(3)[label])
    np.testing.assert_allclose(gradient_BO.numpy(), expected_gradient, atol=1e-6)


def test_with_several_processes_a_loss_is_that_of_the_global_batch() -> None:
    """Two halves of a batch, whose sums another process would add: made up by hand."""
    rng = np.random.default_rng(2)
    targets = np.stack([rng.integers(0, classes, 10) for classes in (2, 3, 1, 2)], axis=1)
    arrays = (rng.normal(0, 2, (10, 7)), targets, rng.random((10, 4)) < 0.7)
    batch = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    counts_T = batch[2].sum(dim=0)

    def part(rows: slice) -> torch.Tensor:
        calls: list[torch.Tensor] = []

        def across(values_T: torch.Tensor) -> torch.Tensor:
            """First the counts of both, then this part's share of the losses."""
            calls.append(values_T)
            return counts_T if len(calls) == 1 else values_T

        losses_T: torch.Tensor = TaskLosses(SCHEMA, across)(*(tensor[rows] for tensor in batch))
        return losses_T

    torch.testing.assert_close(part(slice(0, 4)) + part(slice(4, 10)), TaskLosses(SCHEMA)(*batch))


def test_metrics_are_scikit_learn_s() -> None:
    labels, logits, users = answered()
    probabilities = softmax(logits)
    found = evaluate_multiclass(labels, probabilities, users, ["bad", "fair", "good"], replicates=50)
    assert found.accuracy.value == pytest.approx(oracle.accuracy_score(labels, probabilities.argmax(axis=1)))
    log_loss = oracle.log_loss(labels, probabilities)
    assert found.log_loss.value == pytest.approx(log_loss)
    shares = np.bincount(labels.astype(int)) / ROWS
    constant = oracle.log_loss(labels, np.tile(shares, (ROWS, 1)))
    assert found.normalized_entropy.value == pytest.approx(log_loss / constant)
    assert found.macro_auc.value == pytest.approx(
        oracle.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    for one, (name, of_class) in enumerate(found.classes.items()):
        assert of_class.rows == (labels == one).sum(), name
        assert of_class.auc.value == pytest.approx(oracle.roc_auc_score(labels == one, probabilities[:, one]))
        assert of_class.calibration_ratio.value == pytest.approx(probabilities[:, one].sum() / (labels == one).sum())
    for estimate in (found.accuracy, found.log_loss, found.macro_auc, found.classes["good"].calibration_ratio):
        assert estimate.low is not None
        assert estimate.value is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high


def test_what_labels_do_not_define_is_none_and_says_why() -> None:
    labels, logits, users = answered()
    labels[labels == 2] = 1
    found = evaluate_multiclass(labels, softmax(logits), users, ["bad", "fair", "good"], replicates=10)
    assert found.macro_auc.value is None
    assert found.macro_auc.reason == "a class has no label, or every label"
    assert found.classes["good"].calibration_ratio.reason == "no label is of the class"
    assert found.log_loss.value is not None


@pytest.mark.parametrize("name", list(KINDS["multiclass"].metrics))
def test_metrics_on_draws_are_those_of_repeated_rows(name: str) -> None:
    labels, logits, users = answered()
    metric = KINDS["multiclass"].metrics[name]
    assert metric.on_draws is not None
    rng = np.random.default_rng(5)
    draws = np.stack([np.bincount(rng.integers(0, 40, 40), minlength=40) for _ in range(5)])
    found = metric.on_draws(labels, logits, users, 40)(draws.astype(np.float64))
    for draw, value in zip(draws, found, strict=True):
        rows = np.repeat(np.arange(ROWS), draw[users])
        # Sums in another order, in float64.
        assert value == pytest.approx(metric.value(labels[rows], logits[rows], users[rows]), abs=1e-9)


def test_the_relative_error_of_the_classes_shares_is_1() -> None:
    labels, logits, _ = answered()
    shares = np.bincount(labels.astype(int)) / ROWS
    assert learned(RATING).relative_error(np.tile(np.log(shares), (ROWS, 1)), labels) == pytest.approx(1.0)
    assert learned(RATING).relative_error(logits, labels) < 0.8


def test_rewards_of_a_route() -> None:
    logits_BO, targets_B = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0.0, 1.0])
    task = learned(RATING)
    assert task.is_right(logits_BO, targets_B).tolist() == [True, False]
    expected = [2 - np.log(np.exp(2) + 2), 0 - np.log(2 + np.e)]
    np.testing.assert_allclose(task.log_likelihood(logits_BO, targets_B).numpy(), expected, rtol=1e-6)
