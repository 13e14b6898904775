"""Serve one golden request where torchrec is not installed. Run by tests/serve_only.sh, not by pytest.

Input: a models folder with a published artifact. This file must lie beside copies of `model/` and `service/`
and nothing else, and the interpreter must be that of the serving environment: only the standard library is used
here. Exit status 0 when the service imported nothing of the training side, became ready, answered the artifact's
first golden request as the artifact says, in descending score, ended on SIGTERM, and what it logged became Parquet.
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
        except OSError:  # refused while it starts. 503 (HTTPError is an OSError) while it loads
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


def newest_artifact(models: Path) -> Path:
    """`<models>/<name>/<version>/` : the first model, its highest version. Raises SystemExit where there is none."""
    found = [path.parent for path in models.glob("*/*/manifest.json") if path.parent.name.isdecimal()]
    if not found:
        raise SystemExit(f"{models} holds no published artifact")
    first = min(path.parent.name for path in found)
    return max((path for path in found if path.parent.name == first), key=lambda path: int(path.name))


def check_answer(golden: dict[str, Any], tolerance: float, answer: dict[str, Any]) -> None:
    """Every candidate comes back once, in descending score, with the artifact's own answers.

    The tolerance is the manifest's: relative above 1 (a play time in milliseconds), absolute below.
    """
    asked, ranked = golden["candidates"]["id"], answer["candidates"]
    if sorted(ranked["id"]) != sorted(asked):
        raise SystemExit(f"asked for candidates {asked}, answered {ranked['id']}")
    if ranked["score"] != sorted(ranked["score"], reverse=True) or not all(map(math.isfinite, ranked["score"])):
        raise SystemExit(f"scores are not finite and in descending order: {ranked['score']}")
    if set(ranked["tasks"]) != set(golden["expected"]):
        raise SystemExit(f"expected tasks {sorted(golden['expected'])}, answered {sorted(ranked['tasks'])}")
    for task, expected in golden["expected"].items():
        answered = dict(zip(ranked["id"], ranked["tasks"][task], strict=True))
        for candidate, value in zip(asked, expected, strict=True):
            if not abs(answered[candidate] - value) <= tolerance * max(1.0, abs(value)):
                raise SystemExit(
                    f"task {task}, candidate {candidate}: {answered[candidate]} answered, {value} expected"
                )


def check_impressions(folder: Path) -> None:
    """The log is Parquet, or becomes it: this environment has what that needs."""
    if subprocess.run([sys.executable, "-m", "service", "parquet", str(folder)], check=False).returncode:
        raise SystemExit("the impression log could not be made Parquet in the serving environment")
    files = [path.suffix for path in folder.glob("impressions-*")]
    if files != [".parquet"]:
        raise SystemExit(f"expected one Parquet file of impressions, found {files}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, required=True, help="folder of published models")
    models: Path = parser.parse_args().models
    artifact = newest_artifact(models)
    content: dict[str, Any] = json.loads((artifact / "golden_requests.json").read_text())
    golden: dict[str, Any] = content["requests"][0]
    if len(set(golden["candidates"]["id"])) != len(golden["candidates"]["id"]):
        raise SystemExit(f"{artifact}: the first golden request repeats a candidate; its answers cannot be told apart")

    check_environment()
    port = free_port()
    impressions = Path("impressions")
    impressions.mkdir()
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", str(port)]
    server = subprocess.Popen([*command, "--impression-log", str(impressions)])
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until_ready(base, server)
        request = {"model": artifact.parent.name, "user": golden["user"], "candidates": golden["candidates"]}
        answer = ask(base, request)
        check_answer(golden, float(content["tolerance"]), answer)
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout=30)
        if status not in (0, -signal.SIGTERM):
            raise SystemExit(f"after SIGTERM the service ended with status {status}, not in good order")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    check_impressions(impressions)
    ranked = len(answer["candidates"]["id"])
    print(f"served without torchrec: {ranked} candidates, model version {answer['model_version']}")


if __name__ == "__main__":
    main()
