"""A real Chromium, driven by playwright-core, with an empty page of its own.

In: code of JavaScript. Out: its result. What draws the driver is `make .node-page/.installed`.
"""

import json
import os
import subprocess
from types import TracebackType
from typing import Any, Self

import pytest

from tests.deploy.programs import program
from tests.service.running import ROOT

TOOLS = ROOT / ".node-page"
_DRIVER = ROOT / "tests/service/play/chromium_driver.mjs"
_FLAGS = ("--no-proxy-server", "--disable-gpu", "--disable-dev-shm-usage")
_WAIT_SECONDS = 30


class Chromium:
    """Use as a context manager. `context` are settings of playwright's browser context. Skips where a part of it is not
    installed."""

    def __init__(self, **context: Any) -> None:
        node, chromium = program("node", "nodejs"), program("chromium", "chromium")
        if not (TOOLS / "node_modules").is_dir():
            pytest.skip("no driver of Chromium: `make .node-page/.installed` installs it")
        # Chromium's sandbox does not start for root, who runs tests in containers.
        flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        self._process = subprocess.Popen(
            [node, str(_DRIVER), chromium, json.dumps(context), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PAGE_TOOLS": str(TOOLS)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, code: str) -> Any:
        """The result of code, the body of an async function of `page`, `axe` and `seen`. Fails where it throws."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def show(self, selector: str) -> str:
        """The text of an element, as it is rendered."""
        return str(self.run(f"return await page.innerText({json.dumps(selector)})"))
