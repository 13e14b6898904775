"""The page at /play in a real Chromium: every control, what a screen reader finds, and what it loads."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from tests.artifacts import TINY_REQUEST, publish_artifacts
from tests.service.play.chromium import Chromium
from tests.service.running import RunningService

VALUE_MODELS: dict[str, Any] = {
    "default": {"kind": "weighted_sum", "weights": {"click": 1.0, "like": 3.5, "play_time": -0.01}},
    "product": {"kind": "weighted_product", "exponents": {"click": 1.0, "play_time": -0.5}, "floor": 0.0001},
    "custom": {"kind": "expression", "formula": "click * (1 + like)"},
}
POLICIES = {"short": {"filter": ["duration_ms <= 30000"]}}
MOST_BYTES, MOST_REQUESTS = 60_000, 6
# Of one column, 0 for the first.
COLUMN = "document.querySelectorAll('.column')[{}]"
IDS = "[...{}.querySelectorAll('tbody th')].map((cell) => cell.textContent)"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    models = publish_artifacts(tmp_path_factory.mktemp("models"), 2)
    (models / "tiny/labels.yaml").write_text("{stable: 2, shadow: 1}")
    (models / "tiny/value_models.yaml").write_text(yaml.safe_dump(VALUE_MODELS))
    (models / "tiny/policies.yaml").write_text(yaml.safe_dump(POLICIES))
    log = tmp_path_factory.mktemp("log")
    with RunningService(models, "--impression-log", str(log)) as running:
        yield running.wait_ready()


class Page:
    """The page of a service in a browser."""

    def __init__(self, browser: Chromium, service: RunningService) -> None:
        self.browser = browser
        self._client = service.client
        self.url = str(service.client.base_url).rstrip("/")
        browser.run(f"await page.goto({json.dumps(self.url + '/play')})")

    def do(self, code: str) -> None:
        """Act on the page."""
        self.browser.run(code)

    def wait_status(self, pattern: str) -> str:
        """The line of status, once it has the pattern."""
        told = f"() => /{pattern}/.test(document.querySelector('#status').textContent)"
        self.browser.run(f"await page.waitForFunction({told})")
        return self.browser.show("#status")

    def rank(self) -> None:
        """Ask for a ranking, as anybody would."""
        self.do("await page.click('#rank')")
        self.wait_status("ranked")

    def write_request(self, request: Mapping[str, Any]) -> None:
        """Type a whole request."""
        self.do(f"await page.fill('#json', {json.dumps(json.dumps(request))}); await page.locator('#json').blur()")

    def ids(self, column: int = 0) -> list[str]:
        """The candidates of a column as ranked."""
        found: list[str] = self.browser.run(f"return await page.evaluate(() => {IDS.format(COLUMN.format(column))})")
        return found

    def wait_ids(self, ids: list[str], column: int = 0) -> None:
        """Wait until a column has this ranking."""
        ranked = IDS.format(COLUMN.format(column))
        self.do(f"await page.waitForFunction(() => {ranked}.join() === {json.dumps(','.join(ids))})")

    def served(self, **options: Any) -> list[str]:
        """The ranking of the service itself."""
        answer = self._client.post("/v1/rank", json={**TINY_REQUEST, **options})
        ids: list[str] = answer.json()["candidates"]["id"]
        return ids

    def drafted(self, draft: Mapping[str, Any]) -> list[str]:
        """The ranking of the service by a draft."""
        tried = self._client.post("/v1/play/rank", json={"request": TINY_REQUEST, "draft": draft}).json()
        return [tried["ids"][row] for row in tried["order"]]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium(viewport={"width": 1280, "height": 1000}) as browser:
        yield browser


@pytest.fixture
def page(chromium: Chromium, service: RunningService) -> Iterator[Page]:
    """A page that is just opened. At the end nothing has gone wrong in it, and nothing came from other hosts."""
    chromium.run("seen.errors.length = seen.requests.length = 0")
    opened = Page(chromium, service)
    opened.wait_status("golden request")
    yield opened
    seen = chromium.run("return seen")
    # A refusal is shown on the page. The browser notes it too.
    refused = re.compile(r"Failed to load resource: the server responded with a status of 422 \(")
    assert [error for error in seen["errors"] if not refused.match(error)] == []
    assert [one["url"] for one in seen["requests"] if not one["url"].startswith(str(service.client.base_url))] == []


def test_it_opens_in_few_requests_with_the_golden_request(page: Page) -> None:
    requests = page.browser.run("return seen.requests")
    assert len(requests) <= MOST_REQUESTS
    assert sum(one["bytes"] for one in requests) <= MOST_BYTES
    shown = page.browser.run(
        "return await page.$$eval('#user label', (all) => all.map((one) => [one.textContent, one.children[0].value]))"
    )
    assert {name: value if name == "country" else json.loads(value) for name, value in shown} == TINY_REQUEST["user"]
    assert (
        json.loads(page.browser.run("return await page.inputValue('#json')"))["candidates"]
        == TINY_REQUEST["candidates"]
    )


def test_it_ranks_as_the_service_does_and_says_why(page: Page) -> None:
    page.rank()
    assert page.ids() == page.served()
    bars = page.browser.run(
        "return await page.$$eval('svg.bar', (all) => all.map((one) => one.getAttribute('aria-label')))"
    )
    answered = page._client.post("/v1/rank", json={**TINY_REQUEST, "explain": True}).json()
    for place, told in enumerate(bars):
        said = dict(part.rsplit(" ", 1) for part in told.split(", "))
        given = {name: values[place] for name, values in answered["explain"]["contributions"].items()}
        assert said.keys() == given.keys()
        # Four digits are shown.
        np.testing.assert_allclose([float(said[name]) for name in given], list(given.values()), rtol=1e-3)
    assert "lists cut: history 1" in page.browser.show(".inputs")
    assert "missing: " in page.browser.show(".inputs")
    assert "unknown ids: topics 1" in page.browser.show(".inputs")
    first = page.ids()[0]
    page.do("await page.click('tbody tr button')")
    assert page.browser.show("#detail-title") == f"Candidate {first}"
    page.do("await page.click('#experts'); await page.waitForSelector('#expert-weights table')")
    assert page.browser.show("#expert-weights").count("weight of each expert") == 2


def test_any_field_of_the_request_can_be_another(page: Page) -> None:
    page.do("await page.fill('#user label:has-text(\"country\") input', 'de')")
    page.do("await page.selectOption('#candidate', '1')")
    page.do("await page.fill('#features label:has-text(\"video_id\") input', '77')")
    assert "rank again" in page.browser.show("#status")
    request = json.loads(page.browser.run("return await page.inputValue('#json')"))
    assert request["user"]["country"] == "de"
    assert request["candidates"]["features"]["video_id"][1] == 77
    page.rank()
    answer = page._client.post(
        "/v1/rank", json={**TINY_REQUEST, **{key: request[key] for key in ("user", "candidates")}}
    )
    assert page.ids() == answer.json()["candidates"]["id"]
    rows = [{"id": "z", "features": {"video_id": 3}}, {"id": "y", "features": {}}]
    page.do("await page.click('details summary')")
    page.write_request({"user": {}, "candidates": rows})
    page.rank()
    assert sorted(page.ids()) == ["y", "z"]
    page.do("await page.fill('#json', '{]'); await page.locator('#json').blur()")
    assert page.wait_status("is not taken")
    page.write_request({"user": {"age_days": "x"}, "candidates": {"id": ["a"], "features": {}}})
    page.do("await page.click('#rank')")
    assert "user.age_days" in page.wait_status("user")


def test_sliders_rank_again_at_once_as_the_service_would(page: Page) -> None:
    page.rank()
    sent = len(page.browser.run("return seen.requests"))
    for weights in ({"like": -4.0, "play_time": 0.02}, {"like": 0.0, "click": -1.0}):
        for output, weight in weights.items():
            page.do(f"await page.fill('#weight-A-{output}', '{weight}')")
        draft = {**VALUE_MODELS["default"], "weights": {**VALUE_MODELS["default"]["weights"], **weights}}
        if "click" in weights:
            draft["weights"]["play_time"] = 0.02
        page.wait_ids(page.drafted(draft))
    assert len(page.browser.run("return seen.requests")) == sent
    page.do("await page.click('.copy')")
    assert yaml.safe_load(page.browser.show(".yaml")) == {"default": draft}
    moved = page.browser.run(
        "return await page.$$eval('td.move .hidden-text', (all) => all.map((one) => one.textContent))"
    )
    assert len(moved) == sum(now != then for now, then in zip(page.ids(), page.served(), strict=True))
    page.do("await page.click('.reset')")
    page.wait_ids(page.served())


@pytest.mark.parametrize("name", ["product", "custom"])
def test_products_and_formulas_can_be_edited(page: Page, name: Literal["product", "custom"]) -> None:
    page.rank()
    page.do(f"await page.selectOption('.value-model', '{name}')")
    page.wait_ids(page.served(value_model=name))
    if name == "product":
        page.do("await page.fill('#weight-A-play_time', '0.9')")
        page.do("await page.fill('.weights label:has-text(\"floor\") input', '0.2')")
        exponents = {"click": 1.0, "play_time": 0.9}
        page.wait_ids(page.drafted({"kind": "weighted_product", "exponents": exponents, "floor": 0.2}))
        return
    page.do("await page.fill('.weights textarea', '1 - like')")
    page.wait_ids(page.drafted({"kind": "expression", "formula": "1 - like"}))
    page.do("await page.fill('.weights textarea', '1 - lik')")
    assert "did you mean 'like'" in page.wait_status("unknown task")


def test_two_columns_stand_side_by_side_with_what_moves(page: Page) -> None:
    page.rank()
    page.do("await page.check('#compare')")
    page.wait_ids(page.served(), 1)
    page.do("await page.locator('.version').nth(1).selectOption('1')")
    page.wait_ids(page.served(version="1"), 1)
    first, second = page.ids(), page.ids(1)
    cells = f"[...{COLUMN.format(1)}.querySelectorAll('td.move')].map((one) => one.lastChild.textContent)"
    moves = page.browser.run(f"return await page.evaluate(() => {cells})")
    for place, (identifier, move) in enumerate(zip(second, moves, strict=True)):
        by = first.index(identifier) - place
        assert move == ("=" if by == 0 else f"{'up' if by > 0 else 'down'} {abs(by)}")
    page.do("await page.locator('.policy').nth(1).selectOption('short')")
    page.wait_ids(page.served(version="1", policy="short"), 1)
    assert "dropped: filter" in page.browser.run("return await page.locator('.inputs').nth(1).innerText()")
    page.do("await page.click('#compare-logged')")
    page.wait_status("logged requests? compared")
    assert "any of the first 5" in page.browser.show("#logged-result")
    page.do("await page.uncheck('#compare')")
    assert page.browser.run("return await page.isVisible('#logged')") is False
    assert page.browser.run("return await page.locator('.column').count()") == 1


SERIOUS = """
await page.evaluate((source) => { (0, eval)(source); }, axe);
return await page.evaluate(async () => {
  const { violations, passes } = await axe.run();
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return { passes: passes.length, found: serious.map(({ id, nodes }) => [id, nodes[0].html, nodes[0].failureSummary]) };
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_and_a_keyboard_can_use_it(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.do(f"await page.emulateMedia({{ colorScheme: '{scheme}' }})")
    page.do("await page.focus('#rank'); await page.keyboard.press('Enter')")
    page.wait_status("ranked")
    page.do("await page.focus('#compare'); await page.keyboard.press('Space')")
    page.wait_ids(page.served(), 1)
    before = float(page.browser.run("return await page.inputValue('#weight-A-like')"))
    page.do("await page.focus('#weight-A-like'); await page.keyboard.press('ArrowLeft')")
    assert float(page.browser.run("return await page.inputValue('#weight-A-like')")) < before
    page.do("await page.focus('tbody tr button'); await page.keyboard.press('Enter')")
    page.do("await page.click('#experts'); await page.waitForSelector('#expert-weights table')")
    audit = page.browser.run(SERIOUS)
    assert audit["found"] == []
    assert audit["passes"] > 20
    # The auditor does find what is wrong.
    page.do("await page.evaluate(() => { document.querySelector('details').open = true; })")
    page.do("await page.$eval('#json', (text) => text.parentElement.replaceWith(text))")
    assert [one[0] for one in page.browser.run(SERIOUS)["found"]] == ["label"]


def test_it_fits_a_phone(page: Page) -> None:
    page.do("await page.setViewportSize({ width: 360, height: 740 })")
    page.do("await page.check('#compare')")
    page.rank()
    widths = page.browser.run("return await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth])")
    page.do("await page.setViewportSize({ width: 1280, height: 1000 })")
    assert widths[0] <= widths[1]


def test_a_key_is_asked_for_and_kept_nowhere(tmp_path: Path, chromium: Chromium) -> None:
    models = publish_artifacts(tmp_path / "models", 1)
    keys = tmp_path / "keys.yaml"
    given = (("maker", "play", b"opens"), ("chief", "admin", b"decides"))
    entries = [{"name": n, "scopes": [s], "sha256": hashlib.sha256(key).hexdigest()} for n, s, key in given]
    keys.write_text(yaml.safe_dump({"keys": entries}))
    with RunningService(models, "--keys-file", str(keys)) as running:
        page = Page(chromium, running.wait_ready())
        page.wait_status("a key is needed")
        assert page.browser.run("return await page.isVisible('#desk')") is False
        page.do("await page.fill('#key', 'wrong'); await page.keyboard.press('Enter')")
        page.wait_status("is not known")
        page.do("await page.fill('#key', 'opens'); await page.keyboard.press('Enter')")
        page.wait_status("golden request")
        page.rank()
        kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
        stored = page.browser.run(f"return await page.evaluate(() => {kept})")
        assert stored == [0, 0, "", f"{page.url}/play"]
        assert page.browser.run("return await page.inputValue('#key')") == ""
        # An admin's key saves what was tried, under the version of the file that the page saw.
        page.do("await page.fill('#weight-A-like', '-1.5'); await page.click('.open-save')")
        assert page.browser.run(SERIOUS)["found"] == []
        page.do("await page.fill('.save .name', 'fewer_likes'); await page.click('.save button')")
        page.wait_status("lacks the scope 'admin'")
        page.do("await page.fill('.save .admin', 'decides'); await page.click('.save button')")
        page.wait_status("saved as fewer_likes")
        saved = yaml.safe_load((models / "tiny/value_models.yaml").read_text())
        assert saved["fewer_likes"] == {"kind": "weighted_sum", "weights": {"click": 1.0, "like": -1.5}}
        assert page.browser.run("return await page.inputValue('.value-model')") == "fewer_likes"
        (models / "tiny/value_models.yaml").write_text(yaml.safe_dump({"default": saved["default"]}))
        page.do("await page.click('.open-save'); await page.fill('.save .admin', 'decides')")
        page.do("await page.click('.save button')")
        page.wait_status("not as it was seen")
