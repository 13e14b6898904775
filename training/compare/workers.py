"""Jobs of a comparison, one after the other or in worker processes: train a cell, or answer its test split.

In: jobs. Out: an outcome for each, as it ends. A job that fails takes no other with it, nor does a worker that the
system kills. Workers are spawned, for torch's threads do not survive a fork, and end with their parent.
"""

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from training.compare.boosted_trees import train_trees, write_tree_predictions
from training.compare.experiment import Cell
from training.compare.predictions import prediction_file, write_predictions
from training.compare.tree_config import TreesConfig, kept_config
from training.config import SplitName, TrainingConfig
from training.distributed.processes import belong_to_parent
from training.run.run import CONFIG, SUMMARY, Run
from training.step.divergence import Diverged
from training.stopping import Terminated, end_on_signals
from training.train import train

# What workers get between SIGTERM and SIGKILL: less than a cluster gives the whole job (120 s).
_END_SECONDS = 100.0


@dataclass(frozen=True, slots=True)
class Job:
    """Trains a cell and answers its validation split, or (`split` test) answers the test split of a trained cell."""

    cell: Cell
    config: TrainingConfig
    split: SplitName


@dataclass(frozen=True, slots=True)
class Outcome:
    """End of a job. `fault` is None where all went well. A job that diverged would do so again."""

    cell: Cell
    seconds: float
    fault: str | None = None
    has_diverged: bool = False


def is_done(config: TrainingConfig, split: SplitName) -> bool:
    """True for a cell that is trained and has answered a split."""
    return (config.output / SUMMARY).exists() and prediction_file(config.output, split).exists()


def refuse_changed(configs: Mapping[Cell, TrainingConfig]) -> None:
    """Raise ValueError naming a cell whose folder has another run than the experiment's."""
    for cell, config in configs.items():
        if (config.output / CONFIG).exists() and kept_config(config.output) != config:
            raise ValueError(
                f"{config.output}: holds a run from which the experiment's {cell} differs; "
                "choose another output or delete the folder"
            )


def run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
    """Outcomes in the order in which jobs end, at most `processes` at once."""
    if processes == 1 or len(jobs) < 2:
        yield from map(_attempt, jobs)
        return
    waiting = deque(jobs)
    workers = [_Worker() for _ in range(min(processes, len(jobs)))]
    try:
        while True:
            for worker in workers:
                if worker.job is None and waiting:
                    worker.begin(waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                yield worker.outcome()
                if not worker.process.is_alive():
                    workers[workers.index(worker)] = _Worker()
    finally:
        for worker in workers:
            worker.process.terminate()  # a cell that trains saves its step first
        deadline = time.monotonic() + _END_SECONDS
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process that answers one job at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far_end = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(far_end,), daemon=True)
        self.process.start()
        # Held by the worker alone, so that its death is the end of the file here.
        far_end.close()
        self.job: Job | None = None
        self._started = 0.0

    def begin(self, job: Job) -> None:
        self.job = job
        self._started = time.monotonic()
        # A worker that died meanwhile is found when its outcome is read.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job)

    def outcome(self) -> Outcome:
        assert self.job is not None, "only a busy worker has an outcome"
        job, self.job = self.job, None
        try:
            outcome = self.connection.recv()
            assert isinstance(outcome, Outcome)
            return outcome
        except (EOFError, ConnectionError):
            self.process.join()
            fault = f"its process ended with exit code {self.process.exitcode} (out of memory?); run compare again"
            return Outcome(job.cell, time.monotonic() - self._started, fault)


def _serve(connection: Connection) -> None:
    belong_to_parent()
    end_on_signals()
    with contextlib.suppress(Terminated):
        _answer(connection)


def _answer(connection: Connection) -> None:
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_attempt(job))


def _attempt(job: Job) -> Outcome:
    started = time.monotonic()
    try:
        _work(job)
    except (ValueError, OSError, MemoryError) as error:
        fault = str(error) or type(error).__name__
        return Outcome(job.cell, time.monotonic() - started, fault, isinstance(error, Diverged))
    return Outcome(job.cell, time.monotonic() - started)


def _work(job: Job) -> None:
    is_trained = job.split == "test"
    if isinstance(job.config, TreesConfig):
        write_tree_predictions(Run.open(job.config.output) if is_trained else train_trees(job.config), job.split)
    else:
        write_predictions(Run.open(job.config.output) if is_trained else train(job.config, show=False), job.split)
