"""The training file: changes by --set, and refusals that name the file and the key."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training_data import training_file, write_feed
from training.config import TrainingConfig
from training.run.run import LOG, Run
from training.split_config import Range
from training.train import train


def load(folder: Path, *changes: str) -> TrainingConfig:
    return TrainingConfig.load(training_file(folder), changes)


def test_a_change_reaches_a_nested_key_and_leaves_the_others(tmp_path: Path) -> None:
    untouched = load(tmp_path)
    config = load(tmp_path, "optimizer.dense.learning_rate=0.5", "data.split.test={min: 6, max: 7}")
    assert config.optimizer.dense.learning_rate == 0.5
    assert config.optimizer.dense.kind == untouched.optimizer.dense.kind
    assert config.optimizer.tables == untouched.optimizer.tables
    assert config.data.split.test == Range(min=6, max=7)
    assert config.data.split.train == untouched.data.split.train


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ("network.fusion.levels=[16, 8]", {"network": {"fusion": {"levels": [16, 8]}}}),
        ("network.tower=[]", {"network": {"tower": []}}),
        ("early_stopping=null", {"early_stopping": None}),
        ("early_stopping.patience=5", {"early_stopping": {"patience": 5}}),
        ("data.split.train=[1, 2]", {"data": {"split": {"train": [1, 2]}}}),
        ("data.split.train=week=1", {"data": {"split": {"train": "week=1"}}}),
        ("batch_size= 7", {"batch_size": 7}),
    ],
)
def test_a_change_takes_any_yaml_value(tmp_path: Path, change: str, reached: dict[str, Any]) -> None:
    def assert_holds(part: dict[str, Any], whole: dict[str, Any]) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                assert_holds(value, whole[key])
            else:
                assert whole[key] == value

    assert_holds(reached, load(tmp_path, change).dump())


def test_the_last_of_two_changes_counts(tmp_path: Path) -> None:
    assert load(tmp_path, "epochs=3", "epochs=4").epochs == 4


def test_a_change_may_give_a_mapping_that_the_file_leaves_out(tmp_path: Path) -> None:
    config = load(tmp_path, "optimizer={schedule: cosine}")
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.tables.kind == "rowwise_adagrad"


@pytest.mark.parametrize("change", ["epochs", "=3", "optimizer..kind=adam", ".epochs=3", "epochs.=3"])
def test_a_change_without_key_and_value_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(ValueError, match=r"--set .*expected key=value") as refusal:
        load(tmp_path, change)
    assert change in str(refusal.value)


@pytest.mark.parametrize("text", ["[1, 2", "{a: ", "2022-13-45", "!!python/object:os.system x", "&a [*a", "!!bool x"])
def test_a_change_that_is_not_yaml_is_refused_and_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"--set epochs=.*not valid YAML"):
        load(tmp_path, f"epochs={text}")


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("optimizer.dense.learning_rte=0.1", "learning_rate"),
        ("epoch=3", "epochs"),
        ("data.spilt=1", "split"),
        ("network.fusion.experts_per_tasks=1", "experts_per_task"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path, change: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="unknown key") as refusal:
        load(tmp_path, change)
    assert str(tmp_path / "training.yaml") in str(refusal.value)
    assert f"did you mean '{nearest}'" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("epochs=0", "epochs"),
        ("batch_size=-1", "batch_size"),
        ("batch_size=1.5", "batch_size"),
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("optimizer.dense.learning_rate=0", "optimizer.dense.learning_rate"),
        ("optimizer.dense.learning_rate=.inf", "optimizer.dense.learning_rate: Input should be a finite number"),
        ("optimizer.tables.learning_rate=.nan", "optimizer.tables.learning_rate"),
        ("optimizer.dense.learning_rate=fast", "optimizer.dense.learning_rate"),
        ("optimizer.dense.weight_decay=-0.1", "optimizer.dense.weight_decay"),
        ("optimizer.tables.kind=adamw", "optimizer.tables.kind"),
        ("optimizer.schedule=linear", "optimizer.schedule"),
        ("early_stopping.patience=0", "early_stopping.patience"),
        ("checkpoint_seconds=0", "checkpoint_seconds"),
        ("threads=0", "threads"),
        ("network.tower=[8, 0]", "network.tower"),
        ("data.path=[1]", "data.path"),
        ("data.split.train={mx: 4}", "data.split.train"),
        ("data.split.train=[[1]]", "data.split.train.list.0: expected a number, a text or a date"),
        ("data.split.train=null", "data.split.train.value: expected a number, a text or a date"),
        ("data.split.validation=on", "data.split: validation: got true or false"),
        ("data=null", "data"),
        ("epochs=on", "epochs"),
    ],
)
def test_a_value_out_of_range_is_refused_with_file_and_key(tmp_path: Path, change: str, key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")) as refusal:
        load(tmp_path, change)
    assert str(refusal.value).startswith(str(tmp_path / "training.yaml"))


@pytest.mark.parametrize("key", ["schema", "data", "network", "output"])
def test_a_required_key_left_out_is_named(tmp_path: Path, key: str) -> None:
    path = training_file(tmp_path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content[key]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{key}: Field required"):
        TrainingConfig.load(path)


@pytest.mark.parametrize("text", ["- a list", "just words", "", "a: 1\na: 2", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        TrainingConfig.load(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot be read"):
        TrainingConfig.load(tmp_path / "absent.yaml")


def test_a_date_written_without_quotes_is_read_as_its_text(tmp_path: Path) -> None:
    config = load(tmp_path, "data.split.train={max: 2022-05-05}", "data.split.validation=2022-05-06")
    assert config.data.split.train == Range(max=date(2022, 5, 5).isoformat())
    assert config.data.split.validation == "2022-05-06"


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load(tmp_path, "optimizer.schedule=cosine", "early_stopping=null", "network.fusion.levels=[8, 4]")
    assert TrainingConfig.from_mapping(yaml.safe_load(yaml.safe_dump(config.dump())), "dumped") == config


def test_a_fault_in_a_split_is_told_once_for_the_form_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown key 'mx'; did you mean 'max'") as refusal:
        load(tmp_path, "data.split.train={mx: 4}")
    assert str(refusal.value).count("data.split.train") == 1


def test_a_run_learns_the_tasks_that_are_named_in_their_order(tmp_path: Path) -> None:
    write_feed(tmp_path / "data")
    run = train(TrainingConfig.load(training_file(tmp_path, epochs=1, tasks=["watch", "click"])), show=False)
    assert [task.name for task in run.schema.tasks] == ["watch", "click"]
    assert len(Run.open(run.path).new_ranker().network.towers) == 2
    log = (run.path / LOG).read_text(encoding="utf-8")
    assert "validation_watch" in log
    assert "like" not in log


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["clik"], r"tasks: unknown task 'clik'; did you mean 'click'\? .*schema\.yaml"),
        (["click", "click"], "tasks: give each task once"),
        ([], "tasks"),
    ],
)
def test_tasks_that_a_feed_has_not_are_refused(tmp_path: Path, tasks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(TrainingConfig.load(training_file(tmp_path, tasks=tasks)), show=False)
