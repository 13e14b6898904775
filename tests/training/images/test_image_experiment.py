"""`python -m training images` on small generated files: it learns, resumes, reports, and names what is wrong."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from scipy import stats

from tests.training.images.files import write_cifar, write_fashion
from training.__main__ import main
from training.images import plots
from training.images.cell import CHECKPOINT, RESULT
from training.images.config import ImageExperiment
from training.images.experiment import load, run
from training.images.results import one_tail_t_test
from training.run import state_file

ROOT = Path(__file__).resolve().parents[3]
LEARNED = {"kind": "learned_routing", "num_modules": 2, "routed": ["fc1"]}


def experiment(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small experiment on files of Fashion-MNIST's form, written beside."""
    data = folder / "fashion"
    if not data.exists():
        write_fashion(data)
    return {
        "name": "small",
        "data": {"kind": "fashion_mnist", "path": str(data), "validation": 0.2},
        "network": {"convolutions": [4], "fully_connected": [8]},
        "methods": [{"name": "bottom", "routing": {"kind": "shared_bottom"}}, {"name": "learned", "routing": LEARNED}],
        "seeds": 2,
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.01,
        "figure_epochs": 2,
        "output": str(folder / "out"),
        **changes,
    }


# Wide enough that no seed is unlucky.
WIDER = {"network": {"convolutions": [8], "fully_connected": [32]}, "learning_rate": 0.005}


def parsed(folder: Path, **changes: Any) -> ImageExperiment:
    return ImageExperiment.from_mapping(experiment(folder, **changes), "experiment.yaml")


@pytest.mark.parametrize(
    "routing",
    [
        {"kind": "shared_bottom"},
        {"kind": "fixed_random_routing", "num_modules": 3},
        {"kind": "learned_routing", "num_modules": 2, "routed": ["conv1"], "warm_up_epochs": 1},
    ],
    ids=lambda routing: routing["kind"],
)
def test_tasks_are_learned(tmp_path: Path, routing: dict[str, Any]) -> None:
    run(parsed(tmp_path, methods=[{"name": "method", "routing": routing}], seeds=1, epochs=10, **WIDER))
    result = json.loads((tmp_path / "out/method/seed-0" / RESULT).read_text())
    accuracies = list(result["accuracy"].values())
    # The larger class of a task has 10 of 19 test rows: .53. A bright square at the class' place answers all.
    assert np.mean(accuracies) > 0.8
    assert result["train_loss"][-1] < 0.5 * result["train_loss"][0]


def test_superclasses_are_learned(tmp_path: Path) -> None:
    data = {"kind": "cifar100", "path": str(write_cifar(tmp_path / "cifar", (5, 1))), "validation": 0.2}
    methods = [{"name": "fixed", "routing": {"kind": "fixed_random_routing", "routed": ["fc1"], "num_modules": 4}}]
    run(parsed(tmp_path, data=data, methods=methods, seeds=1, epochs=8, **WIDER))
    result = json.loads((tmp_path / "out/fixed/seed-0" / RESULT).read_text())
    assert list(result["accuracy"]) == [f"superclass_{number}" for number in range(20)]
    # Five classes: chance is .2. 20 rows a task are few, so not all of the way.
    assert np.mean(list(result["accuracy"].values())) > 0.7


def test_the_report_has_the_papers_tables_and_figures(tmp_path: Path) -> None:
    config = parsed(
        tmp_path,
        seeds=3,
        module_counts={"method": "learned", "counts": [1, 3]},
        hypotheses=[{"better": "learned", "than": "bottom"}],
        augmentation={"padding": 1, "flip": False, "rotation_degrees": 5},
    )
    page = run(config)
    folder = tmp_path / "out"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["methods"]) == ["bottom", "learned", "learned_1_modules", "learned_3_modules"]
    values = {}
    for name, method in results["methods"].items():
        means = []
        for seed in range(3):
            result = json.loads((folder / name / f"seed-{seed}" / RESULT).read_text())
            means.append(float(np.mean(list(result["accuracy"].values()))))
        values[name] = means
        assert method["accuracy"]["mean"] == pytest.approx(np.mean(means))
        assert method["accuracy"]["best"] == pytest.approx(max(means))
        assert method["accuracy"]["sd"] == pytest.approx(np.std(means, ddof=1))
    t, df, p = (results["hypotheses"][0][key] for key in ("t", "df", "p"))
    # Student's t by its formula.
    a, b = np.array(values["learned"]), np.array(values["bottom"])
    pooled = (a.var(ddof=1) + b.var(ddof=1)) / 2
    assert df == 4
    assert t == pytest.approx((a.mean() - b.mean()) / np.sqrt(pooled * 2 / 3))
    assert p == pytest.approx(1 - stats.t.cdf(t, 4))
    assert results["module_counts"]["accuracies"] == {
        "1": values["learned_1_modules"],
        "3": values["learned_3_modules"],
    }
    perplexity = results["methods"]["learned"]["perplexity"]["0"]["fc1"]
    assert len(perplexity) == 2
    # Two modules, a policy that has begun to decide.
    assert 1 <= perplexity[-1] < 2
    placebo = results["methods"]["learned"]["placebo_perplexity"]["0"]["fc1"]
    assert len(placebo) == 2
    assert 1 <= placebo[-1] < 2
    assert placebo != perplexity
    cosines = np.array(results["methods"]["learned"]["cosines"]["1"]["fc1"])
    np.testing.assert_allclose(np.diag(cosines), 1)
    figures = {path.stem for path in (folder / "pictures").iterdir()}
    routed = ("learned", "learned_1_modules", "learned_3_modules")
    assert figures == {"module-counts", *(f"{what}-{name}" for what in ("perplexity", "similarity") for name in routed)}
    for path in (folder / "pictures").iterdir():
        assert matplotlib.image.imread(path).std() > 0
    text = (folder / "results.md").read_text()
    assert "Fewer than four epochs do not say" in text
    assert f"{100 * np.mean(a):.2f} ± {100 * np.std(a, ddof=1):.2f}" in text
    assert page == folder / "report.html"
    html = page.read_text()
    assert html.count("<img") == len(figures)
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)


