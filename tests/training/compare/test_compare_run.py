"""Comparisons end to end on a small feed: every cell once, failures kept apart, a verdict only with enough seeds."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats
from sklearn.metrics import roc_auc_score

from tests.training_data import SCHEMA, feed_table, training_file, write_feed
from training.__main__ import main
from training.compare import predictions, workers
from training.compare.runner import compare, load
from training.config import TrainingConfig
from training.run.run import Run
from training.train import train

NETWORKS: list[dict[str, Any]] = [
    {"name": "bottom", "fusion": {"kind": "shared_bottom", "levels": [8]}},
    {"name": "adatt", "fusion": {"kind": "adatt_sp", "levels": [8], "experts_per_task": 1}},
]
METRICS = ["auc", "normalized_entropy", "gauc", "calibration_ratio", "mse"]
Json = dict[str, Any]


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    write_feed(tmp_path / "data", 600)
    return tmp_path


def experiment_file(folder: Path, *, schema: str = SCHEMA, **changes: Any) -> Path:
    config = training_file(folder, schema=schema, epochs=1)
    content = {
        "name": "tiny",
        "datasets": [{"name": "clips", "config": str(config)}],
        "networks": NETWORKS,
        "seeds": 2,
        "baseline": "bottom",
        "output": str(folder / "out"),
        "replicates": 100,
        "metrics": ["auc"],
        "inside": False,
        **changes,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def results_of(folder: Path) -> Json:
    return dict(json.loads((folder / "out" / "results.json").read_text(encoding="utf-8")))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were trained, in order."""
    names: list[str] = []

    def spy(config: TrainingConfig, *, show: bool) -> Run:
        names.append("/".join(config.output.parts[-2:]))
        return train(config, show=show)

    monkeypatch.setattr(workers, "train", spy)
    return names


def test_two_networks_and_two_seeds(feed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(experiment_file(feed, metrics=METRICS))]) == 0
    printed = capsys.readouterr()
    assert "training 4/4" in printed.err
    assert "refused" in printed.out
    results = results_of(feed)
    scoring = results["datasets"]["clips"]["scoring"]
    assert all(cost[count]["ms"] > 0 for cost in scoring["costs"].values() for count in ("100", "500"))
    assert scoring["costs"]["bottom"]["500"]["ratio"] == 1, "the baseline's"
    assert set(scoring["front"]) <= {"bottom", "adatt"}
    assert results["cells"].items() >= {"planned": 4, "finished": 4}.items()
    dataset = results["datasets"]["clips"]
    assert dataset["verdicts"]["adatt"]["verdict"] == "refused"
    assert "2 seeds; a verdict needs 5 or more" in dataset["verdicts"]["adatt"]["text"]

    # The day of the test split, measured by scikit-learn from the outputs that were kept.
    table = feed_table(600)
    clicks = table.column("is_click").to_numpy()[table.column("day").to_numpy() == 6]
    aucs: dict[str, list[float]] = {}
    for network in ("bottom", "adatt"):
        outputs = [np.load(feed / f"out/clips/{network}/seed-{s}/predictions-test.npz")["outputs_BO"] for s in (0, 1)]
        aucs[network] = [float(roc_auc_score(clicks, outputs_BO[:, 0])) for outputs_BO in outputs]
        entry = dataset["tables"]["test"]["auc"]["click"][network]
        # Both are exact counts of pairs, in float64.
        assert list(entry["values"].values()) == pytest.approx(aucs[network], abs=1e-12)
    found = dataset["tables"]["test"]["auc"]["click"]["adatt"]["against_baseline"]
    assert found["p"] == pytest.approx(stats.ttest_rel(aucs["adatt"], aucs["bottom"]).pvalue, rel=1e-9)
    means = {network: np.mean(values) for network, values in aucs.items()}
    assert found["percent"] == pytest.approx(100 * (means["adatt"] - means["bottom"]) / means["bottom"], rel=1e-9)
    assert dataset["tables"]["test"]["mse"]["watch"]["adatt"]["mean"] > 0


