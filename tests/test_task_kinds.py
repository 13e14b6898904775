"""Kinds of tasks stay in one place: a file each in model/tasks/ and training/tasks/, and the registries that name them.

Other code asks a task for what it needs. A name of a kind anywhere else is where the next kind would be forgotten. A
whole further kind goes the way of the others.
"""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import poisson

from model.export.scoring_module import to_torchscript
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Answers
from model.tasks import KINDS, Task
from tests.further_task import CountTask, LearnedCount, register, schema_with
from tests.named_kinds import named_kinds
from training import tasks as learned_kinds
from training.data.arrow import LogColumns
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows
from training.evaluate.validation import relative_errors
from training.step.balancing.losses import TaskLosses
from training.tasks import learned

ROOT = Path(__file__).resolve().parent.parent
HOMES = ("model/tasks", "training/tasks")
CLASSES = {kind.__name__ for kind in get_args(get_args(Task)[0])}
# What is of one kind by its meaning.
OF_ONE_KIND = {"training/fit/negative_sampling.py": "negatives are rows of a binary task"}


def lines_of(source: str) -> list[int]:
    """Lines that name a kind."""
    return list(named_kinds(source, CLASSES, KINDS))


def test_kinds_are_named_in_their_files_and_registries_alone() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in ("model", "training", "service", "deploy")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.parent.relative_to(ROOT)) not in HOMES and lines_of(path.read_text(encoding="utf-8"))
    }
    assert found == set(OF_ONE_KIND)


@pytest.mark.parametrize(
    "source",
    ["from model.tasks import BinaryTask", "isinstance(task, tasks.RegressionTask)", "task.kind == 'multiclass'"],
)
def test_a_named_kind_is_found(source: str) -> None:
    assert lines_of(source) == [1]


def test_every_kind_has_a_file_in_model_and_one_in_training() -> None:
    of_model = {kind.model_fields["kind"].annotation: kind.__module__ for kind in get_args(get_args(Task)[0])}
    assert {get_args(kind)[0]: module for kind, module in of_model.items()} == {
        kind: f"model.tasks.{kind}" for kind in KINDS
    }
    assert {kind: one.__module__ for kind, one in learned_kinds.KINDS.items()} == {
        kind: f"training.tasks.{kind}" for kind in KINDS
    }


def test_a_further_kind_goes_from_the_log_to_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    schema = schema_with(CountTask(name="shares", kind="count", label="shares"))
    rng = np.random.default_rng(0)
    table = pa.table({"x": rng.normal(size=50), "clicked": [0, 1] * 25, "shares": rng.poisson(2.0, 50)})
    _, _, faults = LogColumns(schema).read(table, "log")
    assert faults == []
    rows = Rows.encode(
        schema, FeatureEncoder(schema, FittedFeatures()), table, columns_from_arrow(schema, table), as_served=False
    )
    logits = rng.normal(size=(50, 2)).astype(np.float32)
    losses_T = TaskLosses(schema)(torch.from_numpy(logits), rows.targets_BT, rows.observed_BT)
    shares, rate = table.column("shares").to_numpy(), np.exp(logits[:, 1].astype(np.float64))
    # Of float32. The loss leaves out log(label!).
    constant = [np.log(np.arange(1, count + 1)).sum() for count in shares]
    expected = -(poisson(rate).logpmf(shares) + constant).mean()
    assert float(losses_T[1]) == pytest.approx(expected, rel=1e-5)
    assert set(relative_errors(schema, logits, rows)) == {"click", "shares"}
    answers = to_torchscript(Answers(schema, FittedFeatures()))
    np.testing.assert_allclose(answers(torch.from_numpy(logits))[:, 1].numpy(), rate, rtol=1e-6)
    assert isinstance(learned(schema.tasks[1]), LearnedCount)
    assert json.loads(schema.tasks[1].model_dump_json())["kind"] == "count"


def test_a_label_that_breaks_the_rule_of_a_further_kind_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    schema = schema_with(CountTask(name="shares", kind="count", label="shares"))
    table = pa.table({"x": [0.0, 1.0], "clicked": [0, 1], "shares": [2.0, 0.5]})
    _, _, (fault,) = LogColumns(schema).read(table, "log")
    assert str(fault.fault) == "row 1: must be a whole number >= 0, got 0.5; 1 such row"
