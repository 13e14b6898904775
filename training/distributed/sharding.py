"""Embedding tables over several processes: TorchRec's planner and DistributedModelParallel.

In: a collection on the meta device, and the configuration. Out: the same tables, each process with its rows, and the
plan, in words, in the run's folder (sharding_plan.txt). Gradients are added up over processes, not averaged: losses are
means over the global batch already.

Shapes: R rows of a table.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.embeddings.embeddings import Engine, torchrec_fault
from training.config import EmbeddingsConfig, TrainingConfig
from training.distributed.ranks import Ranks
from training.files import replace_file

log = logging.getLogger(__name__)

PLAN = "sharding_plan.txt"


def chosen_engine(config: TrainingConfig, ranks: Ranks) -> Engine:
    """TorchRec, or plain torch where no build of fbgemm fits. The choice is logged where it is not the usual one.
    Raises ValueError where the configured engine does not run."""
    wanted = config.embeddings.engine
    fault = torchrec_fault
    if fault is None and ranks.device.type == "cuda" and not _has_cuda_kernels():
        fault = "this build of fbgemm has no kernels for GPUs (requirements/fbgemm-gpu.txt names the one that has)"
    if wanted == "torchrec" and fault is not None:
        raise ValueError(f"embeddings.engine: torchrec does not run here: {fault}; use engine: torch")
    engine: Engine = "torch" if wanted == "torch" or fault is not None else "torchrec"
    if engine == "torch":
        log.warning("embedding tables by plain torch: %s", fault or "embeddings.engine: torch")
        if ranks.world > 1:
            raise ValueError(
                f"embeddings.engine: plain torch tables train in one process, and {ranks.world} were started"
                + (f"; torchrec does not run here: {fault}" if fault else "; use engine: torchrec")
            )
    return engine


def _has_cuda_kernels() -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("fbgemm::permute_2D_sparse_data", "CUDA"))


class Sharder:
    """Shards collections. `describe` is what the planner decided."""

    def __init__(self, config: TrainingConfig, ranks: Ranks) -> None:
        self._config = config.embeddings
        self._batch_size = -(-config.batch_size // ranks.world)
        self._ranks = ranks
        self._plans: list[str] = []

    def __call__(self, collection: nn.Module) -> nn.Module:
        """The tables of `collection` (on the meta device) over all processes, weights undefined."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchRec's words about its own internals
            for name in ("torchrec.distributed.planner.types", "torchrec.distributed.planner.storage_reservations"):
                logging.getLogger(name).setLevel(logging.ERROR)
            return self._shard(collection)

    def _shard(self, collection: nn.Module) -> nn.Module:
        from torchrec.distributed.comm_ops import set_gradient_division
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.distributed.model_parallel import DistributedModelParallel
        from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
        from torchrec.distributed.planner.types import ParameterConstraints

        class _Sharder(EmbeddingBagCollectionSharder):
            def sharding_types(self, compute_device_type: str) -> list[str]:
                # TorchRec 1.8 leaves row-wise out on CPUs, where it works all the same.
                return ["table_wise", "row_wise"]

        set_gradient_division(False)
        tables: Any = collection.embedding_bag_configs()  # type: ignore[operator]
        constraints = {
            table.name: ParameterConstraints(
                sharding_types=self.types(table.name, table.num_embeddings), compute_kernels=["fused"]
            )
            for table in tables
        }
        group = dist.group.WORLD
        assert group is not None
        whole = nn.Module()
        whole.collection = collection
        planner = EmbeddingShardingPlanner(
            topology=Topology(
                world_size=self._ranks.world,
                local_world_size=_processes_of_a_host(self._ranks.world),
                compute_device=self._ranks.device.type,
            ),
            batch_size=self._batch_size,
            constraints=constraints,
            debug=False,
        )
        sharders = [_Sharder()]
        plan = planner.collective_plan(whole, sharders, group)
        self._plans.append(str(plan))
        DistributedModelParallel(whole, device=self._ranks.device, plan=plan, sharders=sharders)
        return whole.collection

    def types(self, table: str, rows: int) -> list[str]:
        """The ways in which a table may be sharded. Raises ValueError where the configured one is impossible."""
        wanted = sharding_of(self._config, table)
        # A process without a row of a table that is sharded by rows is more than fbgemm takes.
        is_too_small = -(-rows // self._ranks.world) * (self._ranks.world - 1) >= rows > 0 and self._ranks.world > 1
        if wanted == "row_wise" and is_too_small:
            raise ValueError(
                f"embeddings: table '{table}' has {rows} rows, too few to shard by rows over {self._ranks.world} "
                "processes; use sharding: auto or table_wise for it"
            )
        if wanted == "auto":
            return ["table_wise"] if is_too_small else ["table_wise", "row_wise"]
        return [wanted]

    def write(self, folder: Path) -> None:
        """Log the plan and keep it in the run's folder, by process 0."""
        text = "\n".join([f"{self._ranks.world} processes", *self._plans]) + "\n"
        log.info("%s", text.rstrip())
        replace_file(folder / PLAN, (text.encode(),))


def local_parts(tensor: Any) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Parts that this process has of a tensor that may be sharded, with the place in it of each part's first
    element."""
    if hasattr(tensor, "local_shards"):
        for shard in tensor.local_shards():
            yield shard.tensor.detach(), tuple(shard.metadata.shard_offsets)
    else:
        yield tensor, (0,) * tensor.ndim


def local_rows(rows_R: Tensor, part: Tensor, first_row: int) -> Tensor:
    """Rows of a table that are in a part of it, counted from the part's first."""
    return rows_R[(rows_R >= first_row) & (rows_R < first_row + len(part))] - first_row


def sharding_of(config: EmbeddingsConfig, table: str) -> str:
    """Sharding of a table (or of a task's copy of it, table@task)."""
    own = config.tables.get(table.partition("@")[0])
    return config.sharding if own is None or own.sharding is None else own.sharding


def _processes_of_a_host(world: int) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world))


def new_sharder(config: TrainingConfig, ranks: Ranks) -> Sharder | None:
    """Sharder of the tables over several processes. It also puts fused tables on a GPU, for one process too."""
    return Sharder(config, ranks) if ranks.world > 1 or ranks.device.type == "cuda" else None
