"""Reads a run's newest checkpoint in as many processes as there are, and writes it into another run's folder.

torchrun --nproc-per-node 2 -m tests.training.run.resaved RUN OUT
"""

import shutil
import sys
from pathlib import Path

from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.data.source import MemorySource
from training.distributed.ranks import joined
from training.run import checkpoints, state_file
from training.run.checkpoints import Checkpoints
from training.run.run import CONFIG, FITTED, SCHEMA, Run
from training.step.training import Training


def resave(folder: Path, out: Path) -> None:
    """Restore all state and save it in `out`, which becomes a run's folder."""
    with joined("cpu") as ranks:
        run = Run.open(folder)
        table = read_splits(run.config.data, run.schema, ("train",))["train"]
        columns = columns_from_arrow(run.schema, table)
        rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=False)
        source = MemorySource(rows, run.config.batch_size, run.config.seed, rank=ranks.rank, world=ranks.world)
        training = Training(run, source, ranks)
        about = {"schema": run.schema.name}
        newest = Checkpoints(folder, ranks, keep=2, about=about).newest()
        assert newest is not None
        state = state_file.load(newest / checkpoints.STATE)
        training.restore(newest, state)
        if ranks.is_first:
            out.mkdir()
            for name in (CONFIG, SCHEMA, FITTED):
                shutil.copy(folder / name, out / name)
        saved = Checkpoints(out, ranks, keep=2, about=about)
        saved.save(int(newest.name), {**training.state_dict(), "data": state["data"]}, training.tables(), is_best=True)
        saved.wait()


if __name__ == "__main__":
    resave(Path(sys.argv[1]), Path(sys.argv[2]))
