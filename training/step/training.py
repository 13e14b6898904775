"""One step of training, and all that it changes.

In: the batches of an epoch, with their rows of the tables. Out: changed weights, and each task's loss. What a step
changes is saved and restored here, so that a resumed run goes on bit for bit.

Shapes: B rows, T tasks, J tasks with a base logit, O outputs, D columns of the dense row.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.data.rows import Batch
from training.data.source import Source
from training.distributed.ranks import Ranks
from training.fit.negative_sampling import logit_offsets
from training.run import table_files
from training.run.history import Progress
from training.run.run import MOMENTA, SLOTS, WEIGHTS, Run
from training.step.balancing.losses import Compared, TaskLosses
from training.step.divergence import Diverged, diverged
from training.step.lookup import new_lookup
from training.step.optimizers import Optimizers
from training.step.precision import autocast
from training.step.routing import PolicyLearner
from training.step.slots import ManagedIds


class StepLosses(NamedTuple):
    """Losses of one batch: each task's, and their balanced total."""

    losses_T: Tensor
    total: Tensor


class Training:
    """All that a step changes: how it steps, is saved and restored."""

    def __init__(self, run: Run, source: Source, ranks: Ranks) -> None:
        self.run = run
        self._ranks = ranks
        self._steps_per_epoch = source.steps
        config = run.config
        torch.manual_seed(config.seed)
        self.ranker = run.new_ranker(ranks)
        offsets = logit_offsets(run.schema, config.data.negative_sampling)
        self.losses = TaskLosses(run.schema, ranks.across, offsets).to(ranks.device)
        self.balancing = config.balancing.build(self.losses, config.seed).to(ranks.device)
        self.optimizers = Optimizers(
            self.ranker,
            config.optimizer,
            source.steps * config.epochs,
            self.balancing,
            rate_factor=1.0 if config.init_from is None else config.init_from.rate_factor,
        )
        self.managed_ids = ManagedIds(self.ranker.embeddings, config.embeddings.slots, ranks)
        self.policies = PolicyLearner(self.ranker.network.fusion, run.schema, config.seed)
        self.lookup = new_lookup(self.ranker.embeddings, config.embeddings, ranks)
        self.progress = Progress()
        self._loss_sums_T = torch.zeros(len(run.schema.tasks), dtype=torch.float64)

    @property
    def steps_done(self) -> int:
        """Steps since the run began."""
        return self.progress.epoch * self._steps_per_epoch + self.progress.step_in_epoch

    def take_mean_losses(self, steps: int) -> Tensor:
        """means_T of the losses of the last `steps`, whose sums start again from 0."""
        means_T = self._loss_sums_T / steps
        self._loss_sums_T.zero_()
        return means_T

    def step(self, before_update: Callable[[], None]) -> StepLosses:
        """Train on the next batch of `lookup`. `before_update` is called once these weights have given a finite loss,
        before they change. Raises Diverged."""
        epoch, number = self.progress.epoch, self.steps_done
        place = f"epoch {epoch + 1}, step {self.progress.step_in_epoch + 1}"
        self.optimizers.start_step(number)
        self.policies.start_step(epoch, number)
        batch, rows_BD = self.lookup.next()
        rows_BD = self.optimizers.clipped(rows_BD, self._ranks.across)
        if not rows_BD.requires_grad:  # a feed of numbers alone: methods on gradients still read the row
            rows_BD.requires_grad_()
        with autocast(self.run.config.precision, self._ranks.device):
            logits_BO, bases_BJ = self.ranker.network.with_bases(rows_BD)
        logits_BO, compared = logits_BO.float(), None
        if bases_BJ is not None and batch.groups_B is not None:
            compared = Compared(bases_BJ.float(), batch.groups_B)
        losses_T = self.losses(logits_BO, batch.targets_BT, batch.observed_BT, batch.weights_B, compared)
        total = self.balancing.total(losses_T)
        if not torch.isfinite(total):
            raise self._diverged(batch, f"the loss is not finite in {place}")
        before_update()
        self.optimizers.zero_grad()
        try:
            self.balancing.backward(losses_T, total, rows_BD, self.ranker.network, number)
        except FloatingPointError as error:
            raise self._diverged(batch, f"{error} in {place}") from None
        self.optimizers.step(self._ranks.sum_gradients)
        self.managed_ids.after_step(number, batch, self.optimizers)
        self.balancing.after_step()
        self.policies.learn(logits_BO, batch.targets_BT, batch.observed_BT, batch.weights_B)
        self._loss_sums_T += losses_T.detach().cpu()
        self.progress.step_in_epoch += 1
        return StepLosses(losses_T.detach(), total.detach())

    def _diverged(self, batch: Batch, what: str) -> Diverged:
        with self.lookup.paused():
            return diverged(self.run, self.ranker, batch, "train", what)

    def state_dict(self) -> dict[str, Any]:
        """Copies that every process has."""
        self.progress.loss_sums = self._loss_sums_T.tolist()
        return {
            "network": self.ranker.network.state_dict(),
            "balancing": self.balancing.state_dict(),
            "policies": self.policies.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            SLOTS: self.managed_ids.state_dict(),
            "random": torch.get_rng_state(),
            "progress": asdict(self.progress),
        }

    def tables(self) -> dict[str, Any]:
        """Tables and their optimizers' states, sharded ones in part."""
        weights, momenta = self.ranker.embeddings.table_weights(), self.optimizers.momenta()
        return {f"{WEIGHTS}{name}": weight for name, weight in weights.items()} | {
            f"{MOMENTA}{name}": momentum for name, momentum in momenta.items()
        }

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Sets everything as it was when `state` and its folder were written."""
        self.ranker.network.load_state_dict(state["network"])
        table_files.read(folder, self.tables())
        self.balancing.load_state_dict(state["balancing"])
        self.policies.load_state_dict(state["policies"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.managed_ids.load_state_dict(state[SLOTS])
        torch.set_rng_state(state["random"])
        self.progress = Progress(**state["progress"])
        if self.progress.loss_sums:
            self._loss_sums_T.copy_(torch.tensor(self.progress.loss_sums, dtype=torch.float64))
