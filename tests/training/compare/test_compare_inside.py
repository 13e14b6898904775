"""A comparison's view over training and inside its networks: numbers against the runs' own logs, and what may fail."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from tests.training_data import training_file, write_feed
from training.compare import inside, over_training
from training.compare.document import Image, Table
from training.compare.experiment import Cell
from training.compare.inside_plots import plot_inside_over_training, plot_over_training, plot_policy_likeness
from training.compare.over_training import during_training
from training.compare.runner import compare, load
from training.run.run import LOG, Run

Json = dict[str, Any]
POINTS = 6
NETWORKS: list[Json] = [
    {"name": "bottom", "fusion": {"kind": "shared_bottom", "levels": [8]}},
    {
        "name": "adatt",
        "fusion": {"kind": "adatt_sp", "levels": [8], "experts_per_task": 1},
        "set": {"balancing": {"kind": "gradnorm"}},
    },
    {
        "name": "routed",
        "fusion": {"kind": "learned_routing", "levels": [8, 4], "num_modules": 2, "reward": "log_likelihood"},
    },
]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison of three networks with two seeds, two epochs of three points."""
    folder = tmp_path_factory.mktemp("inside")
    write_feed(folder / "data", 600)
    content = {
        "name": "tiny",
        "datasets": [{"name": "clips", "config": str(training_file(folder, epochs=2))}],
        "networks": NETWORKS,
        "set": {"evaluations_per_epoch": 3, "early_stopping": None},
        "seeds": 2,
        "baseline": "bottom",
        "output": str(folder / "out"),
        "replicates": 100,
        "metrics": ["auc", "normalized_entropy", "mse"],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    compare(load(folder / "experiment.yaml", {}))
    return folder


def dataset_of(folder: Path) -> Json:
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return dict(results["datasets"]["clips"])


def log_of(folder: Path, network: str, seed: int) -> list[dict[str, str]]:
    with (folder / "out" / "clips" / network / f"seed-{seed}" / LOG).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def runs_of(folder: Path) -> dict[Cell, Run]:
    return {
        Cell("clips", network["name"], seed): Run.open(folder / "out" / "clips" / network["name"] / f"seed-{seed}")
        for network in NETWORKS
        for seed in (0, 1)
    }


@pytest.mark.parametrize("task", ["click", "like", "watch", "mean"])
def test_differences_are_those_of_the_logs_paired_by_seed(compared: Path, task: str) -> None:
    during = dataset_of(compared)["during_training"]
    tasks = ["click", "like", "watch"] if task == "mean" else [task]
    assert len(during["points"]) == POINTS
    for position, point in enumerate(during["points"]):
        lines = {name: [log_of(compared, name, seed)[position] for seed in (0, 1)] for name in ("bottom", "adatt")}
        assert [float(line["rows"]) for line in lines["bottom"]] == [point["rows"]] * 2
        assert point["passes"] == pytest.approx((position + 1) / 3)
        values = {
            name: np.array([np.mean([float(line[f"validation_{one}"]) for one in tasks]) for line in of_name])
            for name, of_name in lines.items()
        }
        entry = during["tasks"][task]["adatt"][position]
        assert list(entry["values"].values()) == pytest.approx(values["adatt"].tolist(), rel=1e-12)
        differences = values["adatt"] - values["bottom"]
        percent = 100 * differences.mean() / values["bottom"].mean()
        half = 100 * stats.sem(differences) * stats.t.ppf(0.975, 1) / values["bottom"].mean()
        found = entry["against_baseline"]
        assert found["seeds"] == 2
        assert found["percent"] == pytest.approx(percent, rel=1e-9)
        assert found["percent_high"] - found["percent"] == pytest.approx(half, rel=1e-9)
        assert "against_baseline" not in during["tasks"][task]["bottom"][position]


def test_means_over_seeds_of_gates_policies_and_weights(compared: Path) -> None:
    found = dataset_of(compared)["during_training"]["inside"]
    assert {name: list(by_network) for name, by_network in found.items()} == {
        "gate_entropy_level_1": ["adatt"],
        "experts_used_level_1": ["adatt"],
        "balancing_weight_click": ["adatt"],
        "balancing_weight_like": ["adatt"],
        "balancing_weight_watch": ["adatt"],
        "policy_perplexity_layer_0": ["routed"],
        "policy_perplexity_layer_1": ["routed"],
        "placebo_perplexity_layer_0": ["routed"],
        "placebo_perplexity_layer_1": ["routed"],
    }
    logs = [log_of(compared, "adatt", seed) for seed in (0, 1)]
    expected = [np.mean([float(lines[i]["gate_entropy_level_1"]) for lines in logs]) for i in range(POINTS)]
    assert found["gate_entropy_level_1"]["adatt"] == pytest.approx(expected, rel=1e-12)


def test_tables_name_rows_and_end_with_the_test_split(compared: Path) -> None:
    dataset = dataset_of(compared)
    blocks = list(over_training.blocks(dataset, "bottom"))
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [table.head[0] for table in tables] == ["click", "like", "watch", "mean over tasks"]
    last = dataset["during_training"]["points"][-1]["rows"]
    # Two epochs of the training split.
    assert last == 2 * runs_of(compared)[Cell("clips", "bottom", 0)].summary()["rows"]["train"]
    assert tables[0].head[-2:] == [f"{last:,} rows", "test"]
    test_entry = dataset["tables"]["test"]["normalized_entropy"]["click"]["adatt"]["against_baseline"]
    assert tables[0].rows[1][0] == "adatt"
    assert tables[0].rows[1][-1].startswith(f"{test_entry['percent']:+.3f} +- ")
    # The mean of NE and of squared errors has no table on the test split.
    assert tables[-1].head[-1] == f"{last:,} rows"
    assert any(isinstance(block, Image) for block in blocks)


def test_a_run_that_stopped_early_is_compared_as_far_as_it_came(compared: Path, tmp_path: Path) -> None:
    runs = runs_of(compared)
    short = Cell("clips", "adatt", 1)
    shutil.copytree(runs[short].path, tmp_path / "short")
    lines = (tmp_path / "short" / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "short" / LOG).write_text("".join(lines[:4]), encoding="utf-8")
    during = during_training("bottom", {**runs, short: Run.open(tmp_path / "short")})
    assert during is not None
    seeds = [entry["against_baseline"]["seeds"] for entry in during["tasks"]["click"]["adatt"]]
    assert seeds == [2, 2, 2, 1, 1, 1]
    last = during["tasks"]["click"]["adatt"][-1]["against_baseline"]
    assert last["percent_low"] is None
    # With it as the baseline's only seed, the points that it did not reach are no points of comparison.
    others = {cell: run for cell, run in runs.items() if cell.network == "bottom"}
    during = during_training("adatt", {**others, short: Run.open(tmp_path / "short")})
    dataset = dataset_of(compared) | {"during_training": during}
    table = next(block for block in over_training.blocks(dataset, "adatt") if isinstance(block, Table))
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert [cell == "-" for cell in rows["bottom"][:POINTS]] == [False, False, False, True, True, True]
    assert rows["adatt"][3:POINTS] == ["-"] * 3
    (tmp_path / "short" / LOG).unlink()
    alone: Mapping[Cell, Run] = {short: Run.open(tmp_path / "short")}
    assert during_training("bottom", alone) is None, "a cell without a log has no points"


def test_logs_without_rows_are_counted_by_epochs(compared: Path, tmp_path: Path) -> None:
    cell = Cell("clips", "bottom", 0)
    run = runs_of(compared)[cell]
    shutil.copytree(run.path, tmp_path / "old")
    lines = log_of(compared, "bottom", 0)[2::3]
    with (tmp_path / "old" / LOG).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [name for name in lines[0] if name != "rows"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    config = json.loads((tmp_path / "old" / "config.json").read_text(encoding="utf-8"))
    del config["evaluations_per_epoch"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    during = during_training("bottom", {cell: Run.open(tmp_path / "old")})
    assert during is not None
    assert [point["rows"] for point in during["points"]] == [float(line["rows"]) for line in lines]


# Inside


def test_the_report_shows_the_first_seed_of_every_network(compared: Path) -> None:
    found = dataset_of(compared)["inside"]
    assert found["failures"] == {}
    assert {name: entry["seed"] for name, entry in found["networks"].items()} == {"bottom": 0, "adatt": 0, "routed": 0}
    kept = json.loads((compared / "out/clips/adatt/seed-0/inside/inside.json").read_text(encoding="utf-8"))
    assert found["networks"]["adatt"]["expert_weights"] == kept["expert_weights"]
    assert list(found["policies"]) == ["routed"]
    assert list(found["policies"]["routed"]) == ["0", "1"]
    page = (compared / "out" / "report.html").read_text(encoding="utf-8")
    for what in (
        "adatt: expert weights",
        "routed: routing policies",
        "bottom: cosines of task gradients",
        "gates, policies and balancing weights during training",
        "policies, seed by seed",
        "difference from bottom during training",
    ):
        assert f'{what}" src="data:image/png' in page, what
    assert "No picture of" not in page


def test_a_second_report_reads_what_is_there(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **named: object) -> Json:
        raise AssertionError("measured again")

    before = dataset_of(compared)["inside"]
    monkeypatch.setattr(inside, "inspect", never)
    compare(load(compared / "experiment.yaml", {}), report_only=True)
    assert dataset_of(compared)["inside"] == before


def test_what_fails_inside_costs_no_report(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object, **named: object) -> Json:
        raise RuntimeError("no kernel for this")

    shutil.copytree(compared / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/clips/adatt/seed-0/inside")
    runs = {
        cell: Run.open(tmp_path / "out" / run.path.relative_to(compared / "out"))
        for cell, run in runs_of(compared).items()
    }
    monkeypatch.setattr(inside, "inspect", broken)
    found = inside.inspect_networks(tmp_path / "out", runs)
    assert found["failures"] == {"adatt": "RuntimeError: no kernel for this"}
    assert "looking inside" in caplog.text
    assert list(found["networks"]) == ["bottom", "routed"]
    dataset = dataset_of(compared) | {"inside": found}
    # Torn pictures too: they are shown as they are, or left out.
    (tmp_path / "out/clips/bottom/seed-0/inside/gradient_conflicts.png").unlink()
    blocks = list(inside.blocks(dataset, tmp_path / "out"))
    assert any("Looking inside adatt failed: RuntimeError" in str(block) for block in blocks)
    assert [block.text for block in blocks if isinstance(block, Image) and block.text.startswith("bottom")] == []


def test_nothing_is_shown_where_nobody_looked(compared: Path) -> None:
    dataset = dataset_of(compared) | {"inside": None, "during_training": None}
    assert list(inside.blocks(dataset, compared)) == []
    assert list(over_training.blocks(dataset, "bottom")) == []
    # Boosted trees have no points: where they are the baseline, nothing is compared with them.
    dataset["during_training"] = during_training("trees", runs_of(compared))
    assert list(over_training.blocks(dataset, "trees")) == []


def test_pictures_want_something_to_show(compared: Path) -> None:
    dataset = dataset_of(compared)
    during = dataset["during_training"]
    for png in (
        plot_over_training(during, "bottom"),
        plot_inside_over_training(during),
        plot_policy_likeness(dataset["inside"]["policies"]["routed"], "routed"),
    ):
        assert png is not None
        assert png.startswith(b"\x89PNG")
    alone = {**during, "inside": {}, "tasks": {"click": {"bottom": during["tasks"]["click"]["bottom"]}}}
    assert plot_over_training(alone, "bottom") is None
    assert plot_inside_over_training(alone) is None
