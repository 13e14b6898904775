"""The processes that train together: started by torchrun, joined and left only here.

    torchrun --nproc-per-node 2 -m training train CONFIG

gloo carries CPU tensors, NCCL those on GPUs. Without torchrun there is one process and no group, and everything below
costs nothing. Process 0 alone writes and speaks. A value that decides what happens next is the same on every process.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from training.config import TrainingConfig
from training.distributed.processes import end_with_launcher

T = TypeVar("T")


class Ranks:
    """This process among those of the run: its number, how many there are, and its device."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank = rank
        self.world = world
        self.device = device

    @property
    def is_first(self) -> bool:
        """True in process 0, which writes and speaks."""
        return self.rank == 0

    @property
    def across(self) -> Callable[[Tensor], Tensor] | None:
        """`sum` where there are several processes."""
        return self.sum if self.world > 1 else None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place and returned, equal to the bit everywhere."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def share_flags(self, first: bool, anyone: bool) -> tuple[bool, bool]:
        """Process 0's value of one thing, which depends on its clock, and whether any process has another, in one
        exchange."""
        if self.world == 1:
            return first, anyone
        said = torch.tensor([float(first and self.is_first), float(anyone)], device=self.device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        of_first, of_anyone = said.tolist()
        return bool(of_first), bool(of_anyone)

    def first_does(self, what: Callable[[], T]) -> T:
        """The result of what process 0 alone does, on all. Where it raises ValueError or OSError, all do."""
        if self.world == 1:
            return what()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = what()
            except (ValueError, OSError) as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise ValueError(told[1])
        result: T = told[0]
        return result

    def gather(self, part: Any) -> list[Any]:
        """Every process's `part`, by number, on all."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part)
        return parts

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Add up the gradients of parameters that every process has a copy of, in one exchange. A parameter that no
        process has a gradient for keeps none."""
        if self.world == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        sums = self.sum(torch.cat([has, *flat]))
        heard = sums[: len(parameters)].tolist()
        parts = torch.split(sums[len(parameters) :], [p.numel() for p in parameters])
        for parameter, count, part in zip(parameters, heard, parts, strict=True):
            parameter.grad = part.view_as(parameter) if count else None


ALONE = Ranks(0, 1, torch.device("cpu"))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun has started. Raises ValueError where the device is not there, and where another
    process has ended midway."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda: torch sees no GPU here (torch.cuda.is_available() is false); use device: cpu, or a machine "
            "and a build of torch with CUDA"
        )
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(place)
    else:
        place = torch.device("cpu")
    if world == 1 and device == "cpu":
        yield ALONE
        return
    # TorchRec's own use of what torch renames, and its ShardedTensor: nothing a user of this project can act on.
    for words in ("`torch.distributed", "Please use DTensor instead"):
        warnings.filterwarnings("ignore", message=words, category=FutureWarning)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if world > 1:
        end_with_launcher()
        # torch 2.13 lets processes that torchrun has started again read in its store what the dead wrote there, and
        # wait for them for ever.
        store, _, _ = next(rendezvous("env://"))
        start = f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        again = dist.PrefixStore(start, store)  # type: ignore[attr-defined]  # torch documents stores, and exports none
        dist.init_process_group(backend, store=again, rank=rank, world_size=world)
    else:  # TorchRec trains on a GPU by way of a group, if only of one
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    if rank:
        for package in ("model", "training"):
            logging.getLogger(package).setLevel(logging.ERROR)
    try:
        yield Ranks(rank, world, place)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ValueError(
                f"process {rank} lost another process of the run ({str(error).splitlines()[0]}); what was saved is "
                "kept: start the run again to resume it (torchrun --max-restarts does so by itself)"
            ) from None
        raise
    finally:
        dist.destroy_process_group()


def refuse_across(config: TrainingConfig, ranks: Ranks) -> None:
    """Refuse what several processes would not compute as one does. Raises ValueError naming it."""
    if ranks.world == 1:
        return
    remedy = f"{ranks.world} processes were started; train it in one"
    if config.balancing.kind == "graddrop":
        raise ValueError(f"balancing: graddrop draws signs over the rows of a whole batch; {remedy}")
    if config.network.fusion.kind == "learned_routing":
        raise ValueError(f"network.fusion: learned_routing draws a route for every row of a whole batch; {remedy}")
    if config.initial_weights is not None:
        raise ValueError(f"initial_weights sets whole tables, and here they are sharded; {remedy}")
