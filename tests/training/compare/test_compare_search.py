"""The search of a comparison: what is tried, what is chosen, and that it survives being killed."""

import json
import math
import re
import statistics
import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sklearn.metrics import roc_auc_score

from tests.training.compare.searches import BOTTOM, EXPERTS, PLE, RATE, Json, experiment_file
from tests.training_data import feed_table, write_feed
from training.__main__ import main
from training.compare import search as searching
from training.compare import workers
from training.compare.plans import plans
from training.compare.runner import compare, load
from training.config import TrainingConfig
from training.run.run import Run, locked
from training.train import train


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    write_feed(tmp_path / "data", 600)
    return tmp_path


def found_in(folder: Path) -> Json:
    return dict(json.loads((folder / "out" / "search.json").read_text(encoding="utf-8"))["clips"])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were trained, in order."""
    names: list[str] = []

    def spy(config: TrainingConfig, *, show: bool) -> Run:
        names.append("/".join(config.output.parts[config.output.parts.index("out") + 1 :]))
        return train(config, show=show)

    monkeypatch.setattr(workers, "train", spy)
    return names


def test_finite_space_is_tried_point_by_point_and_the_best_on_validation_is_trained(
    feed: Path, trained: list[str]
) -> None:
    compare(load(experiment_file(feed), {"processes": 1}))
    runs = [f"search/clips/ple/trial-{trial}/seed-{seed}" for trial in (0, 1) for seed in (10_000, 10_001)]
    assert sorted(trained) == sorted([*runs, "clips/bottom/seed-0", "clips/ple/seed-0"])
    assert not list((feed / "out" / "search").rglob("predictions-test.npz")), "a search never answers the test split"

    # The validation day, measured by scikit-learn from the outputs that were kept.
    table = feed_table(600)
    on_day = table.column("day").to_numpy() == 5
    clicks, likes = (table.column(name).to_numpy()[on_day] for name in ("is_click", "is_like"))
    seen = ~np.isnan(likes)
    expected = []
    for trial in (0, 1):
        aucs = []
        for seed in (10_000, 10_001):
            kept = np.load(feed / f"out/search/clips/ple/trial-{trial}/seed-{seed}/predictions-validation.npz")
            outputs_BO = kept["outputs_BO"]
            both = roc_auc_score(clicks, outputs_BO[:, 0]), roc_auc_score(likes[seen], outputs_BO[seen, 1])
            aucs.append(statistics.fmean(both))
        expected.append(statistics.fmean(aucs))
    found = found_in(feed)
    assert list(found) == ["ple"], "a network without a space has nothing to choose"
    assert [trial["parameters"]["network.fusion"] for trial in found["ple"]["trials"]] == EXPERTS
    # Both are exact counts of pairs, in float64.
    assert [trial["value"] for trial in found["ple"]["trials"]] == pytest.approx(expected, abs=1e-12)
    best = int(np.argmax(expected))
    assert found["ple"]["chosen"] == best
    fusion = Run.open(feed / "out/clips/ple/seed-0").config.network.fusion.model_dump()
    assert {key: fusion[key] for key in EXPERTS[best]} == EXPERTS[best]

    markdown = (feed / "out" / "results.md").read_text(encoding="utf-8")
    row = next(line for line in markdown.splitlines() if line.startswith("| ple | experts"))
    words = ", ".join(f"{key} {value}" for key, value in EXPERTS[best].items())
    assert row.startswith(f"| ple | {words} | {expected[best]:.5f} |")
    assert f"| {expected[1 - best]:.5f} | 2 |" in row
    results = json.loads((feed / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["datasets"]["clips"]["search"]["ple"]["chosen"] == best

    # What has ended is read, not run: with more seeds the choice stands, and the storage is not needed.
    (feed / "out" / "search.db").unlink()
    compare(load(feed / "experiment.yaml", {"seeds": 2}))
    assert sorted(trained[6:]) == ["clips/bottom/seed-1", "clips/ple/seed-1"]


class Killed(BaseException):
    """Ends a run as kill does: nothing of ours catches it."""


def dies(*_: object) -> None:
    """In place of anything."""
    raise Killed


# Trials 0 to 6: what the files say, four drawn at random, two by the estimator.
BUDGET = {"trials": 7, "seeds": 2, "space": {RATE: {"low": 1e-4, "high": 1e-1, "log": True}}}
FREE = {"networks": [BOTTOM, {**PLE, "space": {}}], "search": BUDGET}


def made_up(config: TrainingConfig) -> float:
    """A value that has its best at a learning rate of 0.01, and differs from seed to seed."""
    rate = config.optimizer.dense.learning_rate
    return 0.9 - abs(math.log10(rate) + 2) / 10 + 0.001 * (config.seed % 10)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that take no time: a summary and an empty answer, worth `made_up`. Returns their names in order."""
    names: list[str] = []

    def run(config: TrainingConfig, *, show: bool) -> Run:
        del show
        names.append("/".join(config.output.parts[-4:]))
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.json").write_text(json.dumps(config.dump()), encoding="utf-8")
        (config.output / "summary.json").write_text("{}", encoding="utf-8")
        return Run(config.output, config, None, None)  # type: ignore[arg-type]

    def answer(run: Run, split: str) -> None:
        (run.path / f"predictions-{split}.npz").write_bytes(b"")

    monkeypatch.setattr(Run, "__init__", lambda self, path, *_: setattr(self, "path", path))
    monkeypatch.setattr(workers, "train", run)
    monkeypatch.setattr(workers, "write_predictions", answer)
    monkeypatch.setattr(searching, "_value", lambda _, config: made_up(config))
    return names


