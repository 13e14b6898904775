"""The term of joint ranking and calibration against float64 loops, and a run that has it."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.training_data import (
    SCHEMA,
    Stopped,
    assert_same_checkpoints,
    feed_table,
    stop_at,
    training_file,
    write_feed,
)
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.evaluate import evaluate
from training.evaluate.validation import predict
from training.publish.export import export
from training.step.balancing.losses import Compared, TaskLosses
from training.train import train

Floats = NDArray[np.float64]
# The parity that networks are held to: float32 against float64.
PARITY, GRADIENTS = 5e-6, 1e-4
WEIGHTS = [0.5, None, 2.0]
JOINT = SCHEMA.replace("label: is_click}", "label: is_click, jrc: {weight: 0.5}}")


def schema() -> FeedSchema:
    tasks = [
        {"name": f"t{n}", "kind": "binary", "label": f"l{n}", **({} if weight is None else {"jrc": {"weight": weight}})}
        for n, weight in enumerate(WEIGHTS)
    ]
    features = [{"name": "x", "side": "candidate", "kind": "number"}]
    return FeedSchema.from_mapping({"name": "joint", "features": features, "tasks": tasks}, "test")


class Batch:
    """Rows of groups of unequal size, one of them alone, one without an observed row of the last task."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.groups = np.array([0, 3, 0, 1, 1, 3, 0, 2, 1, 3, 3, 3])
        rows = len(self.groups)
        self.logits, self.bases = rng.normal(0, 2, (rows, 3)), rng.normal(0, 2, (rows, 2))
        self.targets = rng.integers(0, 2, (rows, 3)).astype(float)
        self.observed = np.ones((rows, 3))
        self.observed[[1, 2], 0] = 0
        self.observed[self.groups == 1, 2] = 0

    def by_loop(self, logits: Floats, bases: Floats) -> list[float]:
        """Each task's loss: cross entropy, and -log of a row's softmax among its group's, of the logit of its label."""
        means = []
        for task, weight in enumerate(WEIGHTS):
            rows = np.flatnonzero(self.observed[:, task])
            total = 0.0
            for row in rows:
                label = self.targets[row, task]
                total += np.log(1 + np.exp(-logits[row, task] if label else logits[row, task]))
                if weight is None:
                    continue
                ours = [other for other in rows if self.groups[other] == self.groups[row]]
                values = bases[:, [0, None, 1][task]] + (logits[:, task] if label else 0)
                total -= weight * np.log(np.exp(values[row]) / np.exp(values[ours]).sum())
            means.append(total / len(rows))
        return means

    def losses(self, logits_BO: torch.Tensor, bases_BJ: torch.Tensor) -> torch.Tensor:
        arrays = (torch.tensor(array, dtype=torch.float32) for array in (self.targets, self.observed))
        found_T: torch.Tensor = TaskLosses(schema())(
            logits_BO, *arrays, compared=Compared(bases_BJ, torch.tensor(self.groups))
        )
        return found_T


def test_losses_and_gradients_are_those_of_a_loop() -> None:
    batch = Batch()
    inputs = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (batch.logits, batch.bases)]
    losses_T = batch.losses(*inputs)
    expected = batch.by_loop(batch.logits, batch.bases)
    np.testing.assert_allclose(losses_T.detach().numpy(), expected, rtol=PARITY, atol=PARITY)
    losses_T.sum().backward()  # type: ignore[no-untyped-call]
    for which, array in enumerate((batch.logits, batch.bases)):
        gradient = inputs[which].grad
        assert gradient is not None
        for place in itertools.product(*map(range, array.shape)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [batch.logits.copy(), batch.bases.copy()]
                moved[which][place] += step
                ends.append(sum(batch.by_loop(*moved)))
            assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=GRADIENTS)


def test_large_logits_stay_finite_and_the_unobserved_have_no_say() -> None:
    batch = Batch()
    logits, bases = (torch.tensor(100 * x, dtype=torch.float32) for x in (batch.logits, batch.bases))
    plain_T = batch.losses(logits, bases)
    logits[1, 0], bases[2, 0] = 1e30, -1e30  # neither is observed
    changed = (logits.requires_grad_(), bases.requires_grad_())
    losses_T = batch.losses(*changed)
    torch.testing.assert_close(losses_T, plain_T, rtol=0, atol=0)
    losses_T.sum().backward()  # type: ignore[no-untyped-call]
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in changed)
    assert logits.grad is not None
    assert float(logits.grad[1, 0]) == 0


def test_the_term_is_least_where_the_two_logits_are_a_density() -> None:
    """Rows x = 0..4 and labels y are drawn from p(x, y). With f_y(x) = log p(x, y) the gradients of the expected loss
    are 0, and the sigmoid of the difference is p(y = 1 | x): calibrated."""
    p_XY = np.random.default_rng(1).dirichlet(np.ones(10)).reshape(5, 2)
    base = np.log(p_XY[:, 0])
    logit = np.log(p_XY[:, 1]) - base
    for moved in (logit, base):
        slopes = []
        for x in range(5):
            values = []
            for step in (1e-6, -1e-6):
                moved[x] += step
                own = np.stack([base, base + logit], axis=1)
                among = own - np.log(np.exp(own).sum(axis=0))
                calibrated = own - np.log(np.exp(own).sum(axis=1, keepdims=True))
                values.append(-(p_XY * (calibrated + 0.7 * among)).sum())
                moved[x] -= step
            slopes.append((values[0] - values[1]) / 2e-6)
        np.testing.assert_allclose(slopes, 0, atol=1e-8)


