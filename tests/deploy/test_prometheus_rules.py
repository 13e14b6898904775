"""Configuration, rules and alerts, by the real promtool: they are valid, and every alert fires when it should alone."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.programs import ROOT, program

FOLDER = ROOT / "deploy/prometheus"
TESTS = ("alerts_test.yml", "alerts_days_test.yml")


def promtool(*arguments: str) -> None:
    run = subprocess.run(
        [program("promtool", "prometheus"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "local.yml"])
def test_configuration_is_valid(name: str) -> None:
    promtool("check", "config", name)


def test_rules_are_valid() -> None:
    promtool("check", "rules", "recording.yml", "alerts.yml")


@pytest.mark.parametrize("name", TESTS)
def test_alerts_fire_when_they_should(name: str) -> None:
    promtool("test", "rules", name)


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_every_alert_is_tested_firing() -> None:
    """The first lines of each of these tests check that no alert fires."""
    expected = {
        name
        for file in TESTS
        for test in yaml.safe_load((FOLDER / file).read_text(encoding="utf-8"))["tests"]
        for query in test["promql_expr_test"]
        for sample in query["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert expected == set(alerts())


@pytest.mark.parametrize("name", sorted(alerts()))
def test_every_alert_says_how_soon_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    # The page that this Prometheus serves: tests/deploy/test_runbook_page.py opens it.
    assert rule["annotations"]["runbook_url"] == "{{ $externalURL }}/user/runbook.html#" + name.lower()
    source = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    assert re.search(rf"# .*\n +- alert: {name}\n", source), "a line above it argues for its threshold"
