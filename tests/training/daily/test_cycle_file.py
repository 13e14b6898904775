"""The cycle's file, and that it fits the files that it names. Each fault says its place and what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.programs import ROOT
from tests.training.daily.nights import Feed
from training.__main__ import main
from training.daily.cycle_file import Cycle, CycleFile


def refusal(feed: Feed) -> str:
    with pytest.raises(ValueError, match=r"\S") as refused:
        Cycle.load(feed.file)
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"model": "a/b"}, "model"),
        ({"publish": {"label": "canary"}}, "a canary is judged by what users did, which `join` brings"),
        ({"publish": {"label": "stable", "share": 0.1}}, "share: is a canary's, and the label is stable"),
        ({"publish": {"label": None, "share": 0.1}}, "the label is none"),
        ({"publish": {"label": "canary", "share": 0.7}, "join": "join.yaml"}, "publish.share"),
        ({"publish": {"label": "canary"}, "join": "join.yaml"}, "judge: is missing"),
        ({"start": {"warm": "never", "cold": "never"}}, "no version would ever be trained"),
        ({"start": {"cold": "hourly"}}, "start.cold"),
        ({"quality_gate": {"max_worse": 2}}, "quality_gate.max_worse"),
        ({"calibrate": "plat"}, "calibrate"),
        ({"train": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
    ],
)
def test_a_fault_of_the_file_is_one_line_that_names_it(
    tmp_path: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = Feed(tmp_path)
    feed.write_files(**changes)
    assert said in refusal(feed)
    assert main(["daily", str(feed.file)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_weight_of_no_output_is_refused_before_a_canary_is_published(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write_files()
    outputs = list(Cycle.load(feed.file).training.feed_schema().outputs)
    feed.write_files(judge={"horizon": "24h", "at_most": "7d", "realised": {outputs[0]: 1.0, "likes": 1.0}})
    assert "judge.realised: 'likes' is no output of" in (said := refusal(feed))
    assert all(output in said for output in outputs)
    feed.write_files(judge={"horizon": "24h", "at_most": "7d", "realised": dict.fromkeys(outputs, 1.0)})
    Cycle.load(feed.file)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("split", {"column": "date", "train": 1, "validation": 2}, "names fixed days"),
        ("end", "2026-11-01", "data.split.end: is the cycle's to choose"),
        ("exclude", ["2026-11-01"], "data.split.exclude: is the cycle's to choose"),
        ("test", {"days": 1}, "validates on one day"),
        ("validation", {"days": 2}, "validates on one day"),
        ("group_by", None, "data.group_by: is missing"),
        ("init_from", "models/clips/1", "init_from: is the cycle's to choose"),
    ],
)
def test_a_training_file_that_does_not_fit_is_refused(tmp_path: Path, key: str, value: object, said: str) -> None:
    feed = Feed(tmp_path)
    feed.write_files()
    path = tmp_path / "training.yaml"
    content = yaml.safe_load(path.read_text())
    if key in ("split", "group_by"):
        content["data"][key] = value
    elif key == "init_from":
        content[key] = value
    else:
        content["data"]["split"][key] = value
    path.write_text(yaml.safe_dump(content))
    assert said in refusal(feed)
    assert str(path) in refusal(feed)


def test_a_join_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    join = {"schema": "s", "impressions": "i", "events": "e", "out": "o", "labels": {"is_click": {"event": "click"}}}
    (tmp_path / "join.yaml").write_text(yaml.safe_dump(join))
    feed.write_files(join=str(tmp_path / "join.yaml"))
    assert "writes its rows to o; name that folder" in refusal(feed)


def test_a_join_of_another_model_is_refused(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    out = str(tmp_path / "data")
    join = {"schema": "s", "impressions": "i", "events": "e", "out": out, "labels": {"is_click": {"event": "click"}}}
    for model, is_own in (("clips", True), ("films", False)):
        (tmp_path / "join.yaml").write_text(yaml.safe_dump({**join, "model": model}))
        feed.write_files(join=str(tmp_path / "join.yaml"))
        if is_own:
            assert Cycle.load(feed.file).join is not None
        else:
            assert "joins the impressions of films" in refusal(feed)


def test_the_shipped_cycle_says_what_leaving_keys_out_says() -> None:
    cycle = Cycle.load(ROOT / "configs" / "daily.yaml")
    keys = yaml.safe_load((ROOT / "configs" / "daily.yaml").read_text())
    assert cycle.file.judge is not None
    assert cycle.file.judge.realised is not None
    # The keys that the file writes out are the defaults, as its reader may take them for.
    bare = CycleFile.model_validate({key: keys[key] for key in ("models", "model", "train", "join", "judge")})
    for key in ("start", "data_gate", "quality_gate", "calibrate"):
        assert getattr(cycle.file, key) == getattr(bare, key)
    assert cycle.file.publish.canary_share == bare.publish.canary_share


def test_options_that_go_against_each_other_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feed = Feed(tmp_path)
    feed.write_files()
    assert main(["daily", str(feed.file), "--pause", "--resume"]) == 2
    assert "give one of them" in capsys.readouterr().err
    for wrong in (["--now", "2026-11-30"], ["--now", "yesterday"], ["--release", "soon"]):
        with pytest.raises(SystemExit):
            main(["daily", str(feed.file), *wrong])
        assert "expected a" in (said := capsys.readouterr().err) or "has no time zone" in said