def test_finished_cells_are_kept_and_new_seeds_added(tmp_path: Path) -> None:
    run(parsed(tmp_path, seeds=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob(RESULT)}
    assert len(before) == 2
    run(parsed(tmp_path, seeds=2))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob(RESULT)}
    assert len(after) == 4
    assert before.items() <= after.items()


def test_a_killed_cell_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = {"padding": 1, "rotation_degrees": 5}
    methods = [{"name": "learned", "routing": LEARNED | {"warm_up_epochs": 1}}]
    changes: dict[str, Any] = {"methods": methods, "seeds": 1, "epochs": 4, "augmentation": augmentation}
    run(parsed(tmp_path, **changes))
    folder = tmp_path / "out/learned/seed-0"
    whole = json.loads((folder / RESULT).read_text())
    saved = state_file.save
    trained = []

    def killed(path: Path, state: dict[str, Any]) -> None:
        saved(path, state)
        trained.append(state["progress"]["epoch"])
        if trained == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(state_file, "save", killed)
    other = {**changes, "output": str(tmp_path / "killed")}
    with pytest.raises(KeyboardInterrupt):
        run(parsed(tmp_path, **other))
    resumed = tmp_path / "killed/learned/seed-0"
    assert (resumed / CHECKPOINT).exists()
    assert not (resumed / RESULT).exists()
    run(parsed(tmp_path, **other))
    assert trained == [1, 2, 3, 4]
    found = json.loads((resumed / RESULT).read_text())
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}
    assert not (resumed / CHECKPOINT).exists()


def test_the_best_validation_epoch_answers(tmp_path: Path) -> None:
    run(parsed(tmp_path, seeds=1, epochs=5))
    result = json.loads((tmp_path / "out/bottom/seed-0" / RESULT).read_text())
    assert result["chosen_epoch"] == int(np.argmax(result["validation_accuracy"])) + 1
    assert result["test_accuracy"] == [], "the test rows are read once"
    data = experiment(tmp_path)["data"] | {"validation": 0}
    run(parsed(tmp_path, seeds=1, epochs=3, data=data, output=str(tmp_path / "all")))
    result = json.loads((tmp_path / "all/bottom/seed-0" / RESULT).read_text())
    assert result["chosen_epoch"] == 3
    assert result["validation_accuracy"] == []
    assert len(result["test_accuracy"]) == 3
    assert result["test_accuracy"][-1] == pytest.approx(np.mean(list(result["accuracy"].values())))


def test_a_cell_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    methods = [
        {"name": "bottom", "routing": {"kind": "shared_bottom"}},
        {"name": "learned", "routing": LEARNED},
    ]
    config = parsed(tmp_path, methods=methods, seeds=1)
    broken = tmp_path / "out/bottom/seed-0"
    broken.mkdir(parents=True)
    (broken / CHECKPOINT).write_bytes(b"not a checkpoint")
    (broken / ".lock").touch()
    run(config)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["methods"]) == ["learned"]
    assert "not a checkpoint" in results["failures"]["bottom/seed-0"]


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    methods = [{"name": "bottom", "routing": {"kind": "shared_bottom"}}]
    with pytest.raises(ValueError, match=r"bottom/seed-0: the loss is not finite in epoch \d+, step \d+"):
        run(parsed(tmp_path, methods=methods, seeds=1, learning_rate=1e38))