def run_search(file: Path, *, storage: str | None = None, **changes: Any) -> Json:
    experiment = load(file, changes)
    with locked(experiment.output):
        return dict(searching.search(experiment, plans(experiment), storage=storage, train=True)["clips"])


def test_killed_search_repeats_no_run_and_chooses_the_same(
    tmp_path: Path, instant: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment_file(tmp_path, **FREE)
    whole = run_search(file, output=str(tmp_path / "whole"))
    runs = sorted(instant)
    assert len(runs) == len(set(runs)) == 2 * 7 * 2
    assert whole["ple"]["trials"][0]["parameters"] == {RATE: 1e-3}, "what the files say is tried first"
    drawn = [[trial["parameters"] for trial in whole[name]["trials"][:5]] for name in ("bottom", "ple")]
    assert drawn[0] == drawn[1], "every network begins with the same points"
    best = max(whole["ple"]["trials"], key=lambda trial: statistics.fmean(trial["values"].values()))
    assert whole["ple"]["chosen"] == best["number"]

    # Killed before every fourth run, and once between the last run of a trial and the trial's end.
    instant.clear()
    output = tmp_path / "killed"
    calm, tell = workers._attempt, searching.Study._record_end
    for _ in range(20):
        attempts = 0

        def once(job: workers.Job) -> workers.Outcome:
            nonlocal attempts
            attempts += 1
            if attempts == 4:
                raise Killed
            return calm(job)

        monkeypatch.setattr(workers, "_attempt", once)
        try:
            killed = run_search(file, output=str(output))
            break
        except Killed:
            pass
        if len(instant) == 6:
            with monkeypatch.context() as patched:
                patched.setattr(workers, "_attempt", calm)
                patched.setattr(searching.Study, "_record_end", dies)
                with pytest.raises(Killed):
                    run_search(file, output=str(output))
    assert searching.Study._record_end is tell
    assert sorted(instant) == runs
    assert killed == whole


def test_number_of_processes_changes_nothing(tmp_path: Path, instant: list[str]) -> None:
    file = experiment_file(tmp_path, **FREE)
    alone = run_search(file, output=str(tmp_path / "one"))
    # `_attempt` is patched in this process alone, so the many are run by it too.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.compare.progress.run_jobs", lambda jobs, _: map(workers._attempt, jobs))
        many = run_search(file, output=str(tmp_path / "many"), processes=64)
    assert many == alone
    assert len(instant) == 2 * (2 * 7 * 2)


def test_machines_on_one_storage_share_the_budget_and_the_choice(tmp_path: Path, instant: list[str]) -> None:
    file = experiment_file(tmp_path, **FREE)
    storage = f"sqlite:///{tmp_path}/shared.db"
    found: dict[str, Json] = {}

    def machine(name: str) -> None:
        found[name] = run_search(file, storage=storage, output=str(tmp_path / name))

    machines = [threading.Thread(target=machine, args=(name,)) for name in ("one", "two", "three")]
    for thread in machines:
        thread.start()
    for thread in machines:
        thread.join(timeout=120)
    assert found["one"] == found["two"] == found["three"]
    for network in ("bottom", "ple"):
        assert [trial["number"] for trial in found["one"][network]["trials"]] == list(range(7))
    assert len(instant) >= 2 * 7 * 2


def test_a_machine_that_is_gone_holds_nobody_up(
    tmp_path: Path, instant: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment_file(tmp_path, **FREE)
    storage = f"sqlite:///{tmp_path}/shared.db"

    with monkeypatch.context() as patched:
        patched.setattr(workers, "_attempt", dies)
        with pytest.raises(Killed):
            run_search(file, storage=storage, output=str(tmp_path / "gone"))
    found = run_search(file, storage=storage, output=str(tmp_path / "here"))
    assert all(trial["value"] is not None for trial in found["ple"]["trials"])
    assert len(instant) == 2 * 7 * 2
    assert not [name for name in instant if (tmp_path / "gone" / name).exists()]


def test_changed_search_is_refused_by_name(tmp_path: Path, instant: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = experiment_file(tmp_path, **FREE)
    with monkeypatch.context() as patched:
        patched.setattr(workers, "_attempt", dies)
        with pytest.raises(Killed):
            run_search(file)
    for when in ("begun", "ended"):
        with pytest.raises(ValueError, match=r"search/clips/bottom: was begun with trials 7, .* now has 9; choose"):
            run_search(file, search={**BUDGET, "trials": 9})
        with pytest.raises(ValueError, match=rf"was begun with space\.{re.escape(RATE)}\.high 0\.1, .* has 0\.2"):
            run_search(file, search={**BUDGET, "space": {RATE: {"low": 1e-4, "high": 0.2, "log": True}}})
        with pytest.raises(ValueError, match=r"training\.epochs 1, and the experiment now has 3"):
            run_search(file, set={"epochs": 3})
        if when == "begun":
            run_search(file)
    assert len(instant) == 2 * 7 * 2


def test_report_needs_a_search_that_has_ended(tmp_path: Path, instant: list[str]) -> None:
    experiment = load(experiment_file(tmp_path, **FREE), {})
    with pytest.raises(ValueError, match="search/clips/bottom: has not ended, so nothing is chosen"):
        compare(experiment, report_only=True)
    assert not instant


def test_diverged_trial_counts_and_a_network_whose_trials_all_diverge_is_said(
    feed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {**PLE, "name": "wild", "space": {RATE: [1e30, 1e31]}}
    tame = {**PLE, "space": {RATE: [1e30, 0.01]}}
    file = experiment_file(feed, networks=[BOTTOM, tame, wild], search={"trials": 5, "seeds": 1})
    assert main(["compare", str(file)]) == 0
    assert "not finite" in capsys.readouterr().err
    found = found_in(feed)
    assert ["fault" in trial for trial in found["ple"]["trials"]] == [True, False]
    assert (found["ple"]["chosen"], found["wild"]["chosen"]) == (1, None)
    results = json.loads((feed / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(results["failures"]) == ["clips/wild/seed-0"]
    assert "search: all trials failed" in results["failures"]["clips/wild/seed-0"]
    markdown = (feed / "out" / "results.md").read_text(encoding="utf-8")
    assert re.search(
        r"\| ple \| optimizer\.dense\.learning_rate 0\.01 \| 0\.\d{5} \| - \| - \| 2, 1 failed \|", markdown
    )
    assert "| wild | - | - | - | - | 2, 2 failed |" in markdown


def test_fault_of_the_machine_does_not_count_against_the_point(
    tmp_path: Path, instant: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment_file(tmp_path, **FREE)
    calm = workers._attempt

    def full(job: workers.Job) -> workers.Outcome:
        return calm(job) if len(instant) < 3 else workers.Outcome(job.cell, 0.0, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(workers, "_attempt", full)
        with pytest.raises(ValueError, match=r"trial-\d/seed-\d+: no space left on device; run compare again"):
            run_search(file)
    found = run_search(file)
    assert not [trial for name in found for trial in found[name]["trials"] if "fault" in trial]
    assert len(instant) == 2 * 7 * 2


def test_our_storage_is_readable_by_optuna(tmp_path: Path, instant: list[str]) -> None:
    run_search(experiment_file(tmp_path, **FREE))
    assert instant
    study = optuna.load_study(study_name="tiny/clips/ple", storage=f"sqlite:///{tmp_path}/out/search.db")
    assert study.best_value == pytest.approx(max(trial.value for trial in study.trials if trial.value is not None))
    assert study.best_params[RATE] == pytest.approx(0.01, rel=2), "the made-up best, within what 7 trials can find"
