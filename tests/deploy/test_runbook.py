"""docs/runbook.md and docs/deployment.md: a section for each alert, none besides, nothing named that is not there."""

import re
from pathlib import Path

import pytest
import yaml

from service.metrics.metrics import ENDPOINTS, Metrics
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("runbook.md", "deployment.md")}
RUNBOOK = PAGES["runbook.md"]


def _alerts() -> set[str]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def _sections() -> dict[str, str]:
    parts = re.split(r"^#{2,3} (.+)$", RUNBOOK, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_alert_has_its_section_and_says_what_to_do() -> None:
    sections = {name: text for name, text in _sections().items() if name.startswith("Ranking")}
    assert set(sections) == _alerts()
    for name, text in sections.items():
        meaning, *steps = re.split(r"^- (Check|Do): ", text.strip(), flags=re.MULTILINE)
        assert meaning.strip(), name
        assert steps[0::2] == ["Check", "Do"], name
    assert "Roll back" in _sections()


def test_settings_and_flags_are_the_service_s() -> None:
    known = set(Settings.model_fields)
    others = {"FEEDRANK_BUILD_IMAGE"}
    for name, text in PAGES.items():
        named = set(re.findall(r"\bFEEDRANK_[A-Z_]+\b", text)) - others
        assert {variable.removeprefix("FEEDRANK_").lower() for variable in named} <= known, name
    table = RUNBOOK.split("## Coming from TorchServe")[1]
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([a-z-]+)`", table)}
    assert len(flags) > 8
    assert flags <= known


def test_metrics_are_the_service_s() -> None:
    exported = set(re.findall(rb"^# TYPE (\w+)", Metrics().exposition(), re.MULTILINE))
    named = set(re.findall(r"\branking_[a-z_]+\b", RUNBOOK))
    assert len(named) > 10
    assert {metric.encode() for metric in named} <= exported


def test_routes_are_the_service_s() -> None:
    named = set(re.findall(r"(?<=[`L ])/(?:v1|v2|healthz|readyz|metrics)[\w/{}]*", RUNBOOK))
    templates = [re.sub(r"\\\{\w+\\\}", r"[^/]+", re.escape(endpoint)) for endpoint in ENDPOINTS if endpoint != "other"]
    assert len(named) > 5
    assert [route for route in named if not any(re.fullmatch(template, route) for template in templates)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    text = PAGES[page]
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (ROOT / "docs" / target).exists(), target
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in {heading.lower().replace(" ", "-") for heading in _sections()}, anchor
    for path in re.findall(r"`(deploy/[\w./-]+|requirements/|docker-compose\.yml|Dockerfile)`", text):
        assert (ROOT / path).exists(), path
    verbs = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", text)) <= verbs
