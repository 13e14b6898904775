"""`join --check`: rows answered by a published version pass, and a feature that was used otherwise is named."""

import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from model.calibration import Calibration
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.impression_lines import stamp
from tests.training.join.logs import START, logs, write
from training.join.check import check
from training.join.join import Settings, join
from training.join.plan import Plan
from training.publish.recalibrate import publish_generation


def publish_calibration(scorer: Scorer, intercept: float) -> Path:
    """A generation that moves the logit of a click."""
    maps = {"click": {"kind": "platt", "slope": 1.0, "intercept": intercept}}
    means = dict.fromkeys(scorer.outputs, 0.125)
    content = {"source": "test", "data_window": {}, "rows": 7, "tasks": {}, "means": means}
    return publish_generation(scorer, Calibration.from_mapping({"tasks": maps}, "test"), content, None)


def by_calibration(scorer: Scorer, generation: str | None) -> Scorer:
    """The version with a generation of its calibration."""
    scorer = Scorer.load(scorer.artifact.path)
    if generation is not None:
        scorer.take_calibration(scorer.open_calibration(scorer.calibration_generations()[int(generation) - 1]))
    return scorer


def answered(
    folder: Path, used: Callable[[dict[str, Any]], dict[str, Any]], calibrations: Sequence[str | None] = (None,)
) -> Plan:
    """Joined rows of requests that a version answered by the features that `used` makes of the logged ones, by one of
    `calibrations` after the other."""
    made = logs(40, 4, seed=31, hours=1)
    path = write(folder, made._replace(requests=[]))
    schema = FeedSchema.from_yaml(folder / "schema.yaml")
    first = made.requests[0]
    request = {"user": first["user"], "candidates": first["candidates"]}
    scorer = Scorer.load(publish_artifact(folder / "models", "feed", schema=schema, request=request))
    for intercept in range(1, len(calibrations)):
        publish_calibration(scorer, intercept)
    scorers = {calibration: by_calibration(scorer, calibration) for calibration in calibrations}
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(made.requests):
        candidates = line["candidates"]
        calibration = calibrations[number % len(calibrations)]
        scorer = scorers[calibration]
        answers_NO = scorer.score_values(line["user"], used(candidates["features"]), len(candidates["id"]))
        tasks = {output: answers_NO[:, place].tolist() for place, output in enumerate(scorer.outputs)}
        lines.append({**line, "model_version": scorer.version, "calibration": calibration, "tasks": tasks})
    events = [
        {"received": stamp(START + timedelta(hours=1)), "model": "feed", "request_id": line["request_id"],
         "id": one, "type": "shown", "time": line["time"], "position": 0}
        for line in lines for one in line["candidates"]["id"]
    ]  # fmt: skip
    write(folder, made._replace(requests=lines, events=events))
    plan = Plan.load(path)
    join(plan, Settings(now=START + timedelta(hours=4)))
    return plan


def test_rows_are_answered_again_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = answered(tmp_path, lambda features: features)
    checked = check(plan, tmp_path / "models" / "feed")
    assert checked.rows > 100
    assert (checked.differing, checked.left_out) == (0, {})
    (tmp_path / "models/feed/1").rename(tmp_path / "models/feed/2")
    assert "nothing was checked" not in caplog.text
    none = check(plan, tmp_path / "models" / "feed")
    assert "nothing was checked" in caplog.text
    assert none.rows == 0
    assert none.left_out == {f"version 1 is not in {tmp_path}/models/feed": checked.rows}


@pytest.mark.parametrize("name", ["item_id", "age"])
def test_a_feature_that_was_used_otherwise_is_named(tmp_path: Path, name: str) -> None:
    """The log has it, and the service answered without it."""
    plan = answered(tmp_path, lambda features: {**features, name: [None] * len(features[name])})
    with pytest.raises(ValueError, match=f"version 1: .* rows: feature '{name}' was used otherwise"):
        check(plan, tmp_path / "models" / "feed")


def test_a_recalibrated_version_answers_by_the_generation_that_did(tmp_path: Path) -> None:
    plan = answered(tmp_path, lambda features: features, (None, "1", "2"))
    family = tmp_path / "models" / "feed"
    checked = check(plan, family)
    assert checked.rows > 100
    assert (checked.differing, checked.left_out) == (0, {})
    generations = family / "derived/1/calibration"
    shutil.rmtree(generations / "2")
    left = check(plan, family)
    (reason, count), *others = left.left_out.items()
    assert not others
    assert reason == f"calibration 2 of version 1 is not in {family}"
    assert 0 < count < checked.rows
    assert left.rows == checked.rows - count
    # Another calibration in the place of the one that answered.
    shutil.rmtree(generations / "1")
    publish_calibration(Scorer.load(family / "1"), 2.5)
    with pytest.raises(ValueError, match=r"version 1, calibration 1: .* rows: no single feature explains it"):
        check(plan, family)
