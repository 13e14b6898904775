"""A real Prometheus that scrapes a real service, by this repository's configuration and rules on a faster clock.

In: a service's address. Out: `Prometheus`, which answers PromQL. Scrapes and evaluations are a second apart instead of
15, and every duration of the rules, windows and `for` alike, is a sixtieth: made of the files at each run.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.programs import ROOT, free_port, program, running, wait_for

FOLDER = ROOT / "deploy/prometheus"
FASTER = 60
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WINDOW = re.compile(r"(\[|offset )(\d+)([smhd])")

Samples = list[dict[str, Any]]


class Prometheus:
    """Answers queries about what it has scraped."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def is_ready(self) -> bool:
        """True once it serves."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, query: str) -> Samples:
        """Value of an expression now: series with their labels."""
        return self._get("query", query=query)

    def over_time(self, query: str, seconds: float) -> Samples:
        """Values of an expression over the last seconds, every second of them."""
        now = time.time()
        return self._get("query_range", query=query, start=str(now - seconds), end=str(now), step="1")

    def value(self, query: str) -> float:
        """The one value of an expression. 0 where there is no series."""
        found = self.query(query)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """The alerts of a name that fire."""
        found = self._client.get("/api/v1/alerts").raise_for_status().json()["data"]["alerts"]
        return [one for one in found if one["labels"]["alertname"] == name and one["state"] == "firing"]

    def label_sets(self, metric: str) -> list[dict[str, str]]:
        """The labels of every series of a metric."""
        response = self._client.get("/api/v1/series", params={"match[]": f'{{__name__="{metric}"}}'})
        found: list[dict[str, str]] = response.raise_for_status().json()["data"]
        return found

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _get(self, kind: str, **parameters: str) -> Samples:
        answer = self._client.get(f"/api/v1/query{kind.removeprefix('query')}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters['query']}: {answer}"
        result: Samples = answer["data"]["result"]
        return result


@contextmanager
def prometheus_of(url: httpx.URL, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus of the repository's local configuration, with the service's address in place of the one there."""
    path = program("prometheus", "prometheus")
    config = yaml.safe_load((FOLDER / "local.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"{url.host}:{url.port}"]
    folder.mkdir()
    for name in config["rule_files"]:
        (folder / name).write_text(yaml.safe_dump(_faster(yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")))))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        *(path, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        *(f"--web.listen-address=127.0.0.1:{port}", f"--web.external-url=http://127.0.0.1:{port}/", "--log.level=warn"),
        f"--web.user-assets={FOLDER}/pages",
    ]
    with running(command, folder / "log"):
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        try:
            wait_for(prometheus.is_ready, (folder / "log").read_text)
            yield prometheus
        finally:
            prometheus.close()


def _faster(rules: dict[str, Any]) -> dict[str, Any]:
    def shorter(number: str, unit: str) -> str:
        return f"{max(1, int(number) * _SECONDS[unit] // FASTER)}s"

    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _WINDOW.sub(lambda found: found[1] + shorter(found[2], found[3]), rule["expr"])
            if "for" in rule:
                rule["for"] = shorter(rule["for"][:-1], rule["for"][-1])
    return rules
