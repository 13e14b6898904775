"""`python -m deploy.dashboard`: writes Grafana's dashboard, deploy/grafana/dashboards/feedrank.json.

In: the panels (deploy/grafana/panels.yaml), the metrics with their help texts (service/metrics/metrics.py, and
metrics.py of the jobs that write textfiles), the alerts and recording rules (deploy/prometheus). Out: Grafana's JSON.
A panel says what its metrics are and which alerts read them. A panel of a metric that is not exported, and a metric
that no panel shows, are errors.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.metrics.metrics import Metrics
from training.experiment.metrics import METRICS as OF_EXPERIMENTS
from training.observed.metrics import METRICS as OF_ANSWERS

FOLDER = Path(__file__).parent
DASHBOARD = FOLDER / "grafana/dashboards/feedrank.json"
PANELS = FOLDER / "grafana/panels.yaml"
RULES = (FOLDER / "prometheus/recording.yml", FOLDER / "prometheus/alerts.yml")
# Of jobs that have ended, which no service exports.
TEXTFILE_METRICS = OF_ANSWERS | OF_EXPERIMENTS
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")
_HEIGHTS = {"stat": 4, "timeseries": 8, "heatmap": 8, "table": 8}
_WIDTH = 24


@dataclass(frozen=True)
class Panel:
    """One panel, as the file of panels has it."""

    title: str
    query: str = ""
    queries: dict[str, str] = field(default_factory=dict)
    unit: str = "short"
    kind: Literal["timeseries", "stat", "heatmap", "table"] = "timeseries"
    width: int = 8
    limits: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def by_legend(self) -> dict[str, str]:
        """Queries by their legends. The only one of a panel needs none."""
        return self.queries or {"": self.query}


# Panels side by side, by their heading.
ROWS = {
    row["title"]: [Panel(**panel) for panel in row["panels"]]
    for row in yaml.safe_load(PANELS.read_text(encoding="utf-8"))
}


def main() -> None:
    """Write the dashboard."""
    DASHBOARD.write_text(text(), encoding="utf-8")
    print(f"written: {DASHBOARD}")


def text() -> str:
    """The file as it should be."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "uid": "feedrank",
        "title": "feedrank",
        "description": "Made by python -m deploy.dashboard; changes here are lost.",
        "tags": ["feedrank"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "templating": {
            "list": [_source(), _variable("job", "ranking_workers"), _variable("model", "ranking_model_info")]
        },
        "annotations": {"list": [_version_marks()]},
        "panels": list(_panels()),
    }


def queries() -> Iterator[tuple[Panel, str]]:
    """Every query of every panel."""
    for panels in ROWS.values():
        for panel in panels:
            for query in panel.by_legend.values():
                yield panel, query


def rules() -> list[dict[str, Any]]:
    """Recording and alerting rules."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


class _Names:
    """Names in a query, with their meaning and other readers."""

    def __init__(self) -> None:
        collected: list[Metric] = list(text_string_to_metric_families(Metrics().exposition().decode()))
        self._help = {f"{one.name}{suffix}": one.documentation for one in collected for suffix in _SUFFIXES}
        self._help |= TEXTFILE_METRICS
        self._exported = {one.name for one in collected}
        self._recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
        self._alerts = {rule["alert"]: self._read_by(rule["expr"]) for rule in rules() if "alert" in rule}

    def _read_by(self, query: str) -> set[str]:
        """The names in a query, and those that recording rules make them of."""
        names = {name for name in _NAME.findall(query) if name in self._help or name in self._recorded}
        return names.union(*(self._read_by(self._recorded[name]) for name in names & self._recorded.keys()))

    def describe(self, panel: Panel) -> str:
        """Description of its metrics, and the alerts that read the same. Raises ValueError for one that is not
        there."""
        parts = [panel.note] if panel.note else []
        named = {name for query in panel.by_legend.values() for name in _NAME.findall(query)}
        unknown = {name for name in named if name.startswith("ranking_")} - self._help.keys()
        unknown |= {name for name in named if ":" in name} - self._recorded.keys()
        if unknown:
            raise ValueError(
                f"panel '{panel.title}' reads what is neither exported nor recorded: {', '.join(sorted(unknown))}"
            )
        shown = {name for name in named if name in self._help}
        parts += sorted({f"{self._help[name]}." for name in shown})
        recorded = sorted(named & self._recorded.keys())
        parts += [f"{name}: a recording rule." for name in recorded]
        alerts = sorted(name for name, read in self._alerts.items() if read & (shown | set(recorded)))
        return " ".join([*parts, *([f"Alerts: {', '.join(alerts)}."] if alerts else [])])

    def unseen(self) -> set[str]:
        """Metrics that no panel reads, itself or by a recording rule."""
        read = {name for _, query in queries() for name in self._read_by(query)}
        return {name for name in self._exported if not read & {f"{name}{suffix}" for suffix in _SUFFIXES}}


def _panels() -> Iterator[dict[str, Any]]:
    names = _Names()
    if unseen := names.unseen():
        raise ValueError(f"no panel shows {', '.join(sorted(unseen))}; add one to deploy/grafana/panels.yaml")
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1},
            "panels": [],
        }
        top += 1
        left = height = 0
        for panel in panels:
            if left + panel.width > _WIDTH:
                top, left, height = top + height, 0, 0
            number += 1
            place = {"x": left, "y": top, "w": panel.width, "h": _HEIGHTS[panel.kind]}
            yield {"id": number, "gridPos": place, **_panel(panel, names.describe(panel))}
            left += panel.width
            height = max(height, _HEIGHTS[panel.kind])
        top += height


def _panel(panel: Panel, description: str) -> dict[str, Any]:
    is_instant = panel.kind in ("stat", "table")
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legend or "__auto",
            "instant": is_instant,
            "range": not is_instant,
            "format": panel.kind if panel.kind in ("heatmap", "table") else "time_series",
        }
        for number, (legend, query) in enumerate(panel.by_legend.items())
    ]
    colours = ("orange", "red")[-len(panel.limits) :]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": limit} for colour, limit in zip(colours, panel.limits, strict=False)]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {}
    match panel.kind:
        case "timeseries":
            defaults |= {
                "custom": {"fillOpacity": 10, "thresholdsStyle": {"mode": "line" if panel.limits else "off"}},
            }
            options = {
                "legend": {"displayMode": "list", "placement": "bottom"},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
        case "heatmap":
            # Prometheus' buckets are cumulative. Grafana takes them apart.
            options = {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Oranges"},
            }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": description,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _variable(label: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
    }


def _version_marks() -> dict[str, Any]:
    return {
        "name": "Versions loaded",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": 'changes(max by (model, version) (ranking_model_loaded_timestamp_seconds{job=~"$job"})[2m:]) > 0',
        "titleFormat": "{{model}} {{version}} loaded",
        "step": "60s",
    }


if __name__ == "__main__":
    main()
