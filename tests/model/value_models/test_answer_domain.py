"""The range of a version's answers: as its artifact has it, and never left by any way of scoring."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.artifact.artifact import Artifact
from model.ranker import Network
from model.scorer.batch_scoring import score_requests
from model.scorer.scorer import Scorer
from model.value_models.answer_domain import AnswerDomain
from tests.artifacts import TINY_REQUEST, publish_artifact

UPPER = 1e4  # of tests/artifacts.py


def absurd(network: Network, _: dict[str, Tensor]) -> None:
    """Make the tower of play_time answer logits of hundreds, either way."""
    with torch.no_grad():
        for parameter in network.towers[2].parameters():
            parameter.mul_(300.0)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_artifact(tmp_path_factory.mktemp("models"), fill=absurd)


def test_the_range_is_the_artifacts(version: Path) -> None:
    scorer = Scorer.load(version)
    for domain in (scorer.domain, AnswerDomain.read(Artifact.open(version))):
        assert dict(domain.uppers) == {"click": 1.0, "like": 1.0, "play_time": UPPER}
        assert domain.schema == scorer.schema
        expected = scorer.golden_requests()["requests"][0]["expected"]
        np.testing.assert_allclose(domain.golden_NO, np.array(list(expected.values())).T, rtol=1e-6)


def test_no_way_of_scoring_leaves_it(version: Path) -> None:
    scorer = Scorer.load(version)
    rng = np.random.default_rng(0)
    rows = 200
    features = {
        "video_id": rng.integers(0, 100, rows).tolist(),
        "tag": ["x"] * rows,
        "topics": [[7]] * rows,
        "duration_ms": rng.lognormal(8, 4, rows).tolist(),
    }
    user = TINY_REQUEST["user"]
    request = scorer.encoder.request_columns(user)
    candidates = scorer.encoder.columns("candidate", features, rows)
    answers = [
        scorer.score_values(user, features, rows),
        scorer.explain(*scorer.encode(request, candidates, rows))[0].answers_NO,
        score_requests(scorer, request, 1, candidates, np.zeros(rows, np.int64)).answers_NO,
    ]
    for answers_NO in answers:
        play_time = answers_NO[:, 2]
        assert play_time.min() >= 0
        assert play_time.max() == UPPER, "the logits are beyond it"
