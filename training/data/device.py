"""Batches on the device that trains: on a GPU copied ahead, beside the step before.

Shapes: B rows, T tasks.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from model.features.block import BlockTensors
from training.data.rows import Batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device. It is itself on the CPU. To a GPU it is copied from pinned memory beside what runs
    there."""
    if device.type == "cpu":
        return batch

    def moved(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    return Batch(
        BlockTensors(*map(moved, batch.request)),
        BlockTensors(*map(moved, batch.candidate)),
        moved(batch.targets_BT),
        moved(batch.observed_BT),
        None if batch.weights_B is None else moved(batch.weights_B),
        batch.numbers_B,
        None if batch.groups_B is None else moved(batch.groups_B),
    )


def record_stream(batch: Batch, stream: torch.Stream) -> None:
    """Keep the memory of a batch, which another stream has copied, until `stream` has done with it."""
    labels = (batch.targets_BT, batch.observed_BT, batch.weights_B, batch.groups_B)
    for tensor in (*batch.request, *batch.candidate, *labels):
        if tensor is not None:
            tensor.record_stream(stream)


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device. On a GPU the next one's copy is under way while a batch is used."""
    if device.type == "cpu":
        yield from batches
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = on_device(batch, device)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copies)
        record_stream(moved, torch.cuda.current_stream(device))
        waiting = moved
    if waiting is not None:
        yield waiting
