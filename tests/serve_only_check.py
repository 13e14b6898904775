"""Serve one request where torchrec is not installed; run by tests/serve_only.sh, not by pytest.

Input: a models folder with one published artifact, and one request in the shape of POST /v1/rank. This file
must lie beside copies of `model/` and `service/` and nothing else, and the interpreter must be that of the
serving environment: only the standard library is used here. Exit status 0 when the service imported nothing of
the training side, became ready, answered the request with finite scores in descending order, and ended on
SIGTERM.
"""

import argparse
import importlib.util
import json
import math
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FORBIDDEN = ("torchrec", "fbgemm_gpu", "training")
READY_SECONDS = 60.0  # importing torch on a cold disk takes most of it
REQUEST_SECONDS = 30.0


def check_environment() -> None:
    """The forbidden packages cannot be imported here, and importing the service does not try."""
    for name in FORBIDDEN:
        if importlib.util.find_spec(name) is not None:
            raise SystemExit(f"{name} can be imported: this is not the serving environment")
    program = (
        "import service.app, sys; "
        f"found = sorted(m for m in sys.modules if m.split('.')[0] in {FORBIDDEN!r}); "
        "sys.exit(f'import service.app loads {found}' if found else 0)"
    )
    if subprocess.run([sys.executable, "-c", program], check=False).returncode:
        raise SystemExit("importing service.app failed in the serving environment")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_ready(base: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the service ended with status {server.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{base}/readyz", timeout=5):
                return
        except OSError:  # refused while it starts; 503 (HTTPError is an OSError) while it loads
            time.sleep(0.1)
    raise SystemExit(f"the service was not ready after {READY_SECONDS:.0f} s")


def ask(base: str, request: dict[str, Any]) -> dict[str, Any]:
    question = urllib.request.Request(
        f"{base}/v1/rank",
        data=json.dumps(request).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(question, timeout=REQUEST_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise SystemExit(f"POST /v1/rank answered {error.code}: {error.read().decode()}") from None


def check_answer(request: dict[str, Any], answer: dict[str, Any]) -> None:
    """Every candidate comes back once, in descending finite score, with a finite value per task."""
    asked, ranked = request["candidates"], answer["candidates"]
    if sorted(ranked["id"]) != sorted(asked["id"]):
        raise SystemExit(f"asked for candidates {asked['id']}, answered {ranked['id']}")
    if ranked["score"] != sorted(ranked["score"], reverse=True):
        raise SystemExit(f"scores are not in descending order: {ranked['score']}")
    columns = {"score": ranked["score"], **ranked["tasks"]}
    for name, values in columns.items():
        if len(values) != len(asked["id"]) or not all(math.isfinite(value) for value in values):
            raise SystemExit(f"{name} should hold {len(asked['id'])} finite values: {values}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, required=True, help="folder of published models")
    parser.add_argument("--request", type=Path, required=True, help="JSON file with one columnar request")
    arguments = parser.parse_args()
    request: dict[str, Any] = json.loads(arguments.request.read_text())

    check_environment()
    port = free_port()
    command = [sys.executable, "-m", "service", "--models", str(arguments.models), "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until_ready(base, server)
        answer = ask(base, request)
        check_answer(request, answer)
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout=30)
        if status not in (0, -signal.SIGTERM):
            raise SystemExit(f"after SIGTERM the service ended with status {status}, not in good order")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    ranked = len(answer["candidates"]["id"])
    print(f"served without torchrec: {ranked} candidates, model version {answer['model_version']}")


if __name__ == "__main__":
    main()
