"""The page at `/`, as a browser would read it."""

import asyncio
import base64
import hashlib
import logging
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

import service.watch.status_page
from model.rollout.journal import Content
from service.metrics.metrics import Metrics
from service.watch.status_page import StatusPage, Window
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of


class Text(HTMLParser):
    """The text of a page, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loaded: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that needs an end, and addresses that are loaded."""
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]

    def handle_endtag(self, tag: str) -> None:
        """Ends are in order."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text, but no style."""
        if "style" not in self._open:
            self.words += data.split()

    def __str__(self) -> str:
        return " ".join(self.words)


def wait_for(client: TestClient, pattern: str) -> str:
    """The page's text, once it holds the pattern."""
    for _ in range(500):
        answer = client.get("/")
        assert answer.status_code == 200
        text = str(Text(answer.text))
        if re.search(pattern, text):
            return text
        time.sleep(0.02)
    raise AssertionError(text)


def test_what_is_served_and_how_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.watch.status_page, "NOTE_SECONDS", 0.05)
    publish_artifact(tmp_path)
    publish_artifact(tmp_path, spoil=0.5)  # its golden requests do not verify
    with client_of(tmp_path) as client:
        text = wait_for(client, "1 of 1 workers ready")
        assert "quarantined" in text
        assert "version 1 is served" in text
        assert re.search(r"2 quarantined .*golden_requests.json", text)
        assert "model version quarantined tiny 2" in text  # among the last errors
        for _ in range(5):
            client.post("/v1/rank", json=TINY_REQUEST)
        client.post("/v1/rank", json={})
        text = wait_for(client, r"200 \d+\.\d\d 422 \d+\.\d\d")
        assert re.search(r"1 ready torchscript 200: \d", text)
        median, p99 = re.findall(r"([\d.]+) ms (?:median|p99) latency", text)
        assert 0 < float(median) <= float(p99)
        page = client.get("/")
        # Nothing is loaded from anywhere, and nothing could be.
        assert Text(page.text).loaded == ["data:,"]
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert str(tmp_path) not in page.text


def test_value_models_and_policies_are_named_with_their_versions(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    (tmp_path / "tiny/policies.yaml").write_text("short: {filter: [duration_ms <= 30000]}")
    with client_of(tmp_path) as client:
        entry = client.get("/v1/models/tiny").json()
        text, links = wait_for(client, "value models:"), client.get("/").text
    for key, words in (("value_models", "value models"), ("policies", "policies")):
        (one,) = entry[key]
        assert f"{words}: {one['name']} {one['version']}" in text
    assert 'href="play"' in links
    with client_of(tmp_path, play="off") as client:
        assert 'href="play"' not in client.get("/").text


def test_drift_lists_what_is_above_its_threshold_and_folds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = [("m", "1", "task click", 0.9), ("m", "1", "task like", 0.26), ("m", "1", "feature tab", 0.25)]
    page = StatusPage(Metrics(), list, lambda *_: Content(), lambda: None)

    def drift(found: list[tuple[str, str, str, float]]) -> tuple[str, str]:
        monkeypatch.setattr(service.watch.status_page, "_drifts", lambda _: found)
        rendered = page.render()
        shown, _, folded = rendered.split("<h2>Drift</h2>")[1].split("<h2>Last")[0].partition("<details>")
        return str(Text(shown)), folded

    shown, folded = drift(indices)
    assert ("task click 0.900" in shown, "task like 0.260" in shown, "feature tab" in shown) == (True, True, False)
    assert "1 at or below 0.25" in folded
    assert "feature tab" in folded
    shown, folded = drift(indices[2:])
    assert "Nothing is above 0.25" in shown
    assert "feature tab" in folded
    assert drift([]) == ("Too few requests to tell.", "")


def test_what_comes_from_outside_is_text(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        fields = {"request_id": "<script>alert(1)</script>"}
        logging.getLogger("feedrank").warning("<b>bold</b>", extra={"fields": fields})
        page = client.get("/").text
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>bold" not in page


def test_without_a_model_it_says_so(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        assert "not ready: the models folder has no published version" in wait_for(client, "No model is there")


def test_a_browser_is_asked_for_a_key(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    keys = tmp_path / "keys.yaml"
    entries = [
        {"name": name, "scopes": [scope], "sha256": hashlib.sha256(f"{name}-key".encode()).hexdigest()}
        for name, scope in (("watcher", "metrics"), ("feed", "score"))
    ]
    keys.write_text(yaml.safe_dump({"keys": entries}))

    def basic(text: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    with client_of(tmp_path / "models", keys_file=keys) as client:
        asked = client.get("/")
        assert asked.status_code == 401
        assert asked.headers["www-authenticate"].startswith("Basic ")
        assert client.get("/", headers=basic("anyone:watcher-key")).status_code == 200
        assert client.get("/", headers={"Authorization": "Bearer watcher-key"}).status_code == 200
        assert client.get("/", headers=basic("anyone:feed-key")).status_code == 403
        for wrong in (
            basic("anyone:other"),
            basic("watcher-key"),
            {"Authorization": "Basic !"},
            basic("a:" + "x" * 9_000),
        ):
            assert client.get("/", headers=wrong).status_code == 401
        # Nothing but the page takes a password: other sites could have a browser send it.
        assert client.get("/metrics", headers=basic("anyone:watcher-key")).status_code == 401


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_quantiles_are_those_of_the_values_to_within_their_bucket(share: float) -> None:
    generator = np.random.default_rng(0)
    bounds = [0.001, 0.01, 0.1, 1.0, float("inf")]
    early, late = generator.lognormal(-4, 1, 1_000), generator.lognormal(-3, 1, 4_000)

    def samples(values: np.ndarray) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            ("x_bucket", frozenset({("le", str(bound)), ("endpoint", "/v1/rank")})): float((values <= bound).sum())
            for bound in bounds
        }

    window = Window(samples(early), samples(np.concatenate([early, late])), 60.0)
    told = window.quantile("x", share, endpoint=("/v1/rank",))
    exact = float(np.quantile(late, share))
    upper = next(bound for bound in bounds if bound >= exact)
    lower = max([bound for bound in bounds if bound < exact], default=0.0)
    assert told is not None
    assert lower <= told <= upper
    assert window.quantile("x", share, endpoint=("/v2",)) is None


def test_what_is_kept_does_not_grow_with_what_there_is_to_scrape() -> None:
    metrics = Metrics()
    page = StatusPage(metrics, list, lambda *_: Content(), lambda: None)
    asyncio.run(notes(page, 1))
    before = len(page._notes[0].samples)
    for version in range(100):
        metrics.task_score.labels("tiny", str(version), "click").observe(0.5)
    asyncio.run(notes(page, 2))
    assert len(page._notes[1].samples) == before


async def notes(page: StatusPage, number: int) -> None:
    """Make the page note the metrics until it has so many notes."""
    keeping = asyncio.create_task(page.keep_notes())
    while len(page._notes) < number:
        await asyncio.sleep(0.001)
    keeping.cancel()


def test_a_counter_that_began_anew_counts_from_0() -> None:
    def of(value: float) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {("c", frozenset({("code", "200")})): value}

    assert Window(of(100), of(160), 10).by_label("c", "code") == {"200": 6.0}
    assert Window(of(100), of(30), 10).by_label("c", "code") == {"200": 3.0}
    assert Window({}, of(30), 10).rate("c") == 3.0