class _Page(HTMLParser):
    """Requests of a page to other hosts, and its images."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_page_is_self_contained_and_names_every_network(feed: Path) -> None:
    path = compare(load(experiment_file(feed), {"seeds": 1}))
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.tags >= {"style", "table", "img"}
    assert not page.tags & {"script", "link", "iframe"}
    images = [link for link in page.links if not link.startswith("#")]
    assert images
    assert all(link.startswith("data:image/png;base64,") for link in images)
    assert not re.search(r"https?://|@import|url\(", text)
    for name in ("bottom", "adatt", "click", "like", "watch"):
        assert name in text
    markdown = (feed / "out" / "results.md").read_text(encoding="utf-8")
    assert "how many would show a difference is not known from one seed" in markdown
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(pictures) == len(images)
    assert all((feed / "out" / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_more_seeds_train_the_new_cells_alone(feed: Path, trained: list[str]) -> None:
    file = experiment_file(feed)
    compare(load(file, {"seeds": 1}))
    assert trained == ["bottom/seed-0", "adatt/seed-0"]
    compare(load(file, {"seeds": 2}))
    assert trained[2:] == ["bottom/seed-1", "adatt/seed-1"]
    compare(load(file, {}))
    assert len(trained) == 4


def test_killed_comparison_goes_on_where_it_stood(
    feed: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(experiment_file(feed), {})

    def killed(config: TrainingConfig, *, show: bool) -> Run:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append("/".join(config.output.parts[-2:]))
        return train(config, show=show)

    with monkeypatch.context() as patched:
        patched.setattr(workers, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            compare(experiment)
    assert not (feed / "out" / "results.json").exists()
    assert not list((feed / "out").rglob("predictions-test.npz")), "the test split waits for the last cell"
    compare(experiment)
    assert trained == ["bottom/seed-0", "adatt/seed-0", "bottom/seed-1", "adatt/seed-1"]


def test_report_of_what_is_finished_trains_nothing(feed: Path, trained: list[str]) -> None:
    file = experiment_file(feed)
    compare(load(file, {"seeds": 1}))
    compare(load(file, {"seeds": 3}), report_only=True)
    assert len(trained) == 2
    assert results_of(feed)["cells"].items() >= {"planned": 6, "finished": 2}.items()
    assert "This report is partial" in (feed / "out" / "results.md").read_text(encoding="utf-8")


def test_another_baseline_needs_no_training(feed: Path, trained: list[str]) -> None:
    file = experiment_file(feed)
    assert main(["compare", str(file), "--seeds", "1"]) == 0
    assert main(["compare", str(file), "--seeds", "1", "--baseline", "adatt"]) == 0
    assert len(trained) == 2
    assert list(results_of(feed)["datasets"]["clips"]["verdicts"]) == ["bottom"]


def test_report_of_nothing_is_refused(feed: Path) -> None:
    with pytest.raises(ValueError, match="no cell is trained"):
        compare(load(experiment_file(feed), {}), report_only=True)


def test_cell_that_diverges_is_reported_and_the_others_go_on(feed: Path) -> None:
    wild = {**NETWORKS[1], "name": "wild", "set": {"optimizer.dense.learning_rate": 1e30}}
    compare(load(experiment_file(feed, networks=[NETWORKS[0], wild, NETWORKS[1]]), {"seeds": 1}))
    results = results_of(feed)
    assert list(results["failures"]) == ["clips/wild/seed-0"]
    assert "not finite" in results["failures"]["clips/wild/seed-0"]
    assert list(results["datasets"]["clips"]["seeds"]) == ["bottom", "adatt"]


def test_a_budget_chooses_among_the_networks_under_it(feed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(experiment_file(feed, budget={"ms": 10_000.0}))]) == 0
    assert "Under the budget of 10000 ms for 500 candidates" in " ".join(capsys.readouterr().out.split())
    budget = results_of(feed)["datasets"]["clips"]["scoring"]["budget"]
    assert budget["chosen"] in {"bottom", "adatt"}
    assert budget["over"] == []
    # Costs are kept: they are a machine's, and one answer must not change with each report.
    before = results_of(feed)["datasets"]["clips"]["scoring"]["costs"]
    assert main(["compare", str(experiment_file(feed, budget={"ms": 1e-9, "candidates": 100})), "--report"]) == 0
    after = results_of(feed)["datasets"]["clips"]["scoring"]
    assert after["costs"] == before
    assert after["budget"]["chosen"] is None


def test_one_user_gives_no_p_on_the_test_split(feed: Path) -> None:
    for file in (feed / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        users = table.column_names.index("user_id")
        pq.write_table(table.set_column(users, "user_id", [table["user_id"][:1].to_pylist() * len(table)]), file)
    compare(load(experiment_file(feed), {}))
    lines = (feed / "out/results.md").read_text(encoding="utf-8").splitlines()
    test, validation = (
        next(line for line in lines[lines.index(f"### AUC, {split} split (higher is better)") :] if "| adatt |" in line)
        for split in ("test", "validation")
    )
    assert test.split("|")[5:7] == [" - ", " - "], "no interval over seeds and users, and so no p of it"
    assert 0 <= float(validation.split("|")[5]) <= 1


def test_task_of_one_class_is_left_out_and_said_so(feed: Path) -> None:
    for file in (feed / "data").glob("*.parquet"):
        table = pq.read_table(file)
        labels = np.where(table.column("day").to_numpy() == 6, 0, table.column("is_click").to_numpy())
        position = table.schema.get_field_index("is_click")
        pq.write_table(table.set_column(position, "is_click", [labels]), file)
    compare(load(experiment_file(feed, metrics=METRICS), {"seeds": 1}))
    dataset = results_of(feed)["datasets"]["clips"]
    undefined = {(found["split"], found["task"], found["metric"]) for found in dataset["undefined"]}
    assert undefined == {("test", "click", name) for name in ("auc", "normalized_entropy", "gauc", "calibration_ratio")}
    assert set(dataset["tables"]["test"]["auc"]) == {"like", "mean"}
    markdown = (feed / "out" / "results.md").read_text(encoding="utf-8")
    assert "AUC of click is undefined on the test split: all labels are of one class" in markdown


def test_changed_experiment_is_refused_before_anything_runs(feed: Path, trained: list[str]) -> None:
    compare(load(experiment_file(feed), {"seeds": 1}))
    with pytest.raises(ValueError, match=r"the experiment's clips/bottom/seed-0 differs"):
        compare(load(experiment_file(feed, set={"batch_size": 32}), {}))
    assert len(trained) == 2


def test_predictions_on_other_data_are_refused(feed: Path) -> None:
    experiment = load(experiment_file(feed), {"seeds": 1})
    compare(experiment)
    write_feed(feed / "data", 600, seed=1)
    predictions._read.cache_clear()  # as in a new process, which has read nothing yet
    with pytest.raises(ValueError, match="was made on other data"):
        compare(experiment)


@pytest.mark.slow
def test_worker_processes_give_the_same_answers(feed: Path) -> None:
    file = experiment_file(feed)
    compare(load(file, {"seeds": 1}))
    compare(load(file, {"seeds": 1, "processes": 2, "output": str(feed / "parallel")}))
    for network in ("bottom", "adatt"):
        place = f"clips/{network}/seed-0/predictions-test.npz"
        one, other = (np.load(feed / out / place)["outputs_BO"] for out in ("out", "parallel"))
        np.testing.assert_array_equal(one, other)


def test_worker_that_is_killed_fails_its_cell_alone(feed: Path) -> None:
    experiment = load(experiment_file(feed), {"seeds": 1})
    cell, config = next(iter(experiment.configs().items()))
    worker = workers._Worker()
    worker.process.kill()
    worker.process.join()
    worker.begin(workers.Job(cell, config, "validation"))
    outcome = worker.outcome()
    assert outcome.cell == cell
    assert outcome.fault is not None
    assert "ended with exit code -9" in outcome.fault