def joint_file(tmp_path: Path, **changes: object) -> Path:
    write_feed(tmp_path / "data", 600)
    split = {"column": "day", "train": {"max": 4}, "validation": 5, "test": [6]}
    data = {"path": str(tmp_path / "data"), "split": split, "group_by": "user_id", "together": "user_id"}
    return training_file(tmp_path, schema=JOINT, data=data, **changes)


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_an_interrupted_run_ends_with_the_weights_of_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, read: str
) -> None:
    path = joint_file(tmp_path, checkpoint_seconds=1e-9)
    reads = [f"data.read={read}"]
    with caplog.at_level(logging.INFO):
        whole = train(TrainingConfig.load(path, [*reads, f"output={tmp_path}/whole"]), show=False)
    table = feed_table(600)
    counts = np.unique(table["user_id"].to_numpy()[table["day"].to_numpy() <= 4], return_counts=True)[1]
    alone = f"{counts.sum()} training rows in {len(counts)} groups, {(counts == 1).sum()} rows of them alone"
    assert (alone if read == "memory" else f"of {counts.sum()} alone in their group") in caplog.text
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Stopped):
            train(TrainingConfig.load(path, reads), show=False)
    resumed = train(TrainingConfig.load(path, reads), show=False)
    assert_same_checkpoints(whole, resumed)
    # The base logit learned: it is no longer what was drawn.
    drawn, learned = resumed.new_ranker().network.towers[0].base, resumed.best_ranker().network.towers[0].base
    assert not torch.equal(drawn.weight, learned.weight)  # type: ignore[union-attr,arg-type]
    assert resumed.best_ranker().network.towers[1].base is None


def test_two_processes_with_whole_groups_have_the_losses_of_one() -> None:
    """Sums that another process would add are made up by hand."""
    batch = Batch()
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (batch.logits, batch.targets, batch.observed, batch.bases)]
    whole_T = batch.losses(tensors[0], tensors[3])
    sums: list[torch.Tensor] = []

    def count_whole(values_T: torch.Tensor) -> torch.Tensor:
        sums.append(values_T)
        return values_T.copy_(tensors[2].sum(dim=0)) if len(sums) % 2 else values_T

    parts = []
    for rows in (np.flatnonzero(batch.groups < 2), np.flatnonzero(batch.groups >= 2)):
        logits_BO, targets_BT, observed_BT, bases_BJ = (tensor[rows] for tensor in tensors)
        codes_B = torch.tensor(np.unique(batch.groups[rows], return_inverse=True)[1])
        losses = TaskLosses(schema(), count_whole)
        parts.append(losses(logits_BO, targets_BT, observed_BT, compared=Compared(bases_BJ, codes_B)))
    torch.testing.assert_close(parts[0] + parts[1], whole_T)


def test_a_version_answers_without_base_logits_and_a_child_starts_from_them(tmp_path: Path) -> None:
    run = train(TrainingConfig.load(joint_file(tmp_path, epochs=1)), show=False)
    evaluate(run, "validation", replicates=0)
    published = export(run, tmp_path / "models")
    rows = read_splits(run.config.data, run.schema, ("validation",))["validation"].slice(0, 20)
    encoded = Rows.encode(run.schema, run.encoder, rows, columns_from_arrow(run.schema, rows), as_served=True)
    logits_BO = predict(run.best_ranker(), encoded)
    scorer = Scorer.load(published)
    for number, row in enumerate(rows.to_pylist()):
        user = {name: row[name] for name in ("user_id", "history", "tab")}
        answers = scorer.score_values(user, {name: [row[name]] for name in ("video", "duration")}, 1)
        # float32 sums in another order.
        assert float(answers[0, 0]) == pytest.approx(float(expit(logits_BO[number, 0])), abs=1e-5)
    changes = [f"init_from={published}", f"output={tmp_path}/child", "epochs=1"]
    still = ["optimizer.dense.learning_rate=1e-30", "optimizer.tables.learning_rate=1e-30"]
    child = train(TrainingConfig.load(tmp_path / "training.yaml", [*changes, *still]), show=False)
    states = [one.best_ranker().network.state_dict() for one in (run, child)]
    assert "towers.0.base.weight" in states[0]
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=0, atol=1e-12)


def test_a_task_that_compares_needs_its_column(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 600)
    path = training_file(tmp_path, schema=JOINT)
    with pytest.raises(ValueError, match=r"task 'click' has jrc.* name their column as data\.together"):
        train(TrainingConfig.load(path), show=False)


def test_the_training_file_replaces_the_terms_of_the_schema(tmp_path: Path) -> None:
    path = joint_file(tmp_path)

    def tasks_with(*losses: str) -> list[dict[str, object]]:
        schema = TrainingConfig.load(path, [f"losses.{change}" for change in losses]).feed_schema()
        return [task.model_dump(exclude_none=True) for task in schema.tasks]

    plain = tasks_with()
    assert plain[0]["jrc"] == {"weight": 0.5}
    changed = tasks_with("click={jrc: null, focal: {weight: 2}}", "like.jrc.weight=3")
    assert changed[0] == {**{k: v for k, v in plain[0].items() if k != "jrc"}, "focal": {"weight": 2.0, "gamma": 2.0}}
    assert changed[1] == {**plain[1], "jrc": {"weight": 3.0}}
    assert changed[2] == plain[2]
    for change, told in (
        ("clik={jrc: null}", r"losses: unknown task 'clik'; did you mean 'click'"),
        ("watch={jrc: {weight: 1}}", r"losses: watch: unknown key 'jrc'"),
        ("click={jrc: {weight: 0}}", "losses.click.jrc.weight"),
        ("click={bce: null}", "unknown key 'bce'"),
    ):
        with pytest.raises(ValueError, match=told):
            tasks_with(change)
