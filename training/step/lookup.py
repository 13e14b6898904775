"""Each step's batch with its rows of the embedding tables: looked up plainly, or through TorchRec's pipeline.

In: an epoch's batches. Out: (batch on the device, rows_BD attached to the tables), one a step.

Where tables are sharded, TorchRec's TrainPipelineSparseDist runs ahead of the training loop: while a step is under way
the next batch's ids are exchanged between processes, and the batch behind it is read and copied to the device. The
rows are the same, bit for bit, and a position in training is still that of the steps done: what is on its way when a
run stops is read again.

Shapes: B rows, D columns of the dense row.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from model.embeddings.embeddings import Embeddings
from training.config import EmbeddingsConfig
from training.data.device import ahead, on_device, record_stream
from training.data.rows import Batch
from training.distributed.ranks import Ranks

log = logging.getLogger(__name__)


class PlainLookup:
    """Looks a batch up when it is taken. On a GPU it has been copied ahead."""

    def __init__(self, embeddings: Embeddings, device: torch.device) -> None:
        self._embeddings = embeddings
        self._device = device
        self._batches: Iterator[Batch] = iter(())

    def start(self, batches: Iterator[Batch]) -> None:
        """Goes on with the batches of another epoch."""
        self._batches = ahead(batches, self._device)

    def next(self) -> tuple[Batch, Tensor]:
        """The next batch and its rows_BD. Tables must have their learning rates of the step by now."""
        batch = next(self._batches)
        return batch, self._embeddings(batch.request, batch.candidate)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the embeddings may be used for other batches, by all processes alike."""
        yield


class PipelinedLookup:
    """The same by TrainPipelineSparseDist, whose stages run ahead."""

    def __init__(self, embeddings: Embeddings, device: torch.device) -> None:
        from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
        from torchrec.streamable import Pipelineable

        Pipelineable.register(_Prepared)
        self._embeddings = embeddings
        self._batches: Iterator[_Prepared] = iter(())
        reads = _Reads(embeddings)
        # In evaluation mode the pipeline leaves the backward pass and the optimizers to its caller, who checks the loss
        # and saves a checkpoint before weights change.
        reads.training = False
        self._pipeline = TrainPipelineSparseDist(
            reads, None, device, custom_model_fwd=self._look_up, dmp_collection_sync_interval_batches=None
        )

    def start(self, batches: Iterator[Batch]) -> None:
        """Goes on with the batches of another epoch."""
        assert not self._pipeline.batches, "the epoch before has ended"
        self._batches = (_Prepared(batch, self._embeddings, []) for batch in batches)

    def next(self) -> tuple[Batch, Tensor]:
        """The next batch and its rows_BD. Tables must have their learning rates of the step by now."""
        return cast(tuple[Batch, Tensor], self._pipeline.progress(self._batches))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the embeddings may be used for other batches, by all processes alike."""
        self._pipeline.detach()
        yield
        # What is on its way stays so: its exchange is not started again.
        self._pipeline.attach(sparse_dist=False)

    def _look_up(self, prepared: "_Prepared") -> tuple[None, tuple[Batch, Tensor]]:
        batch = prepared.batch
        return None, (batch, self._embeddings(batch.request, batch.candidate, prepared.jagged))


class _Prepared(NamedTuple):
    """A batch in the pipeline, and, once it is on the device, what each collection reads of it."""

    batch: Batch
    embeddings: Embeddings
    jagged: list[Any]

    def to(self, device: torch.device, non_blocking: bool) -> "_Prepared":
        batch = on_device(self.batch, device)
        return _Prepared(batch, self.embeddings, self.embeddings.jagged(batch.request, batch.candidate))

    def record_stream(self, stream: torch.Stream) -> None:
        record_stream(self.batch, stream)
        for jagged in self.jagged:
            if jagged is not None:
                jagged.record_stream(stream)


class _Reads(nn.Module):
    """Reads of the sharded collections from a prepared batch: traced by the pipeline, never run."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__()
        places = _sharded(embeddings)
        self._places = places
        self.collections = nn.ModuleList([embeddings.collections()[place] for place in places])

    def forward(self, prepared: _Prepared) -> list[Any]:
        pairs = zip(self._places, self.collections, strict=True)
        return [collection(prepared.jagged[place]) for place, collection in pairs]


def _sharded(embeddings: Embeddings) -> list[int]:
    """The places of the sharded ones among the collections."""
    from torchrec.distributed.types import ShardedModule

    return [place for place, made in enumerate(embeddings.collections()) if isinstance(made, ShardedModule)]


def new_lookup(embeddings: Embeddings, config: EmbeddingsConfig, ranks: Ranks) -> PlainLookup | PipelinedLookup:
    """The pipeline where tables are sharded. The log says which it is, and why."""
    if embeddings.engine == "torch" or not _sharded(embeddings):
        log.info("plain steps: no table is sharded")
    elif embeddings.id_maps.maps:
        log.info("plain steps: between two steps an id of a table with slots may take another's row")
    elif not config.pipeline:
        log.info("plain steps: embeddings.pipeline: false")
    else:
        log.info("pipelined steps: a batch's ids are exchanged during the step before (TrainPipelineSparseDist)")
        return PipelinedLookup(embeddings, ranks.device)
    return PlainLookup(embeddings, ranks.device)
