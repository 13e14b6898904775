"""Experiment files: what is refused before anything runs, and what a cell is trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.cross_layers import CrossConfig
from model.ranker import Network, row_width
from tests.training_data import training_file, write_feed
from training.__main__ import main
from training.compare.cautions import SIZE_RATIO
from training.compare.experiment import Cell, Experiment
from training.compare.plans import plans

Entry = dict[str, Any]

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))
BOTTOM: Entry = {"name": "bottom", "fusion": {"kind": "shared_bottom", "levels": [8]}}
ADATT: Entry = {"name": "adatt", "fusion": {"kind": "adatt_sp", "levels": [8]}}
ROUTED: Entry = {"name": "routed", "fusion": {"kind": "fixed_random_routing", "levels": [8], "num_modules": 3}}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "datasets": [{"name": "clips", "config": str(training_file(folder))}],
        "networks": [BOTTOM, ADATT],
        "seeds": 2,
        "baseline": "bottom",
        "output": str(folder / "out"),
        **changes,
    }


def checked(folder: Path, **changes: Any) -> Experiment:
    experiment = Experiment.from_mapping(content(folder, **changes), "tiny.yaml")
    experiment.configs()
    return experiment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": [{"name": "x", "fusion": {"kind": "adat", "levels": [8]}}]}, "did you mean 'adatt'"),
        ({"networks": [BOTTOM, BOTTOM]}, "network 'bottom' is given twice"),
        ({"networks": [BOTTOM, {**ADATT, "fusion": {**ADATT["fusion"], "experts_per_task": [1, 2]}}]}, "for 3 tasks"),
        ({"networks": [{**BOTTOM, "name": "../up"}], "baseline": "../up"}, "networks.0.name"),
        ({"baseline": "botom"}, "baseline: unknown network 'botom'; did you mean 'bottom'"),
        ({"metrics": ["acu"]}, "unknown metric 'acu'; did you mean 'auc'"),
        ({"verdict": {"metric": "f1"}}, "unknown metric 'f1'; valid metrics: auc"),
        ({"verdict": {"metric": "calibration_ratio"}}, "has no better direction"),
        ({"metrics": ["mse"]}, "'auc' is not among metrics"),
        ({"verdict": {"tasks": ["clik"]}}, "unknown task 'clik'; did you mean 'click'"),
        ({"verdict": {"tasks": ["watch"]}}, "'watch' is no binary task, so it has no auc"),
        ({"seeds": 0}, "got 0; give the number of seeds"),
        ({"seeds": [1, 1]}, "give each seed once"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": True}, "true or false"),
        ({"set": {"seed": 3}}, "'seed' is decided by the experiment"),
        ({"set": {"network": {"tower": [3]}}}, "'network.tower' is decided by the experiment"),
        ({"set": {"epoch": 3}}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"set": {"data.split.test": None}}, "data.split.test is not given"),
        ({"processes": 0}, "processes"),
        ({"replicates": 10}, "replicates"),
        ({"outptu": "x"}, "unknown key 'outptu'; did you mean 'output'"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below, as plain text
        checked(tmp_path, **changes)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists(), "nothing has run"


@pytest.mark.parametrize("text", ["", "[]", "a: [", "name: 5\nnetworks: {}", "datasets: [{name: x, config: absent}]"])
def test_hostile_files_end_in_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["compare", str(file), "--seeds", "1"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "experiment.yaml" in printed


def test_absent_training_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml"):
        checked(tmp_path, datasets=[{"name": "clips", "config": "absent.yaml"}])


def test_cells_come_seed_by_seed_each_with_its_own_folder(tmp_path: Path) -> None:
    experiment = checked(tmp_path, seeds=[4, 2])
    cells = experiment.cells()
    assert cells == [Cell("clips", network, seed) for seed in (4, 2) for network in ("bottom", "adatt")]
    assert len({experiment.folder(cell) for cell in cells}) == 4


def test_settings_nearest_to_the_network_win(tmp_path: Path) -> None:
    experiment = checked(
        tmp_path,
        set={"epochs": 7, "batch_size": 32, "optimizer": {"dense": {"learning_rate": 0.5}}},
        datasets=[{"name": "clips", "config": str(training_file(tmp_path)), "set": {"epochs": 5, "batch_size": 16}}],
        networks=[{**BOTTOM, "set": {"epochs": 3}, "tower": [5], "cross": {"layers": 2}}, ADATT],
    )
    bottom, adatt = (experiment.config(Cell("clips", name, 1)) for name in ("bottom", "adatt"))
    assert (bottom.epochs, bottom.batch_size, bottom.network.tower) == (3, 16, (5,))
    assert (bottom.network.cross, adatt.network.cross) == (CrossConfig(layers=2), None)
    assert (adatt.epochs, adatt.batch_size, adatt.network.tower) == (5, 16, (4,))
    assert bottom.optimizer.dense.learning_rate == 0.5
    assert (bottom.seed, bottom.threads) == (1, 1)


def test_routes_are_drawn_anew_with_every_seed_unless_the_file_fixes_them(tmp_path: Path) -> None:
    fixed = {"name": "fixed", "fusion": {**ROUTED["fusion"], "seed": 9}}
    experiment = checked(tmp_path, networks=[BOTTOM, ROUTED, fixed])
    seeds = {
        name: [experiment.config(Cell("clips", name, seed)).network.fusion.model_dump()["seed"] for seed in (0, 1)]
        for name in ("routed", "fixed")
    }
    assert seeds == {"routed": [0, 1], "fixed": [9, 9]}


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_committed_experiments_hold(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    experiment = Experiment.from_yaml(file)
    assert experiment.name == file.stem
    assert len(experiment.configs()) == len(experiment.cells())
    assert len(plans(experiment)) == sum(bool(experiment.space_of(network)) for network in experiment.networks)


def dense_parameters(experiment: Experiment, network: str) -> int:
    """The size of a network's first cell, built for the dense row of its feed."""
    cell = next(cell for cell in experiment.cells() if cell.network == network)
    config = experiment.config(cell)
    schema = config.feed_schema()
    width = row_width(schema, "request") + row_width(schema, "candidate")
    copies = len(schema.tasks) if config.network.has_own_embeddings else 1
    built = Network(config.network, width * copies, schema.output_counts, schema.given)
    return sum(weight.numel() for weight in built.parameters())


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_committed_experiments_have_a_row_of_the_largest_network_s_size(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    experiment = Experiment.from_yaml(file)
    networks = [network.name for network in experiment.networks if network.fusion is not None]
    sizes = {name: dense_parameters(experiment, name) for name in networks}
    matched = [name for name in networks if name == experiment.baseline or name.endswith("same_size")]
    assert any(max(sizes.values()) <= SIZE_RATIO * sizes[name] for name in matched), sizes


def test_file_of_a_user(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 300)
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(content(tmp_path)), encoding="utf-8")
    assert Experiment.from_yaml(file).network_names == ["bottom", "adatt"]
