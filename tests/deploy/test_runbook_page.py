"""The runbook's page that alerts link to: made of docs/runbook.md, and there where a firing alert says."""

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
import yaml

from deploy import runbook_page
from tests.deploy.monitored import FOLDER, prometheus_of
from tests.deploy.programs import ROOT, free_port, wait_for

ALERTS = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


class Ids(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each element."""
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]


def test_the_page_is_what_the_generator_writes() -> None:
    assert runbook_page.TARGET.read_text(encoding="utf-8") == runbook_page.page(), "run make manifests"


def test_links_of_the_page_lead_to_its_own_headings() -> None:
    found = Ids(runbook_page.page())
    assert len(found.ids) == len(set(found.ids))
    assert found.links
    assert {link for link in found.links if not link.startswith("http")} <= {f"#{name}" for name in found.ids}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_links_to_its_heading(alert: dict[str, dict[str, str]]) -> None:
    url, _, name = alert["annotations"]["runbook_url"].partition("#")
    assert Path(url).name == runbook_page.TARGET.name
    assert name in Ids(runbook_page.page()).ids


def test_a_firing_alert_of_a_real_prometheus_leads_to_its_section(tmp_path: Path) -> None:
    """Of a service that does not run: its scrapes fail."""
    with prometheus_of(httpx.URL(f"http://127.0.0.1:{free_port()}"), tmp_path / "prometheus") as prometheus:
        wait_for(lambda: bool(prometheus.alerts("RankingTargetDown")))
        (alert,) = prometheus.alerts("RankingTargetDown")
        link = httpx.URL(alert["annotations"]["runbook_url"])
        answer = httpx.get(link, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert link.fragment in Ids(answer.text).ids


def test_whoever_starts_prometheus_is_told_to_serve_the_page() -> None:
    """compose, monitoring.md and the configuration for a bare host."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["prometheus"]
    assert "--web.user-assets=/etc/prometheus/pages" in compose["command"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in compose["volumes"]
    assert "--web.external-url=http://127.0.0.1:9090/" in compose["command"]
    assert compose["ports"] == ["127.0.0.1:9090:9090"]
    for place in ("docs/monitoring.md", "deploy/prometheus/local.yml"):
        text = (ROOT / place).read_text(encoding="utf-8").replace("\\\n", " ")
        (command,) = re.findall(r"prometheus --config\.file[^`\n]*", text)
        (assets,) = [word.partition("=")[2] for word in shlex.split(command) if word.startswith("--web.user-assets")]
        assert ROOT / assets / runbook_page.TARGET.name == runbook_page.TARGET
