"""The pages do what they say: their blocks run, their figures are those of the results, their links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from model.value_models.value_model import FILE_NAME, ValueModels
from training.__main__ import main
from training.compare.experiment import Experiment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks/results"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "clients/python/README.md",
    ROOT / "clients/typescript/README.md",
    RESULTS / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def _blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def test_your_own_feed_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (make_data,) = _blocks("python")
    schema, config = _blocks("yaml")
    (value_models,) = _blocks("yaml", _page("exporting.md"))
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
    assert scorer.outputs == ["play", "minutes"]
    (tmp_path / FILE_NAME).write_text(value_models)
    assert ValueModels.from_yaml(tmp_path / FILE_NAME, scorer.domain).names == ["default", "careful", "custom"]
    # The data are made so that shows and listeners differ: a ranker that learned nothing would be at one half.
    evaluation = json.loads((tmp_path / "runs/podcasts/evaluation-test.json").read_text())
    assert evaluation["tasks"]["play"]["auc"]["low"] > 0.55


def test_the_search_of_the_comparing_page_is_read(tmp_path: Path) -> None:
    """Its block in place of the networks of a shipped experiment."""
    (block,) = re.findall(r"^```\n(search:.*?)^```$", _page("comparing.md"), flags=re.MULTILINE | re.DOTALL)
    shipped = yaml.safe_load((ROOT / "configs/experiments/simulated.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({**shipped, **yaml.safe_load(block), "baseline": "ple"}))
    assert [network.name for network in Experiment.from_yaml(path).networks] == ["ple", "lightgbm"]


def test_the_request_of_the_readme_fits_the_simulated_feed() -> None:
    found = re.search(r"-d '(\{.*?\})'\n", README, flags=re.DOTALL)
    assert found is not None
    request = json.loads(found.group(1))
    schema = FeedSchema.from_yaml(ROOT / "configs/schemas/simulated.yaml")
    assert set(request["user"]) <= {feature.name for feature in schema.requested("request")}
    assert set(request["candidates"]["features"]) <= {feature.name for feature in schema.requested("candidate")}
    assert {len(column) for column in request["candidates"]["features"].values()} == {len(request["candidates"]["id"])}


def test_tables_of_the_benchmarks_page_are_those_of_the_results() -> None:
    results = "\n".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md"))
    rows = [line for line in _page("benchmarks.md").splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if row not in results] == []


def test_reasons_of_the_readme_have_the_figures_of_the_results_that_they_name() -> None:
    section = README.split("## Why not what you would pick instead")[1].split("\n## ")[0]
    reasons = re.findall(r"^\* (.*?)(?=^\* |\n\n|\Z)", section, flags=re.MULTILINE | re.DOTALL)
    assert len(reasons) == 3
    for reason in reasons:
        (named,) = re.findall(r"\((benchmarks/results/\w+\.md)\)", reason)
        figures = re.findall(r"\d+\.\d+|\d+,\d{3}", reason)
        assert len(figures) >= 3
        result = (ROOT / named).read_text(encoding="utf-8")
        assert [figure for figure in figures if figure not in result] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    wrong = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            wrong.append(link)
    assert wrong == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
