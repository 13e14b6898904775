"""`make bench-page`: the page at /play in a real Chromium, from its address to its first paint, and a slider's ranking.

    python -m benchmarks.page [--loads 9] [--inputs 20]

One service and one headless Chromium on one host, on loopback. Loads are warm: the browser has the files, and asks
whether they have changed. Paint is the browser's own `first-contentful-paint`. A slider's time is from its input event
to the second animation frame after it, which shows the new ranking.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from tests.artifacts import publish_artifact
from tests.service.play.chromium import Chromium
from tests.service.running import RunningService

CANDIDATES = 500
_OPENED = "await page.waitForFunction(() => /golden/.test(document.querySelector('#status').textContent));"
_PAINT = """
return await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
"""
_SLIDE = """
return await page.evaluate(async (count) => {
  const slider = document.querySelector("input[type=range]");
  const first = () => document.querySelector("tbody").textContent;
  const spent = [];
  let changed = 0;
  for (let at = 0; at < count; at += 1) {
    const before = first();
    slider.value = at % 2 ? slider.max : slider.min;
    const start = performance.now();
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    spent.push(performance.now() - start);
    changed += before !== first();
  }
  return { spent, changed };
}, COUNT);
"""


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=9)
    parser.add_argument("--inputs", type=int, default=20)
    options = parser.parse_args()
    with ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        publish_artifact(models, "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(CANDIDATES, 0))
        service = stack.enter_context(RunningService(models)).wait_ready()
        browser = stack.enter_context(Chromium(viewport={"width": 1280, "height": 900}))
        address = json.dumps(f"{str(service.client.base_url).rstrip('/')}/play")
        browser.run(f"await page.goto({address}); {_OPENED}")
        cold = browser.run("return seen.requests")
        paints = []
        for _ in range(options.loads):
            browser.run(f"await page.goto('about:blank'); await page.goto({address}); {_OPENED}")
            paints.append(float(browser.run(_PAINT)))
        browser.run("await page.click('#rank'); await page.waitForSelector('tbody tr')")
        slid = browser.run(_SLIDE.replace("COUNT", str(options.inputs)))
        errors = browser.run("return seen.errors")
    assert slid["changed"] == options.inputs, "an input did not change the ranking"
    assert errors == [], errors
    # The golden request is of the model, not of the page.
    files = sum(one["bytes"] for one in cold if "/v1/" not in one["url"])
    data = sum(one["bytes"] for one in cold if "/v1/" in one["url"])
    rows = [
        ["requests of a load", str(len(cold)), "6"],
        ["kB of its files", f"{files / 1e3:.1f}", "60"],
        [f"kB of its data, with a golden request of {CANDIDATES} candidates", f"{data / 1e3:.1f}", ""],
        ["first contentful paint, ms", f"{statistics.median(paints):.0f} ({max(paints):.0f})", ""],
        ["slider to the second frame, ms", f"{statistics.median(slid['spent']):.0f} ({max(slid['spent']):.0f})", ""],
    ]
    body = [
        f"Paint is the median of {options.loads} warm loads, a slider that of {options.inputs} inputs with "
        f"{CANDIDATES} candidates, each with the most in brackets. `tests/service/play/test_page.py` keeps the limits.",
        "",
        *report.table(["what", "measured", "limit"], rows),
    ]
    raw = {"requests": cold, "paint_ms": paints, "slider_ms": slid["spent"]}
    path = report.write("page", "The page at /play", body, raw, "make bench-page")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_benchmark(main)