def test_changed_settings_or_data_are_refused(tmp_path: Path) -> None:
    run(parsed(tmp_path, seeds=1))
    with pytest.raises(ValueError, match=r"seed-0: holds a cell from which learning_rate differ"):
        run(parsed(tmp_path, seeds=1, learning_rate=0.02))
    write_fashion(tmp_path / "fashion", (30, 10))
    with pytest.raises(ValueError, match=r"holds a cell from which fingerprint differ"):
        run(parsed(tmp_path, seeds=1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": [{"name": "a", "routing": {"kind": "shared_botom"}}]}, "did you mean 'shared_bottom'"),
        (
            {"methods": [{"name": "a", "routing": LEARNED | {"routed": ["fc7"]}}]},
            "method 'a': routed: unknown layer 'fc7'",
        ),
        ({"hypotheses": [{"better": "learnt", "than": "bottom"}]}, "hypotheses.better: unknown method 'learnt'"),
        ({"module_counts": {"method": "bottom", "counts": [2]}}, "'bottom' has no layer with modules"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"seeds": 0}, "number of seeds"),
        ({"network": {"convolutions": [4] * 5}}, "5 layers halve images of 12 x 12 pixels to nothing"),
        ({"data": {"kind": "fashion_mnist", "path": "absent"}}, "train-images-idx3-ubyte: not found"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, changes: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = experiment(tmp_path)["methods"]
    if "network" in changes:
        methods = methods[:1]
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment(tmp_path, **{"methods": methods, **changes})))
    assert main(["images", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert not (tmp_path / "out/report.html").exists()


def test_four_numbers_of_modules_have_a_curve() -> None:
    accuracies = {str(count): [0.4 + count / 100, 0.41] for count in (2, 4, 6, 9)}
    with_curve = matplotlib.image.imread(io.BytesIO(plots.module_counts(accuracies, "title")))
    # matplotlib's second colour, which only the curve has.
    is_orange = np.isclose(with_curve[..., :3], np.array([255, 127, 14]) / 255, atol=0.01).all(axis=2)
    assert is_orange.sum() > 100


def test_nothing_trained_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cell is trained"):
        run(parsed(tmp_path), report_only=True)


def test_t_test_needs_spread() -> None:
    assert one_tail_t_test([0.5], [0.4, 0.3]) == {"t": None, "df": 1, "p": None}
    assert one_tail_t_test([0.5, 0.5], [0.4, 0.4]) == {"t": None, "df": 2, "p": None}
    found = one_tail_t_test([0.5, 0.6, 0.7], [0.1, 0.2, 0.3])
    assert found["p"] < 0.01
    assert one_tail_t_test([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])["p"] == pytest.approx(1 - found["p"])


def test_a_method_that_still_gains_is_called_undertrained(tmp_path: Path) -> None:
    methods = [
        {"name": "bottom", "routing": {"kind": "shared_bottom"}, "paper": {"mean": 95.6, "sd": 0.27}},
        {"name": "learned", "label": "Learned", "routing": LEARNED},
    ]
    data = experiment(tmp_path)["data"] | {"validation": 0}
    config = parsed(tmp_path, methods=methods, data=data, epochs=8, figure_epochs=9, learning_rate=0.002, seeds=1)
    run(config)
    folder = tmp_path / "out"
    results = json.loads((folder / "results.json").read_text())
    text = (folder / "results.md").read_text()
    undertrained = set()
    for name, label in (("bottom", "bottom"), ("learned", "Learned")):
        curve = json.loads((folder / name / "seed-0" / RESULT).read_text())["test_accuracy"]
        method = results["methods"][name]
        assert method["accuracy_by_epoch"] == pytest.approx(curve)
        gain = np.mean(curve[6:]) - np.mean(curve[4:6])
        assert method["gain"] == pytest.approx(gain)
        assert method["is_undertrained"] == (gain > 0.001)
        assert f"{100 * gain:+.2f}" in text
        undertrained |= {label} if gain > 0.001 else set()
    # So slow a training has not ended after eight epochs.
    assert "bottom" in undertrained
    assert re.search(r"may change its place: .*bottom", text)
    assert "95.6 ± 0.27" in text
    # Nine epochs are the fewest that figures are drawn of here.
    assert "Figures of policies are left out" in text
    assert not list(folder.glob("pictures/*"))


@pytest.mark.parametrize(("name", "seeds", "epochs"), [
    ("fashion_mnist_routing", 5, 50), ("cifar100_routing", 5, 200), ("fashion_mnist_cpu", 3, 18),
])  # fmt: skip
def test_the_papers_experiments_are_valid(name: str, seeds: int, epochs: int) -> None:
    config = load(ROOT / f"configs/images/{name}.yaml", {})
    assert config.seeds == tuple(range(seeds))
    assert config.epochs == epochs
    assert config.data.validation == 0
    assert config.network.layers == ["conv1", "conv2", "conv3", "fc1", "fc2", "fc3"]
