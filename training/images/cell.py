"""One cell of an experiment: a method trained with one seed, resumable at every epoch.

In: the experiment, the cell, the images. Out: result.json in the cell's folder: accuracy per task and by epoch, the
policies and their perplexity by epoch. Where images are held out, the epoch with the best mean validation accuracy is
the one that answers the test rows, which are read then alone. Without them it is the last one, whatever the test rows
say by epoch.

Each step's order, draws and augmentation follow from the seed and the step alone.

Shapes: B rows, T tasks, M modules, L classes of a task, C channels, H by W pixels, N images, R rows of a split.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.fusion.policy import perplexities, probabilities
from training.files import derived_seed
from training.images.augment import augment
from training.images.config import Cell, ImageExperiment
from training.images.network import ImageNetwork, LearnedMethod
from training.images.pixels import Pixels
from training.images.tasks import ImageTasks, TaskRows
from training.run import state_file
from training.run.run import locked, read_json, write_json
from training.step.policy_optimizer import PolicyOptimizer

log = logging.getLogger(__name__)

SETTINGS, RESULT, CHECKPOINT = "cell.json", "result.json", "checkpoint.pt"
TEST_BATCH = 1000
# What a step's seed is for.
DRAWS, AUGMENTATION, PLACEBO = 1, 2, 3


@dataclass
class Progress:
    """Position of a cell after so many epochs. Perplexities are by layer, one an epoch, and so are their placebos'."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -math.inf
    seconds: float = 0.0
    train_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    perplexity: dict[str, list[float]] = field(default_factory=dict)
    placebo_perplexity: dict[str, list[float]] = field(default_factory=dict)


def check_settings(experiment: ImageExperiment, cell: Cell, fingerprint: str) -> dict[str, Any]:
    """The settings of a cell. Raises ValueError where its folder has another cell's or another data's numbers."""
    settings = experiment.settings(cell) | {"fingerprint": fingerprint}
    path = experiment.folder(cell) / SETTINGS
    if path.exists():
        old = read_json(path)
        different = sorted(key for key in settings if not isinstance(old, dict) or old.get(key) != settings[key])
        if different:
            raise ValueError(
                f"{path.parent}: holds a cell from which {', '.join(different)} differ; "
                "choose another output or delete the folder"
            )
    return settings


