"""A frozen choice and its one reading of the test day: what is measured, and what is refused."""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from benchmarks.readings import day_of_test, note
from tests.training.rolling.comparisons import TEST, Json, comparison_file, dated_table
from training.__main__ import main
from training.compare import workers
from training.compare.boosted_trees import write_tree_predictions
from training.config import SplitName
from training.rolling.checkout import commit_of_checkout
from training.rolling.choosing import Trials, choose
from training.rolling.figures import drawn_seeds, kept_rows
from training.rolling.frozen import freeze, load_frozen
from training.rolling.reading import read
from training.rolling.readings import read_list
from training.rolling.rolling_file import load_rolling
from training.run.run import Run, read_json, write_json
from training.split_config import Range, Selection, SplitConfig

FROZEN = Path("frozen.yaml")


def git(*arguments: str) -> None:
    """git in the folder of the test, by nobody in particular."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a comparison whose trials have ended, and an empty list of readings."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    path = comparison_file(tmp_path)
    (tmp_path / "readings.yaml").write_text("readings: []\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("data\nout\n", encoding="utf-8")
    git("add", "-A")
    git("commit", "-q", "-m", "A comparison")
    choose(load_rolling(path, {}))
    return path


@pytest.fixture
def frozen(chosen: Path) -> Path:
    """The same, frozen and committed."""
    assert main(["rolling", "freeze", str(chosen), "--out", str(FROZEN), "--leaks", "none: labels are drawn"]) == 0
    git("add", "-A")
    git("commit", "-q", "-m", "Frozen")
    return FROZEN


def labels_on_test_day() -> tuple[pa.Table, dict[str, np.ndarray]]:
    table = dated_table()
    table = table.filter(pa.array(table.column("date").to_numpy() == TEST))
    columns = {"click": "is_click", "like": "is_like"}
    return table, {
        task: table.column(column).to_numpy(zero_copy_only=False).astype(float) for task, column in columns.items()
    }


def test_the_frozen_choice_is_measured_once(frozen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rolling", "read", str(frozen)]) == 0
    results = read_json(Path("out/reading/results.json"))
    table, labels = labels_on_test_day()
    is_home = np.array(table.column("tab").to_pylist()) == "home"
    outputs: dict[str, list[np.ndarray]] = {}
    for method in ("bottom", "trees"):
        files = [f"out/2024-01-06/{method}/seed-{seed}/predictions-test.npz" for seed in (0, 1)]
        outputs[method] = [np.load(file)["outputs_BO"].astype(float) for file in files]

    def aucs(logits: list[np.ndarray], picked: np.ndarray) -> list[float]:
        """Mean over both tasks, answer by answer."""
        found = []
        for one in logits:
            seen = {task: picked & ~np.isnan(of_task) for task, of_task in labels.items()}
            both = [
                roc_auc_score(labels[task][seen[task]], one[seen[task], place]) for place, task in enumerate(labels)
            ]
            found.append(float(np.mean(both)))
        return found

    everything = np.ones(table.num_rows, bool)
    for name, picked in (("all", everything), ("home", is_home)):
        entries = results["slices"][name]["metrics"]["auc"]["tasks"]["mean"]
        for method, of_seeds in outputs.items():
            # Exact counts of pairs of float32 answers.
            assert [*entries[method]["values"].values()] == pytest.approx(aucs(of_seeds, picked), abs=1e-12)
        expected = np.mean(aucs(outputs["bottom"], picked)) - np.mean(aucs(outputs["trees"], picked))
        assert entries["bottom"]["against_baseline"]["difference"] == pytest.approx(expected, abs=1e-12)
    assert results["slices"]["home"]["rows"]["click"] == is_home.sum()
    ensemble = results["ensembles"]["auc"]["mean"]["bottom"]
    mean_answer = np.mean([of_seed[:, :2] for of_seed in outputs["bottom"]], axis=0)
    assert ensemble["value"] == pytest.approx(aucs([mean_answer], everything)[0], abs=1e-12)
    # Holm over two tasks of one method: the smaller p counts twice, the larger is at least that.
    tasks = results["slices"]["all"]["metrics"]["auc"]["tasks"]
    found = sorted((tasks[task]["bottom"]["against_baseline"] for task in labels), key=lambda one: float(one["p"]))
    first = min(1.0, 2 * found[0]["p"])
    assert [one["p_holm"] for one in found] == pytest.approx([first, max(first, found[1]["p"])], rel=1e-12)

    (one,) = read_list(Path("readings.yaml"))
    assert (str(one.day), one.by, one.ended) == ("2024-01-06", "tiny", True)
    markdown = Path("out/reading/results.md").read_text(encoding="utf-8")
    assert "2024-01-06 was not read before." in markdown
    assert "none: labels are drawn" in markdown
    assert "bottom is" in markdown.partition("## Verdict")[2].splitlines()[2]

    assert main(["rolling", "read", str(frozen)]) != 0
    assert "a second reading is no test, and needs --again WORDS" in capsys.readouterr().err
    assert main(["rolling", "read", str(frozen), "--again", "a new report"]) == 0
    assert [one.why for one in read_list(Path("readings.yaml"))] == [None, "a new report"]
    assert "was read 1 time before (tiny)" in Path("out/reading/results.md").read_text(encoding="utf-8")


class Killed(BaseException):
    """Ends a reading as kill does: nothing of ours catches it."""


def test_a_killed_reading_is_in_the_list_and_goes_on(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies_at_the_test_day(run: Run, split: SplitName) -> Path:
        if split == "test":
            raise Killed
        return write_tree_predictions(run, split)

    monkeypatch.setattr(workers, "write_tree_predictions", dies_at_the_test_day)
    with pytest.raises(Killed):
        read(frozen, None)
    assert [one.ended for one in read_list(Path("readings.yaml"))] == [False]
    monkeypatch.setattr(workers, "write_tree_predictions", write_tree_predictions)
    read(frozen, None)
    assert [one.ended for one in read_list(Path("readings.yaml"))] == [True]


def test_nothing_is_read_before_all_is_trained(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Run:
        raise ValueError("no memory is left")

    monkeypatch.setattr(workers, "train", fails)
    with pytest.raises(ValueError, match="no memory is left; run read again"):
        read(frozen, None)
    assert read_list(Path("readings.yaml")) == ()
    assert not list(Path("out").rglob("predictions-test.npz"))


def test_what_is_frozen_stays_as_it_is(frozen: Path, chosen: Path) -> None:
    with pytest.raises(ValueError, match=r"frozen\.yaml: is there already, and a frozen file is never replaced"):
        freeze(chosen, frozen, None)
    content: Json = yaml.safe_load(frozen.read_text(encoding="utf-8"))
    assert content["chosen"] == "bottom"
    trials = Trials(load_rolling(chosen, {}))
    for method, of_method in content["methods"].items():
        best = trials.best(method)
        assert best is not None
        assert (of_method["point"], of_method["of"]) == (best["point"], 2)

    original = Path("training.yaml").read_text(encoding="utf-8")
    Path("training.yaml").write_text(original.replace("batch_size: 64", "batch_size: 32"), encoding="utf-8")
    with pytest.raises(ValueError, match="the training file of bottom has changed since it was frozen"):
        load_frozen(frozen)
    Path("training.yaml").write_text(original, encoding="utf-8")
    schema = Path("schema.yaml").read_text(encoding="utf-8")
    Path("schema.yaml").write_text(schema.replace("missing: 9", "missing: 8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a schema of .* has changed since it was frozen"):
        load_frozen(frozen)
    Path("schema.yaml").write_text(schema, encoding="utf-8")
    chosen.write_text(
        chosen.read_text(encoding="utf-8").replace("replicates: 100", "replicates: 200"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"rolling\.yaml: has changed since"):
        load_frozen(frozen)


def test_what_is_not_committed_is_not_read(frozen: Path) -> None:
    frozen.write_text(frozen.read_text(encoding="utf-8") + "# later\n", encoding="utf-8")
    with pytest.raises(ValueError, match="differs from what is committed"):
        read(frozen, None)
    git("checkout", "-q", str(frozen))
    git("rm", "-q", "--cached", "readings.yaml")
    with pytest.raises(ValueError, match=r"readings\.yaml: is in no commit"):
        read(frozen, None)


def test_trials_that_have_not_ended_and_an_implausible_choice_are_not_frozen(chosen: Path) -> None:
    search = yaml.safe_load(chosen.read_text(encoding="utf-8"))
    more = chosen.with_name("more.yaml")
    more.write_text(yaml.safe_dump({**search, "search": {**search["search"], "trials": 3}}), encoding="utf-8")
    with pytest.raises(ValueError, match="bottom has ended 2 of 3 trials"):
        freeze(more, FROZEN, None)
    content = read_json(Path("out/trials.json"))
    for trial in content["methods"]["bottom"]["trials"]:
        for of_day in trial["values"]["auc"].values():
            for of_task in of_day.values():
                of_task["10000"] = 0.999
    write_json(Path("out/trials.json"), content)
    with pytest.raises(
        ValueError, match=r"bottom: is ahead of trees by .* more than 0.01 \(plausible\): look for a leak"
    ):
        freeze(chosen, FROZEN, None)
    assert freeze(chosen, FROZEN, "inputs were listed").leaks == "inputs were listed"


def test_a_benchmark_that_reads_a_test_day_is_listed_once_for_a_commit(frozen: Path, chosen: Path) -> None:
    config = load_rolling(chosen, {}).final_config(load_rolling(chosen, {}).methods[0], 0, {})
    values = config.data.model_copy(update={"split": SplitConfig(column="date", train=1, validation=2, test=20240106)})
    other = config.data.model_copy(update={"split": SplitConfig(column="part", train="a", validation="b", test="c")})
    commit = commit_of_checkout()
    assert not commit.endswith("-dirty")
    for data in (values, values, other):
        note("speed", day_of_test(data), Path("readings.yaml"))
    (one,) = read_list(Path("readings.yaml"))
    assert (str(one.day), one.by, one.commit, one.ended) == ("2024-01-06", "speed", commit, True)
    assert commit_of_checkout() == f"{commit}-dirty"
    note("speed", day_of_test(config.data), Path("readings.yaml"))
    read(frozen, None)
    assert [one.by for one in read_list(Path("readings.yaml"))] == ["speed", "tiny"]
    assert "was read 1 time before (speed)" in Path("out/reading/results.md").read_text(encoding="utf-8")


def test_rows_of_a_slice_are_those_of_a_loop() -> None:
    values: list[int | None] = [3, None, 0, 7, 5, 3]
    column = pa.chunked_array([values])
    kept: list[tuple[Selection, list[bool]]] = [
        (Range(min=3, max=5), [x is not None and 3 <= x <= 5 for x in values]),
        (Range(max=3), [x is not None and x <= 3 for x in values]),
        (3, [x == 3 for x in values]),
        ([0, 7], [x in (0, 7) for x in values]),
    ]
    for keep, expected in kept:
        assert kept_rows(column, keep).tolist() == expected


def test_draws_of_seeds_have_the_spread_of_a_mean_of_two() -> None:
    draws_RS = np.tile([0.0, 1.0], (20_000, 1))
    found_R = drawn_seeds(draws_RS)
    # Of two seeds drawn twice: 0, 1/2 or 1 with chances 1/4, 1/2, 1/4. Four standard errors of a share of 20,000.
    shares = [(found_R == value).mean() for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=4 * 0.5 / np.sqrt(20_000))
