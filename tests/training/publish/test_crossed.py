"""A run with cross layers, published: it answers as it was trained, by features, by id and explained."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from model.scorer.scorer import Scorer
from tests.artifacts import TINY_NETWORK, TINY_REQUEST, publish_artifact
from tests.items import tiny_items, values_of, write_items
from tests.training_data import Stopped, assert_same_checkpoints, stop_at, training_file, write_feed
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.evaluate import evaluate
from training.evaluate.validation import predict
from training.inspect.inspect import inspect
from training.publish.catalogue import build_catalogue
from training.publish.export import export
from training.train import train

NETWORK = {
    "fusion": {"kind": "ml_mmoe", "levels": [8, 6], "num_experts": 3},
    "cross": {"layers": 2, "rank": 3},
    "tower": [4],
}


def test_a_run_resumes_and_its_version_answers_as_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_feed(tmp_path / "data", 600)
    path = training_file(tmp_path, network=NETWORK, checkpoint_seconds=1e-9)
    whole = train(TrainingConfig.load(path, [f"output={tmp_path}/whole"]), show=False)
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Stopped):
            train(TrainingConfig.load(path), show=False)
    run = train(TrainingConfig.load(path), show=False)
    assert_same_checkpoints(whole, run)
    drawn, learned = run.new_ranker().network, run.best_ranker().network
    for name, value in drawn.state_dict().items():
        assert not name.startswith("cross.") or not np.array_equal(value, learned.state_dict()[name]), name
    inspect(run)
    evaluate(run, "validation", replicates=0)
    scorer = Scorer.load(export(run, tmp_path / "models"))
    rows = read_splits(run.config.data, run.schema, ("validation",))["validation"].slice(0, 20)
    encoded = Rows.encode(run.schema, run.encoder, rows, columns_from_arrow(run.schema, rows), as_served=True)
    expected_N = expit(predict(run.best_ranker(), encoded)[:, 0])
    for number, row in enumerate(rows.to_pylist()):
        user = {name: row[name] for name in ("user_id", "history", "tab")}
        answers = scorer.score_values(user, {name: [row[name]] for name in ("video", "duration")}, 1)
        # float32 sums in another order.
        assert float(answers[0, 0]) == pytest.approx(float(expected_N[number]), abs=1e-5)


@pytest.mark.parametrize("cross", [{"layers": 1}, {"layers": 2, "rank": 3}], ids=str)
def test_items_by_id_are_answered_as_by_their_features(tmp_path: Path, cross: dict[str, int]) -> None:
    version = publish_artifact(tmp_path, network={**TINY_NETWORK, "cross": cross})
    items = tiny_items(30)
    build_catalogue(version, write_items(tmp_path / "items.parquet", items))
    scorer = Scorer.load(version)
    (generation,) = scorer.catalogue_generations()
    scorer.catalogue = scorer.open_catalogue(generation)
    rows = [5, 0, 29, 5, 7]
    named = scorer.name([f"item-{row}" for row in rows], {}, {})
    assert named is not None
    user = scorer.encoder.encode_request(TINY_REQUEST["user"])
    by_id = scorer.score(user, named).answers_NO
    columns = scorer.encoder.columns("candidate", values_of(items, rows), len(rows))
    described = scorer.encoder.encode("candidate", columns, len(rows), as_served=True)
    whole = scorer.score(user, described).answers_NO
    explained, _ = scorer.explain(user, described)
    # Sums of a catalogue are in bfloat16, if that changes no answer by more than half of COMPILED_TOLERANCE.
    np.testing.assert_allclose(by_id, whole, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(explained.answers_NO, whole, rtol=1e-6, atol=1e-6)
