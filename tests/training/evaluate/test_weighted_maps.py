"""Maps of a run whose validation rows have weights: those of rows that are there as often as they weigh."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.training_data import feed_table, training_file
from training.config import TrainingConfig
from training.evaluate.calibration import calibrate
from training.evaluate.label_means import label_means
from training.run.run import Run
from training.train import train

ROWS = 12_000
TABLE = feed_table(ROWS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    _write(folder / "data", TABLE, np.ones(ROWS))
    return train(TrainingConfig.load(training_file(folder), ("data.weight=kept", "epochs=1")), show=False)


def _write(data: Path, table: pa.Table, weights: NDArray[Any]) -> None:
    pq.write_table(table.append_column("kept", pa.array(weights)), data / "all.parquet")


def test_a_weight_of_three_is_a_row_three_times(run: Run) -> None:
    data, ranker = Path(run.config.data.path), run.best_ranker()
    weights = np.random.default_rng(3).integers(0, 4, ROWS)
    _write(data, TABLE, weights)
    weighted, about = calibrate(run, ranker, "platt")
    copies = TABLE.take(np.repeat(np.arange(ROWS), weights))
    _write(data, copies, np.ones(len(copies)))
    repeated, about_copies = calibrate(run, ranker, "platt")
    assert weighted.tasks
    answers = np.linspace(0.01, 0.9, 50)
    for name, mapping in weighted.tasks.items():
        # The same sums in another order, and an optimum found to about this.
        np.testing.assert_allclose(mapping(answers), repeated.tasks[name](answers), rtol=1e-5)
        for part in ("before", "after"):
            own, other = (of["tasks"][name]["validation"][part] for of in (about, about_copies))
            assert own == pytest.approx(other, rel=1e-5)


def test_a_quantity_is_mapped_by_the_rows_that_weigh_something(run: Run) -> None:
    data, ranker = Path(run.config.data.path), run.best_ranker()
    is_kept = np.random.default_rng(4).random(ROWS) < 0.5
    _write(data, TABLE, np.where(is_kept, 2.0, 0.0))
    means, about = label_means(run, ranker, as_served=True, every_task=True)
    kept = TABLE.filter(pa.array(is_kept))
    _write(data, kept, np.ones(len(kept)))
    of_kept, about_kept = label_means(run, ranker, as_served=True, every_task=True)
    assert means
    for name, mapping in means.items():
        assert mapping.inputs == pytest.approx(of_kept[name].inputs)
        assert mapping.outputs == pytest.approx(of_kept[name].outputs)
        assert about[name] == pytest.approx(about_kept[name])
