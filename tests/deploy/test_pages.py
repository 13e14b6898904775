"""Pages as a browser shows them: headless Chromium takes a screenshot, reads the page, and has nothing to complain of.

Screenshots stay in the test's temporary folder (pytest --basetemp keeps it where one likes).
"""

import os
import re
import subprocess
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import program
from tests.service.running import RunningService
from training.compare.document import Block, Heading, Image, Paragraph, Table, write_document
from training.compare.report import cost_table, metric_tables
from training.compare.resampling import MEAN

# Every console.* call, uncaught exception and resource that fails to load is such a line.
_CONSOLE = re.compile(r"CONSOLE:\d+\] (.*)")
SIZE = (1280, 1000)


@dataclass(frozen=True)
class Shown:
    """A page: what its console says, its document after scripts have run, its screenshot."""

    console: list[str]
    document: str
    screenshot: Picture.Image

    @property
    def colours(self) -> int:
        """Number of colours. A blank page has one."""
        return len(np.unique(np.asarray(self.screenshot.convert("RGB")).reshape(-1, 3), axis=0))


def show(url: str, folder: Path) -> Shown:
    """Open a page in a browser of its own and give its scripts ten seconds of the browser's time."""
    path = folder / "screenshot.png"
    command = [
        *(program("chromium", "chromium"), "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *(f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=10000"),
        *("--enable-logging=stderr", "--v=0", "--dump-dom", f"--screenshot={path}"),
        # Chromium's sandbox does not start for root, who runs tests in containers.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        url,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert path.exists(), run.stderr
    return Shown(_CONSOLE.findall(run.stderr), run.stdout, Picture.open(BytesIO(path.read_bytes())))


def test_the_api_page_reads_well_without_any_other_host(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    with RunningService(tmp_path / "models", "--threads", "1") as service:
        shown = show(f"{service.wait_ready().client.base_url}/docs#/Ranking/rank", tmp_path)
    assert shown.console == []
    # Ranking comes first, opened by its address, with the served model's own golden request.
    assert shown.document.index("/v1/rank") < shown.document.index("/healthz")
    for word in ("country", "duration_ms", "Try it out", "Authorize", "/v1/admin"):
        assert word in shown.document
    assert "opblock-post" in shown.document, "Swagger's scripts draw the routes"
    assert "/v1/rank" in shown.document
    assert shown.screenshot.size == SIZE
    assert shown.colours > 50


def test_the_status_page_reads_well(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    with RunningService(tmp_path / "models", "--threads", "1") as service:
        for _ in range(5):
            service.wait_ready().client.post("/v1/rank", json=TINY_REQUEST)
        shown = show(f"{service.client.base_url}/", tmp_path)
    assert shown.console == []
    assert "version 1 is served" in shown.document
    assert "requests/s" in shown.document
    assert shown.colours > 20


def test_a_report_reads_well_from_its_file(tmp_path: Path) -> None:
    picture = BytesIO()
    Picture.new("RGB", (400, 200), (200, 30, 30)).save(picture, "PNG")
    blocks: list[Block] = [
        Heading(1, "Networks compared"),
        Paragraph("A name of somebody else's: <script>console.error('run')</script>"),
        Table(["network", "AUC"], [["adatt", "0.71"], ["mmoe", "0.70"]]),
        Image("a picture", picture.getvalue()),
    ]
    page = write_document(tmp_path, "report", blocks)
    shown = show(page.as_uri(), tmp_path)
    assert shown.console == []
    assert "Networks compared" in shown.document
    pixels_N3 = np.asarray(shown.screenshot.convert("RGB")).reshape(-1, 3)
    assert (pixels_N3 == (200, 30, 30)).all(axis=1).sum() == 400 * 200, "the picture is drawn at its own size"


def test_no_column_of_a_comparison_is_out_of_sight(tmp_path: Path) -> None:
    networks = ["shared_bottom_same_size", "adatt_sp_without_native_experts"]
    against = {"difference": -0.00145, "low": -0.00263, "high": -0.00027, "percent": -0.187, "p_holm": 0.0312}
    against |= {"both_low": -0.00263, "both_high": -0.00027, "both_p_holm": 0.0312}
    entry = {"mean": 0.77451, "low": 0.77434, "high": 0.77468}
    entries = {networks[0]: entry, networks[1]: entry | {"against_baseline": against}}
    table = dict.fromkeys(["click", "long_view", "profile_enter", "comments_opened", MEAN], entries)
    tables = list(
        metric_tables(table, {name: [0, 1, 2, 3, 4] for name in networks}, networks[0], is_test=True, brief=False)
    )
    assert [head for one in tables for head in one.head if head in (*table, "mean over tasks")] == [
        *("mean over tasks", "click", "long_view", "profile_enter", "comments_opened")
    ]
    why = "mean AUC over 5 tasks: -0.00145 against shared_bottom_same_size (-0.187 %), " * 4
    verdicts = Table(
        ["network", "verdict", "why", "cautions"], [[networks[1], "no difference shown", why, why]], is_words=True
    )
    cost = {"parameters": 183703, "parameters_range": [183703, 183703], "embedding_parameters": 12_345_678}
    cost |= {"multiply_adds_per_row": 183_000, "training_rows_per_cpu_second": 29380}
    tables += [verdicts, cost_table(dict.fromkeys(networks, cost))]
    page = write_document(tmp_path, "report", [Heading(1, "Comparison"), Heading(2, "Dataset"), *tables])
    measure = (
        "console.log(Math.max(...[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)))"
    )
    page.write_text(page.read_text(encoding="utf-8") + f"<script>{measure}</script>", encoding="utf-8")
    shown = show(page.as_uri(), tmp_path)
    assert [line.split('"')[1] for line in shown.console] == ["0"], "pixels that every table is wider than its place"


@pytest.mark.parametrize("script", ["console.error('planted')", "nobody.there()", "fetch('/missing.js')"])
def test_what_a_page_does_wrong_is_seen(tmp_path: Path, script: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><script>{script}</script>")
    assert show(page.as_uri(), tmp_path).console
