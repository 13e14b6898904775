"""experiments.yaml: what is accepted, and what is refused by place and rule."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from model.experiments.assignment import Experiments
from model.experiments.experiments_file import ExperimentsFile
from model.schema import FeedSchema

PATH = "models/feed/experiments.yaml"
BOLD: dict[str, Any] = {
    "name": "bold_likes",
    "layer": "ranking",
    "buckets": {"from": 0, "to": 2000},
    "start": "2026-12-01",
    "horizon": "24h",
    "realised": {"click": 1.0},
    "arms": {"control": {"weight": 1}, "treatment": {"weight": 1, "value_model": "discovery", "version": "canary"}},
}
FILE: dict[str, Any] = {
    "layers": {"ranking": {"salt": "2026-11", "unit": "user_id"}},
    "experiments": [BOLD],
    "holdout": {"layer": "ranking", "buckets": {"from": 9900, "to": 10000}, "since": "2026-01-01"},
}
SCHEMA = {
    "name": "feed",
    "features": [
        {"name": "user_id", "side": "user", "kind": "id", "buckets": 100, "dim": 4},
        {"name": "history", "side": "user", "kind": "id_list", "table": "item_id", "max_length": 5, "pooling": "mean"},
        {"name": "item_id", "side": "candidate", "kind": "id", "buckets": 100, "dim": 4},
    ],
    "tasks": [{"name": "click", "kind": "binary", "label": "is_click"}],
}


def _parsed(content: object) -> ExperimentsFile:
    return ExperimentsFile.from_bytes(yaml.safe_dump(content).encode(), PATH)


def _with(**changes: Any) -> dict[str, Any]:
    """The file with changes of its experiment."""
    return {**FILE, "experiments": [{**BOLD, **changes}]}


def _two(**changes: Any) -> dict[str, Any]:
    """The file with a second experiment in a layer of its own, and changes of that."""
    layers = {**FILE["layers"], "second": {"salt": "2026-12", "unit": "user_id"}}
    arms = {"control": {}, "treatment": {"policy": "diverse"}}
    other = {**BOLD, "name": "other", "layer": "second", "buckets": {"from": 0, "to": 10000}, "arms": arms, **changes}
    return {**FILE, "layers": layers, "experiments": [BOLD, other]}


def test_times_are_utc_and_durations_have_a_unit() -> None:
    zoned = _parsed(_with(start="2026-12-01T09:30:00+02:00", end="2026-12-15")).experiments[0]
    assert zoned.start == datetime(2026, 12, 1, 7, 30, tzinfo=UTC)
    assert zoned.end == datetime(2026, 12, 15, tzinfo=UTC)
    assert zoned.horizon == timedelta(days=1)
    # What PyYAML makes of times without quotes.
    bare = ExperimentsFile.from_bytes(
        yaml.safe_dump(_with(start="DAY")).replace("start: DAY", "start: 2026-12-01").encode(), PATH
    )
    assert bare.experiments[0].start == datetime(2026, 12, 1, tzinfo=UTC)


def test_experiments_of_two_layers_share_users_and_those_of_one_may_follow_each_other() -> None:
    assert len(_parsed(_two()).experiments) == 2
    after = {**BOLD, "name": "after", "start": "2026-12-20"}
    first = {**BOLD, "end": "2026-12-20"}
    assert len(_parsed({**FILE, "experiments": [first, after]}).experiments) == 2


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({**FILE, "layer": {}}, "unknown key 'layer'; did you mean 'layers'?"),
        (_with(buckets={"from": 2000, "to": 2000}), "buckets: from 2000 to 2000 has no bucket"),
        (_with(buckets={"from": 0, "to": 10001}), "buckets.to: Input should be less than or equal to 10000"),
        (_with(arms={}), "arms: an experiment has at least 2 arms, to be compared with each other; got 0"),
        (_with(arms={"control": {}, "treatment": None}), "arms.treatment"),
        (
            _with(arms={"control": {"weight": 0}, "treatment": {}}),
            "arms.control.weight: Input should be greater than 0",
        ),
        (_with(arms={"control": {"weight": 1e5}, "treatment": {}, "x": {"weight": 1e-3}}), "arm 'treatment' has less"),
        (_with(arms={"control": {}, "treatment": {"version": "newest"}}), "arms.treatment.version"),
        (_with(layer="rankin"), "no such layer, 'rankin'; did you mean 'ranking'?"),
        (_with(horizon="24"), "horizon: expected a whole number and its unit"),
        (_with(horizon="0s"), "bold_likes: horizon must be longer than 0"),
        (_with(realised={}), "realised"),
        (_with(start="soon"), "start: expected a day or a time"),
        (_with(end="2026-11-30"), "bold_likes: ends at 2026-11-30T00:00Z, which is not after its start"),
        (_with(name="holdout"), "'holdout' is the name of the holdout"),
        (_with(salt="2026-11"), "layer 'ranking' and experiment 'bold_likes' have one salt, '2026-11'"),
        (_with(salt="ünlaut"), "salt"),
        (
            _with(buckets={"from": 9000, "to": 9901}),
            "'bold_likes' and 'holdout' of one layer both have the buckets 9900",
        ),
        ({**FILE, "experiments": [BOLD, BOLD]}, "experiment 'bold_likes' is there twice"),
        (
            {**FILE, "experiments": [BOLD, {**BOLD, "name": "other", "buckets": {"from": 1999, "to": 4000}}]},
            "'bold_likes' and 'other' of one layer both have the buckets 1999 to 2000",
        ),
        (_two(arms={"control": {}, "treatment": {"value_model": "bold"}}), "both set value_model, and share users"),
        (_two(salt="bold_likes"), "experiment 'bold_likes' and experiment 'other' have one salt"),
        ({**FILE, "holdout": {**FILE["holdout"], "layer": "x"}}, "holdout: no such layer, 'x'; layers: ranking"),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(content: object, rule: str) -> None:
    with pytest.raises(ValueError, match=r"^models/feed/experiments\.yaml: ") as refused:
        _parsed(content)
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (
            {"layers": {"ranking": {"salt": "s", "unit": "user"}}},
            "unit: 'user' is no id of the user; did you mean 'user_id'",
        ),
        ({"layers": {"ranking": {"salt": "s", "unit": "history"}}}, "unit: 'history' is no id of the user"),
        ({"layers": {"ranking": {"salt": "s", "unit": "item_id"}}}, "unit: 'item_id' is no id of the user"),
        ({"experiments": [{**BOLD, "realised": {"like": 1}}]}, "bold_likes.realised: 'like' is no output of the model"),
        (
            {"experiments": [{**BOLD, "arms": {"control": {}, "treatment": {"value_model": "discover"}}}]},
            "bold_likes.arms.treatment: no value model 'discover'; did you mean 'discovery'?",
        ),
        (
            {"experiments": [{**BOLD, "arms": {"control": {}, "treatment": {"policy": "diverse"}}}]},
            "bold_likes.arms.treatment: no policy 'diverse'; there are: none",
        ),
        ({"holdout": {**FILE["holdout"], "realised": {"like": 1}}}, "holdout.realised: 'like' is no output"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(changes: dict[str, Any], rule: str) -> None:
    schema = FeedSchema.from_mapping(deepcopy(SCHEMA), "schema")
    names = {"value_model": ["default", "discovery"], "policy": []}
    Experiments(_parsed(FILE)).check(schema, None, names, PATH)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^models/feed/experiments\.yaml: ") as refused:
        Experiments(_parsed({**FILE, **changes})).check(schema, None, names, PATH)  # type: ignore[arg-type]
    assert rule in str(refused.value)


def test_the_feature_that_names_users_is_a_unit_though_no_model_reads_it() -> None:
    schema = FeedSchema.from_mapping(deepcopy(SCHEMA), "schema")
    keyed = _parsed({**FILE, "layers": {"ranking": {"salt": "s", "unit": "account"}}})
    Experiments(keyed).check(schema, "account", {}, PATH)
    with pytest.raises(ValueError, match="'account' is no id of the user"):
        Experiments(keyed).check(schema, None, {}, PATH)
