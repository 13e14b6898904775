"""The README does what it says: its blocks run, its figures stand in benchmarks/results, its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from model.value_models.value_model import FILE_NAME, ValueModels
from training.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_your_own_feed_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (make_data,) = _blocks("python")
    schema, config, value_models = _blocks("yaml")
    (tmp_path / "podcasts-schema.yaml").write_text(schema)
    (tmp_path / "podcasts.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    exec(compile(make_data, "README.md", "exec"), {})
    (commands,) = _blocks("sh")
    *training, serving = [shlex.split(line) for line in commands.splitlines()]
    assert serving == ["python", "-m", "service", "--models", "models"]
    for command in training:
        assert command[:3] == ["python", "-m", "training"]
        assert main(command[3:]) == 0
    scorer = Scorer.load(tmp_path / "models" / "podcasts" / "1")
    assert scorer.tasks == ["play", "minutes"]
    (tmp_path / FILE_NAME).write_text(value_models)
    assert ValueModels.from_yaml(tmp_path / FILE_NAME, scorer.domain).names == ["default", "careful", "custom"]
    # The data are made so that shows and listeners differ: a ranker that learned nothing would be at one half.
    evaluation = json.loads((tmp_path / "runs/podcasts/evaluation-test.json").read_text())
    assert evaluation["tasks"]["play"]["auc"]["low"] > 0.55


def test_the_request_of_the_readme_fits_the_simulated_feed() -> None:
    found = re.search(r"-d '(\{.*?\})'\n", README, flags=re.DOTALL)
    assert found is not None
    request = json.loads(found.group(1))
    schema = FeedSchema.from_yaml(ROOT / "configs/schemas/simulated.yaml")
    assert set(request["user"]) <= {feature.name for feature in schema.asked("request")}
    assert set(request["candidates"]["features"]) <= {feature.name for feature in schema.asked("candidate")}
    assert {len(column) for column in request["candidates"]["features"].values()} == {len(request["candidates"]["id"])}


def test_figures_are_those_of_the_results() -> None:
    results = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob("*.md"))
    measured = README.split("<!-- copied from benchmarks/results")[1].split("## A guided tour")[0]
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if row not in results] == []


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 7
    assert [link for link in links if not (ROOT / link).exists()] == []
