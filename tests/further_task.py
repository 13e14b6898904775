"""A kind of task that this repository does not have, as somebody would add it: counts, by a Poisson regression.

Two classes, one for model/ and one for training/. `register` enters the second where training registers kinds.
`schema_with` makes a schema of such tasks, for YAML knows the kinds of the union alone.

Shapes: B rows, N candidates, O outputs and T tasks, one output a task.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import training.tasks
from model.features.kinds import NumberFeature
from model.schema import FeedSchema
from model.tasks import BinaryTask
from model.tasks.task import BaseTask, Scales
from training.tasks.learned import Bootstrap, Floats, LearnedTask, Mask, Sample
from training.tasks.metric import Metric, mean_on_draws


class CountTask(BaseTask):
    """A count, answered by its rate, which is `most` at the largest."""

    is_probability: ClassVar[bool] = False
    calibrated_by: ClassVar[tuple[str, ...]] = ()

    kind: Literal["count"] = "count"
    most: float = 100.0

    def upper(self, scales: Scales) -> float:
        """The key of the schema."""
        return self.most

    def are_labels(self, values_B: Floats) -> Mask:
        """Mask of whole numbers."""
        is_label_B: Mask = (values_B >= 0) & (values_B == np.floor(values_B))
        return is_label_B

    @classmethod
    def answers(cls, tasks: Sequence[BaseTask], scales: Scales) -> nn.Module:
        """Logarithms of rates -> rates."""
        return Rates([task.upper(scales) for task in tasks])


class Rates(nn.Module):
    """logits_NO -> rates_NO."""

    most_O: Tensor

    def __init__(self, most: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("most_O", torch.tensor(most))

    def forward(self, logits_NO: Tensor) -> Tensor:
        """rates_NO."""
        return torch.minimum(torch.exp(logits_NO), self.most_O)


def deviance(labels_B: Floats, outputs_BO: Floats) -> Floats:
    """Negative log likelihood of each row, up to what the label alone decides."""
    loss_B: Floats = np.exp(outputs_BO[:, 0]) - labels_B * outputs_BO[:, 0]
    return loss_B


class LearnedCount(LearnedTask):
    """A count as it is learned."""

    label_rule = "must be a whole number >= 0"
    metrics: ClassVar[dict[str, Metric]] = {
        "deviance": Metric(
            "deviance", "lower", lambda y, x, _: float(deviance(y, x).mean()), mean_on_draws(deviance), "no rows"
        )
    }
    table_columns = ("deviance",)

    @classmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """Negative log likelihood."""
        return nn.PoissonNLLLoss(reduction="none")

    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Of a Poisson law."""
        return -functional.poisson_nll_loss(logits_BO[:, 0], targets_B, reduction="none")

    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Against the mean count."""
        constant_BO = np.full_like(logits_BO, np.log(targets_B.mean()))
        return float(deviance(targets_B, logits_BO).mean() / deviance(targets_B, constant_BO).mean())

    def label_report(self, rates: Sequence[float | None]) -> dict[str, Any]:
        """The mean label."""
        return {"label_mean": rates[0]}

    def measure(
        self, sample: Sample, picked_N: Mask, validation: Sample | None, bootstrap: Bootstrap
    ) -> dict[str, Any]:
        """The deviance."""
        value = float(deviance(sample.labels_N, sample.logits_NO)[picked_N].mean())
        return {"deviance": {"value": value, "low": None, "high": None}}

    @staticmethod
    def table_rows(measured: dict[str, Any]) -> list[list[Any]]:
        """One row."""
        return [[measured["deviance"]]]

    @property
    def tree_objective(self) -> dict[str, str | int]:
        """LightGBM's own."""
        return {"objective": "poisson", "metric": "poisson"}

    def constant_outputs(self, labels_N: Floats) -> list[float]:
        """The logarithm of the one label, or of half of one."""
        return [float(np.log(max(labels_N[0], 0.5)))]

    def losses_of_answers(self, labels_N: Floats, answers_NO: Floats) -> Floats:
        """The same as `deviance`, of rates."""
        return deviance(labels_N, np.log(np.maximum(answers_NO, 1e-9)))

    def losses_of_constant(self, moments_UM: Floats, rows_U: Floats) -> Floats:
        """Of the mean count."""
        counts_U = moments_UM[:, 0]
        mean = max(counts_U.sum() / rows_U.sum(), 1e-9)
        losses_U: Floats = rows_U * mean - counts_U * np.log(mean)
        return losses_U


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter the kind where training registers kinds."""
    monkeypatch.setitem(training.tasks.KINDS, "count", LearnedCount)


def schema_with(*tasks: CountTask) -> FeedSchema:
    """A feed of a click and of counts, and one number."""
    click = BinaryTask(name="click", kind="binary", label="clicked")
    number = NumberFeature(name="x", kind="number", side="candidate")
    # The union of kinds does not know this one, and `model_construct` does not ask it.
    of_feed: tuple[Any, ...] = (click, *tasks)
    return FeedSchema.model_construct(name="counts", features=(number,), tasks=of_feed)
