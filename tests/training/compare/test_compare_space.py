"""Spaces and storage of a search: what is refused, and which points there are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.training.compare.searches import BOTTOM, EXPERTS, PLE, RATE, Json, experiment_file
from tests.training_data import write_feed
from training.__main__ import main
from training.compare.experiment import Experiment
from training.compare.plans import plans
from training.compare.runner import load
from training.compare.space import Span, all_points, around
from training.compare.storage import described, opened, shared_storage
from training.config import TrainingConfig


def tuned(**space: Any) -> Json:
    return {"networks": [BOTTOM, {**PLE, "space": space}], "search": {"trials": 3, "seeds": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": [BOTTOM, {**PLE, "space": {}}]}, "search: there is nothing to choose"),
        ({"search": None}, "network 'ple' has a space; add `search:"),
        ({"search": {"trials": 0}}, "search.trials"),
        ({"search": {"seed": 3}}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"seeds": [10_001]}, "10001 is one of the search's"),
        (tuned(**{"network.fusion": []}), "space.network.fusion.choices"),
        (tuned(**{"network.fusion": [EXPERTS[0], EXPERTS[0]]}), "give each choice once"),
        (tuned(**{RATE: 0.1}), "expected a list of choices, or a range as {low: 0.001, high: 0.01, log: true}"),
        (tuned(**{RATE: {"low": 0.1, "high": 0.1}}), "low (0.1) must be below high (0.1)"),
        (tuned(**{RATE: {"low": 0, "high": 1, "log": True}}), "low (0) must be above 0 with log"),
        (tuned(**{RATE: {"low": 0.1, "high": 0.35, "step": 0.1}}), "a whole number of steps (0.1)"),
        (tuned(**{RATE: {"low": 1, "high": 2, "step": 1, "log": True}}), "step goes with neither log nor times"),
        (tuned(**{RATE: {"low": 1, "hihg": 2}}), "unknown key 'hihg'; did you mean 'high'"),
        (tuned(**{RATE: {"low": 1, "high": float("inf")}}), "finite"),
        (tuned(**{"optimizer.dense.learning_rat": [0.1]}), "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        (tuned(epoch={"low": 0.5, "high": 2, "times": True}), "unknown key 'epoch'; did you mean 'epochs'"),
        (tuned(**{"optimizer.schedule": {"low": 0.5, "high": 2, "times": True}}), "the files say constant"),
        (tuned(**{"network.fusion": [{"expert_per_task": 1}]}), "did you mean 'experts_per_task'"),
        (tuned(**{"network.fusion.experts_per_task": [1, [1, 1]]}), "for 3 tasks"),
        (tuned(**{"network.fusion": [{"kind": "mmoe"}]}), "'network.fusion.kind' is not the search's to choose"),
        (tuned(**{"data.path": ["a", "b"]}), "'data' is not the search's to choose"),
        (tuned(seed=[1, 2]), "'seed' is not the search's to choose"),
        ({"datasets": [{"name": "search", "config": "x"}]}, "dataset 'search'"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    tmp_path: Path, changes: Mapping[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(experiment_file(tmp_path, **changes))]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert not (tmp_path / "out").exists(), "nothing has run"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("sqlite://", "keeps nothing"),
        ("sqlite:////nowhere/at/all.db", "--storage /nowhere/at/all.db: cannot be used (unable to open"),
        ("what://user:open-sesame@host:7/db?password=open-sesame", "--storage what://host:7/db: cannot be used"),
        ("postgresql+nothing://user:open-sesame@host/db", "--storage postgresql+nothing://host/db: cannot be used"),
        ("postgresql://user:open-sesame@host:port/db", "not a database URL"),
    ],
)
def test_storage_that_cannot_be_used_is_named_without_its_password(
    tmp_path: Path, url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_feed(tmp_path / "data", 300)
    assert main(["compare", str(experiment_file(tmp_path)), "--storage", url]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "open-sesame" not in printed.err + printed.out


def test_storage_and_trials_need_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment_file(tmp_path, search=None, networks=[BOTTOM])
    for option in (["--trials", "3"], ["--storage", "sqlite:////tmp/x.db"]):
        assert main(["compare", str(file), *option]) == 2
        assert "has no search; add --search" in capsys.readouterr().err


def test_braces_in_a_folders_name_are_no_template(tmp_path: Path) -> None:
    url = shared_storage(f"sqlite:///{tmp_path}/a{{b}}.db")
    with opened(url):
        assert (tmp_path / "a{b}.db").exists()
    assert described(url) == f"--storage {tmp_path}/a{{b}}.db"


def test_points_of_a_space() -> None:
    space: dict[str, Span | tuple[Any, ...]] = {
        "a": (1, "x"),
        "b": Span(low=2, high=3),
        "c": Span(low=0.1, high=0.3, step=0.1),
    }
    points = all_points(space, 12)
    assert points == [{"a": a, "b": b, "c": c} for a in (1, "x") for b in (2, 3) for c in (0.1, 0.2, 0.3)]
    assert all_points(space, 11) is None
    assert all_points({"a": (1,), "b": Span(low=0.5, high=1)}, 1000) is None
    # Counted, not listed.
    assert all_points({"a": Span(low=1, high=10**15)}, 1000) is None


def test_times_multiplies_what_the_files_say() -> None:
    quarter = Span(low=0.25, high=4, log=True, times=True)
    found = around({"a.b": quarter, "n": quarter}, {"a": {"b": 0.02}, "n": 64})
    assert found == {"a.b": Span(low=0.005, high=0.08, log=True), "n": Span(low=16, high=256, log=True)}


def test_search_without_a_block_tunes_both_learning_rates_around_the_files(tmp_path: Path) -> None:
    experiment = load(experiment_file(tmp_path, search=None, networks=[BOTTOM]), {}, tune=True, trials=4)
    (plan,) = plans(experiment)
    assert plan.trials == 4
    base = TrainingConfig.load(tmp_path / "training.yaml")
    for part, rate in (("tables", base.optimizer.tables.learning_rate), ("dense", base.optimizer.dense.learning_rate)):
        key = f"optimizer.{part}.learning_rate"
        assert plan.space[key] == Span(low=rate / 4, high=rate * 4, log=True)
        assert plan.points[0][key] == rate


def test_networks_space_comes_before_the_shared_one(tmp_path: Path) -> None:
    networks = [BOTTOM, {**PLE, "space": {RATE: [0.5], "network.fusion": EXPERTS}}]
    shared = {"trials": 9, "space": {RATE: [0.1, 0.2, 0.3], "batch_size": {"low": 32, "high": 64, "step": 32}}}
    experiment = Experiment.from_yaml(experiment_file(tmp_path, networks=networks, search=shared))
    bottom, ple = plans(experiment)
    assert bottom.points == tuple({RATE: rate, "batch_size": size} for rate in (0.1, 0.2, 0.3) for size in (32, 64))
    assert ple.points == tuple(
        {RATE: 0.5, "batch_size": size, "network.fusion": fusion} for size in (32, 64) for fusion in EXPERTS
    )
    config = experiment.config(ple.cell(10_000, 0), ple.points[-1])
    assert (config.optimizer.dense.learning_rate, config.batch_size) == (0.5, 64)
    assert config.network.fusion.model_dump()["experts_per_task"] == 2
