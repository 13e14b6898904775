"""The dashboard's file: as it is generated, with every panel in a place of its own."""

import itertools
import json
from typing import Any

import pytest
import yaml

from deploy import dashboard
from deploy.dashboard import Panel
from tests.deploy.programs import ROOT

GRAFANA = ROOT / "deploy/grafana"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def test_the_file_is_what_the_generator_writes() -> None:
    assert dashboard.DASHBOARD.read_text(encoding="utf-8") == dashboard.text(), "run python -m deploy.dashboard"


def test_panels_have_ids_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


def test_every_panel_explains_itself_and_names_its_alerts() -> None:
    shown = {panel["title"]: panel for panel in panels() if panel["type"] != "row"}
    assert "RankingShedding" in shown["Refused, by reason"]["description"]
    assert "Requests that the service refused to score" in shown["Refused, by reason"]["description"]
    assert "RankingScoreMeanOff" in shown["Mean answer, by task"]["description"]
    assert all(target["expr"] for panel in shown.values() for target in panel["targets"])


@pytest.mark.parametrize(
    ("panel", "said"),
    [
        (
            Panel("new", "ranking_request_total"),
            "'new' reads what is neither exported nor recorded: ranking_request_t",
        ),
        (Panel("new", "job:ranking_nothing:rate5m"), "neither exported nor recorded: job:ranking_nothing:rate5m"),
    ],
)
def test_a_panel_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, panel: Panel, said: str) -> None:
    monkeypatch.setattr(dashboard, "ROWS", {**dashboard.ROWS, "new": [panel]})
    with pytest.raises(ValueError, match=said):
        dashboard.text()


def test_a_metric_that_no_panel_shows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {title: panels for title, panels in dashboard.ROWS.items() if title != "Processes"}
    monkeypatch.setattr(dashboard, "ROWS", rows)
    with pytest.raises(
        ValueError, match="no panel shows ranking_impression_log, ranking_impression_log_conversions_failed, "
    ):
        dashboard.text()


def test_grafana_is_told_where_dashboard_and_data_are() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/feedrank.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/feedrank.yml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
