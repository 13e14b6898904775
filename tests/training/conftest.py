"""Shared by the tests of training/: one small run, trained once a session. Tests copy it before they change it."""

import pytest

from tests.training_data import training_file, write_feed
from training.config import TrainingConfig
from training.run.run import Run
from training.train import train


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on `feed_table`, three epochs, with a test split."""
    folder = tmp_path_factory.mktemp("finished")
    write_feed(folder / "data")
    return train(TrainingConfig.load(training_file(folder, epochs=3)), show=False)