def train_cell(
    experiment: ImageExperiment,
    cell: Cell,
    tasks: ImageTasks,
    pixels: Pixels,
    advance: Callable[[float], None],
) -> None:
    """Train, or go on training, a cell. `advance` is called with the epochs done, in parts. Raises ValueError."""
    folder = experiment.folder(cell)
    with locked(folder):
        write_json(folder / SETTINGS, check_settings(experiment, cell, pixels.fingerprint))
        trainer = _Trainer(experiment, cell, tasks, pixels)
        state = state_file.load(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
        progress, best = trainer.restore(state) if state else (Progress(), trainer.weights())
        advance(progress.epoch)
        started = time.monotonic() - progress.seconds
        while progress.epoch < experiment.epochs:
            progress.train_loss.append(trainer.epoch(progress.epoch, advance))
            for kept, found in (
                (progress.perplexity, trainer.perplexity()),
                (progress.placebo_perplexity, trainer.placebo_perplexity()),
            ):
                for layer, value in found.items():
                    kept.setdefault(layer, []).append(value)
            progress.epoch += 1
            if len(tasks.validation):
                progress.validation_accuracy.append(_mean(trainer.accuracy(tasks.validation)))
            else:
                progress.test_accuracy.append(_mean(trainer.accuracy(tasks.test)))
            # Without validation rows the last epoch answers.
            reached = progress.validation_accuracy[-1] if len(tasks.validation) else progress.epoch
            if reached > progress.best_accuracy:
                progress.best_accuracy, progress.best_epoch, best = reached, progress.epoch, trainer.weights()
            progress.seconds = time.monotonic() - started
            state_file.save(folder / CHECKPOINT, trainer.state_dict() | {"progress": asdict(progress), "best": best})
        trainer.network.load_state_dict(best)
        write_json(folder / RESULT, _result(trainer, tasks, progress))
    # A finished cell is its result: twenty networks of a seed would fill a disk.
    (folder / CHECKPOINT).unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """True where the cell of a folder has a result."""
    return (folder / RESULT).exists()


class _Trainer:
    """The network of a cell with its optimizers."""

    def __init__(self, experiment: ImageExperiment, cell: Cell, tasks: ImageTasks, pixels: Pixels) -> None:
        self.experiment, self.cell, self.tasks, self.pixels = experiment, cell, tasks, pixels
        method = experiment.method(cell.method)
        torch.manual_seed(cell.seed)
        _, channels, height, width = tasks.train.images_NCHW.shape
        shape = (channels, height, width)
        network = ImageNetwork(experiment.network, method, shape, len(tasks.names), tasks.num_classes, cell.seed)
        self.network = network.to(pixels.device)
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.num_parameters = sum(parameter.numel() for parameter in learned)
        self._optimizer = torch.optim.Adam(learned, lr=experiment.learning_rate, fused=True)
        policies = list(self.network.policies().values())
        self._method = method if isinstance(method, LearnedMethod) else None
        self._policies = PolicyOptimizer(policies, self._method) if self._method and policies else None

    def epoch(self, epoch: int, advance: Callable[[float], None]) -> float:
        """Train on every row once. Returns the mean loss. Raises ValueError where it is not finite."""
        rows, device, seed = self.tasks.train, self.pixels.device, self.cell.seed
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(derived_seed(seed, epoch)))
        batches = torch.split(order, self.experiment.batch_size)
        self.network.train()
        self.network.is_warm_up = self._method is not None and epoch < self._method.warm_up_epochs
        total = 0.0
        for number, chosen_B in enumerate(batches):
            step = epoch * len(batches) + number
            self.network.generator = torch.Generator(device).manual_seed(derived_seed(seed, step, DRAWS))
            images_BCHW = self.pixels.take_rows(rows, chosen_B)
            if self.experiment.augmentation is not None:
                generator = torch.Generator().manual_seed(derived_seed(seed, step, AUGMENTATION))
                images_BCHW = augment(images_BCHW, self.experiment.augmentation, generator)
            task_B, label_B = rows.task_R[chosen_B].to(device), rows.label_R[chosen_B].to(device)
            logits_BL = self.network(self.pixels.standardised(images_BCHW), task_B)
            losses_B = functional.cross_entropy(logits_BL, label_B, reduction="none")
            loss = losses_B.mean()
            if not torch.isfinite(loss):
                raise ValueError(
                    f"{self.cell}: the loss is not finite in epoch {epoch + 1}, step {number + 1}; "
                    "the checkpoint of the epoch before is kept. Lower learning_rate and choose another output"
                )
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            if self._policies is not None and not self.network.is_warm_up:
                self._learn_policies(logits_BL.detach(), losses_B.detach(), task_B, label_B, step)
            total += float(loss.detach()) * len(chosen_B)
            advance(1 / len(batches))
        return total / len(rows)

    def _learn_policies(self, logits_BL: Tensor, losses_B: Tensor, task_B: Tensor, label_B: Tensor, step: int) -> None:
        assert self._policies is not None
        assert self._method is not None
        if self._method.reward == "correct":
            rewards_B = torch.where(logits_BL.argmax(dim=1) == label_B, 1.0, -1.0)
        else:
            rewards_B = -losses_B
        # A row has a reward for its own task alone.
        observed_BT = functional.one_hot(task_B, len(self.tasks.names))
        seed = derived_seed(self.cell.seed, step, PLACEBO)
        self._policies.step(rewards_B.unsqueeze(1).expand_as(observed_BT), observed_BT, seed)

    @torch.no_grad()
    def accuracy(self, rows: TaskRows) -> dict[str, float]:
        """The share of right answers of each task."""
        self.network.eval()
        num_tasks = len(self.tasks.names)
        right_T = torch.zeros(num_tasks, dtype=torch.int64)
        for chosen_B in torch.split(torch.arange(len(rows)), TEST_BATCH):
            task_B = rows.task_R[chosen_B]
            images_BCHW = self.pixels.standardised(self.pixels.take_rows(rows, chosen_B))
            answer_B = self.network(images_BCHW, task_B.to(self.pixels.device)).argmax(dim=1).cpu()
            right_T += torch.bincount(task_B[answer_B == rows.label_R[chosen_B]], minlength=num_tasks)
        count_T = torch.bincount(rows.task_R, minlength=num_tasks)
        return dict(zip(self.tasks.names, (right_T / count_T).tolist(), strict=True))

    def perplexity(self) -> dict[str, float]:
        """Mean over tasks for each routed layer's policies."""
        found = self.network.policies()
        return {name: float(perplexities(policy.policy_TM, policy.kind).mean()) for name, policy in found.items()}

    def placebo_perplexity(self) -> dict[str, float]:
        """The same of each layer's placebo policies."""
        found = [] if self._policies is None else self._policies.placebo_perplexities()
        return dict(zip(self.network.policies(), found, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's state."""
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """State of the network and its optimizers for a checkpoint."""
        policies = {} if self._policies is None else self._policies.state_dict()
        return {"network": self.weights(), "optimizer": self._optimizer.state_dict(), "policies": policies}

    def restore(self, state: dict[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
        """Restore `state_dict()`. Returns the rest of the checkpoint."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._policies is not None:
            self._policies.load_state_dict(state["policies"])
        progress = Progress(**state["progress"])
        log.info("resuming %s after epoch %d", self.cell, progress.epoch)
        return progress, state["best"]


def _result(trainer: _Trainer, tasks: ImageTasks, progress: Progress) -> dict[str, Any]:
    chances = {
        layer: probabilities(policy.policy_TM.detach().double(), policy.kind).tolist()
        for layer, policy in trainer.network.policies().items()
    }
    return {
        "accuracy": trainer.accuracy(tasks.test),
        "validation_accuracy": progress.validation_accuracy,
        "test_accuracy": progress.test_accuracy,
        "train_loss": progress.train_loss,
        "chosen_epoch": progress.best_epoch,
        "parameters": trainer.num_parameters,
        "seconds": round(progress.seconds, 1),
        "perplexity": progress.perplexity,
        "placebo_perplexity": progress.placebo_perplexity,
        "policies": chances,
    }


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
