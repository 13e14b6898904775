"""The trials of a comparison on rolling days: what they see, what is chosen, and that they survive being killed."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests.training.rolling.comparisons import BOTTOM, FOLDS, RATE, TREES, Json, comparison_file, dated_table
from training.__main__ import main
from training.compare import workers
from training.config import TrainingConfig
from training.rolling.choosing import Trials, choose
from training.rolling.rolling_file import load_rolling
from training.run.run import Run, read_json
from training.train import train


def measured(folder: Path, method: str, trial: int) -> dict[str, list[float]]:
    """NE and AUC by fold and task, by scikit-learn from the outputs that were kept."""
    table = dated_table()
    found: dict[str, list[float]] = {"normalized_entropy": [], "auc": []}
    for fold in FOLDS:
        name = f"2024-01-{fold % 100:02d}"
        kept = np.load(folder / f"out/search/{name}/{method}/trial-{trial}/seed-10000/predictions-validation.npz")
        is_on_day = table.column("date").to_numpy() == fold
        for place, column in enumerate(("is_click", "is_like")):
            labels = table.column(column).to_numpy(zero_copy_only=False).astype(float)[is_on_day]
            is_seen = ~np.isnan(labels)
            logits = kept["outputs_BO"][is_seen, place].astype(float)
            rate = labels[is_seen].mean()
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
            found["normalized_entropy"].append(log_loss(labels[is_seen], 1 / (1 + np.exp(-logits))) / entropy)
            found["auc"].append(float(roc_auc_score(labels[is_seen], logits)))
    return found


def test_the_best_mean_over_rolling_days_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison_file(tmp_path)
    assert main(["rolling", "choose", str(path)]) == 0
    assert "Chosen points" in capsys.readouterr().out
    assert not list(tmp_path.rglob("predictions-test.npz")), "no trial answers the test day"
    trials = Trials(load_rolling(path, {}))
    dates = dated_table().column("date").to_numpy()
    for method in ("bottom", "trees"):
        assert [trial["number"] for trial in trials.of(method)] == [0, 1]
        losses = []
        for trial in trials.of(method):
            expected = measured(tmp_path, method, trial["number"])
            for metric, values in expected.items():
                of_days = trial["values"][metric]
                kept = [of_days[f"2024-01-{day:02d}"][task]["10000"] for day in (4, 5) for task in ("click", "like")]
                # Float32 answers, both measured in float64.
                assert kept == pytest.approx(values, abs=1e-6)
            losses.append(statistics.fmean(expected["normalized_entropy"]))
        best = trials.best(method)
        assert best is not None
        assert best["number"] == int(np.argmin(losses))
        for fold in FOLDS:
            run = tmp_path / f"out/search/2024-01-{fold % 100:02d}/{method}/trial-0/seed-10000"
            rows = read_json(run / "summary.json")["rows"]
            assert (rows["train"], rows["validation"]) == ((dates < fold).sum(), (dates == fold).sum())
            assert Run.open(run).config.data.has_test is False
    # The files' own values come first.
    assert trials.of("trees")[0]["point"] == {"leaves": 4}
    assert trials.of("bottom")[0]["point"] == {RATE: 0.001}
    markdown = (tmp_path / "out/results.md").read_text(encoding="utf-8")
    assert "No trial reads 2024-01-06" in markdown
    assert "| trees | 2 of 2 |" in markdown


class Killed(BaseException):
    """Ends a search as kill does: nothing of ours catches it."""


def without_times(path: Path) -> Json:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    for method in content["methods"].values():
        for trial in method["trials"]:
            del trial["cpu_seconds"]
    return content


def test_a_killed_search_goes_on_and_more_trials_extend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: Json = {
        "methods": [BOTTOM, {**BOTTOM, "name": "wide", "fusion": {"kind": "shared_bottom", "levels": [9]}}]
    }
    alone, killed = (tmp_path / name for name in ("alone", "killed"))
    for folder in (alone, killed):
        folder.mkdir()
    files = [load_rolling(comparison_file(folder, baseline="bottom", **networks), {}) for folder in (alone, killed)]
    choose(files[0])
    trained: list[str] = []

    def dies_at_third(config: TrainingConfig, *, show: bool) -> Run:
        trained.append(str(config.output.relative_to(killed / "out")))
        if len(trained) == 3:
            raise Killed
        return train(config, show=show)

    monkeypatch.setattr(workers, "train", dies_at_third)
    with pytest.raises(Killed):
        choose(files[1])
    choose(files[1])
    assert len(trained) == 8 + 1, "what was trained is not trained again"
    assert without_times(killed / "out/trials.json") == without_times(alone / "out/trials.json")

    before = Trials(files[1]).of("bottom")
    search = files[1].search.model_copy(update={"trials": 3})
    choose(files[1].model_copy(update={"search": search}))
    after = Trials(files[1]).of("bottom")
    assert (after[:2], len(after)) == (before, 3)


def test_trials_of_another_comparison_are_not_continued(tmp_path: Path) -> None:
    choose(load_rolling(comparison_file(tmp_path, methods=[TREES, {**TREES, "name": "more"}]), {}))
    changed = {**TREES, "space": {"leaves": {"low": 3, "high": 8}}}
    path = comparison_file(tmp_path, methods=[TREES, {**changed, "name": "more"}])
    with pytest.raises(ValueError, match=r"search/tiny/more: was begun with space.leaves.high 9, and .* now has 8"):
        choose(load_rolling(path, {}))


def test_features_of_a_method_join_the_schema(tmp_path: Path) -> None:
    features = [
        {"name": "author", "side": "candidate", "kind": "id", "buckets": 10, "dim": 4},
        {"name": "duration", "side": "candidate", "kind": "number", "missing": 1},
    ]
    methods = [TREES, BOTTOM, {**BOTTOM, "name": "more", "features": features}]
    file = load_rolling(comparison_file(tmp_path, methods=methods), {})
    plain, more = (
        file.trial_config(file.method(name), file.days.folds[0], 10_000, 0, {}).feed_schema()
        for name in ("bottom", "more")
    )
    assert {one.name for one in more.features} == {one.name for one in plain.features} | {"author"}
    kept = [one for one in plain.features if one.name != "duration"]
    assert [one for one in more.features if one.name not in ("duration", "author")] == kept
    (duration,) = [one for one in more.features if one.name == "duration"]
    assert duration.model_dump()["missing"] == 1
    # The data has no such column, and the run says so.
    with pytest.raises(ValueError, match="author"):
        choose(file)


def test_a_folder_of_others_is_not_written_into(tmp_path: Path) -> None:
    file = load_rolling(comparison_file(tmp_path), {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letters.txt").touch()
    with pytest.raises(ValueError, match="is not empty and is no comparison's folder"):
        choose(file)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letters.txt"]
    with pytest.raises(ValueError, match="is inside the folder of the data"):
        choose(file.model_copy(update={"output": tmp_path / "data/out"}))


def test_a_space_without_what_the_files_say_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    far = {**TREES, "name": "far", "space": {"leaves": {"low": 5, "high": 9}}}
    trials = Trials(load_rolling(comparison_file(tmp_path, methods=[TREES, far]), {}))
    assert trials.next_point("trees") == {"leaves": 4}
    assert [line.getMessage() for line in caplog.records if line.name == "training.rolling.choosing"] == [
        "method far: its own leaves is not in the space, so no trial has what the files say"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "tree"}, "no method 'tree'|did you mean 'trees'"),
        ({"methods": [BOTTOM, BOTTOM]}, "method 'bottom' is given twice"),
        ({"methods": [BOTTOM, {**TREES, "space": {}}]}, "method 'trees' has nothing to choose"),
        ({"methods": [BOTTOM, {**TREES, "space": {"leafs": [3, 4]}}]}, "space of method trees: .*leafs"),
        ({"metrics": ["calibration_ratio"]}, "has no better direction"),
        ({"tasks": ["watch"]}, "method bottom: .*'watch' is no binary"),
        ({"tasks": ["klick"]}, "klick"),
        ({"seeds": [10_000]}, "is one of the search's"),
        (
            {
                "days": {
                    "column": "date",
                    "first": "2024-01-01",
                    "choose": ["2024-01-05", "2024-01-06"],
                    "test": "2024-01-06",
                }
            },
            "must follow each other",
        ),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = comparison_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        choose(load_rolling(path, {}))
