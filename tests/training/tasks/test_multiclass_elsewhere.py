"""Tasks of several classes on ways that their own tests do not take: a stream, a resumption, a compiled package."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from tests.training.tasks.rated_feed import RATED, rated_log
from tests.training_data import Stopped, assert_same_state, saved_state, stop_at, training_file
from training.config import TrainingConfig
from training.publish import compile as compile_module
from training.publish.compile import compile_version
from training.publish.export import export
from training.run.run import LAST
from training.train import train


def config_of(folder: Path, **changes: object) -> TrainingConfig:
    if not (folder / "data").exists():
        rated_log(folder / "data", 600)
    return TrainingConfig.load(training_file(folder, schema=RATED, epochs=2, batch_size=32, **changes))


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    states = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        config = config_of(tmp_path / name, checkpoint_seconds=1e-6)
        config = config.model_copy(update={"data": config.data.model_copy(update={"read": read, "lanes": 1})})
        if name == "stopped":
            with monkeypatch.context() as patched:
                stop_at(patched, 7)
                with pytest.raises(Stopped):
                    train(config, show=False)
        train(config, show=False)
        states.append(saved_state(config.output / LAST))
    for state in states:
        state["progress"]["seconds"] = 0.0
    assert_same_state(states[0], states[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not there; compiling takes it")
def test_compiled_probabilities_are_those_of_torchscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trying out every kernel for products this small takes most of the time and changes nothing that is tested.
    monkeypatch.setitem(compile_module.SETTINGS, "max_autotune", False)
    version = export(train(config_of(tmp_path), show=False), tmp_path / "models")
    compile_version(version, None, even_if_slower=True)
    compiled, plain = Scorer.load(version, "compiled"), Scorer.load(version, "torchscript")
    golden = plain.example
    features = golden["candidates"]["features"]
    rows = len(golden["candidates"]["id"])
    got, expected = (one.score_values(golden["user"], features, rows) for one in (compiled, plain))
    np.testing.assert_allclose(got, expected, rtol=COMPILED_TOLERANCE, atol=COMPILED_TOLERANCE)
    rating = [plain.outputs.index(f"rating.{name}") for name in ("bad", "fair", "good")]
    # Sums of three float32 numbers.
    np.testing.assert_allclose(got[:, rating].sum(axis=1), 1.0, atol=1e-6)
