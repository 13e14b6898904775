"""Both images, built and run as a cluster runs them: any uid, read-only root. What `train` publishes, `serve` scores.

Only where FEEDRANK_BUILD_IMAGE names a build command (tests/deploy/images.py). Minutes, most of them the build.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.images import ANY_UID, REPOSITORY, Image, why_not
from tests.serve_only_check import ask, check_answer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

READY_SECONDS = 120.0
LARGEST_MB = 1_400.0


@pytest.fixture(scope="module")
def serve() -> Iterator[Image]:
    image = Image.build("serve")
    yield image
    image.close()


@pytest.fixture(scope="module")
def train() -> Iterator[Image]:
    image = Image.build("train")
    yield image
    image.close()


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def models(train: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that the train image filled: simulate, train, export."""
    work = tmp_path_factory.mktemp("train-image")
    # pytest keeps its folders from other users, and the job is another user.
    for folder in (work, *work.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    published = _writable(work / "models")
    binds = {published: "/models", _writable(work / "data"): "/app/data", _writable(work / "runs"): "/app/runs"}
    training = ["python", "-m", "training"]
    for arguments in (
        ["simulate", "--rows", "3000", "--users", "50", "--items", "40", "--out", "data/simulated"],
        ["train", "configs/simulated.yaml", "--set", "epochs=1"],
        ["export", "runs/simulated", "--models", "/models", "--name", "demo"],
    ):
        train.run([*training, *arguments], binds=binds, output=work / "train.log")
    return published


@contextmanager
def _service(image: Image, models: Path, log: Path, *, workers: int) -> Iterator[tuple[str, float]]:
    """The image's own command, ready. Yields its address and the seconds from start to ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {"FEEDRANK_PORT": str(port), "FEEDRANK_WORKERS": str(workers), "FEEDRANK_DRAIN_SECONDS": "0"}
    begun = time.monotonic()
    process = image.start(image.config["Entrypoint"], binds={models: "/models"}, environment=environment, output=log)
    try:
        base = f"http://127.0.0.1:{port}"
        while not _is_ready(base):
            assert process.poll() is None, f"the service ended:\n{log.read_text()[-4000:]}"
            assert time.monotonic() - begun < READY_SECONDS, f"not ready:\n{log.read_text()[-4000:]}"
            time.sleep(0.05)
        yield base, time.monotonic() - begun
    finally:
        # unshare is not the first process of the new namespace. That one is its only child.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert status == 0, f"status {status} after SIGTERM:\n{log.read_text()[-4000:]}"


def _is_ready(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_image_scores_what_the_train_image_published(
    serve: Image, models: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((models / "demo/1/golden_requests.json").read_text())
    golden = next(
        request
        for request in content["requests"]
        if len(set(request["candidates"]["id"])) == len(request["candidates"]["id"]) > 1
    )
    request = {"model": "demo", "user": golden["user"], "candidates": golden["candidates"]}
    with _service(serve, models, tmp_path / "service.log", workers=workers) as (base, seconds):
        check_answer(golden, float(content["tolerance"]), ask(base, request))
        port = base.rpartition(":")[2]
        # Its own health check says the same, from inside.
        serve.run(["env", f"FEEDRANK_PORT={port}", *_health_check()], binds={}, output=tmp_path / "health.log")
    with pytest.raises(AssertionError, match="no answer on port"):
        serve.run(["env", f"FEEDRANK_PORT={port}", *_health_check()], binds={}, output=tmp_path / "health.log")
    with capsys.disabled():
        print(f"\nserve image, {workers} worker(s), uid {ANY_UID}, read-only root: ready after {seconds:.1f} s")


def _health_check() -> list[str]:
    """The command of HEALTHCHECK, which an image in OCI format does not carry."""
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    command: list[str] = json.loads(dockerfile.partition("HEALTHCHECK")[2].partition("CMD ")[2].partition("\n")[0])
    return command


def test_serve_image_is_small_and_holds_nothing_to_build_with(serve: Image, capsys: pytest.CaptureFixture[str]) -> None:
    size = serve.megabytes()
    with capsys.disabled():
        print(f"\nserve image: {size:.0f} MB")
    assert size <= LARGEST_MB
    (packages,) = serve.root.glob("opt/venv/lib/python3*/site-packages")
    assert (packages / "torch").is_dir()
    for absent in ("torchrec", "fbgemm_gpu", "pip", "torch/include", "training"):
        assert not (packages / absent).exists()
    programs = {path.name for folder in ("usr/bin", "usr/local/bin") for path in (serve.root / folder).glob("*")}
    assert programs & {"gcc", "cc", "g++", "c++", "clang", "ld", "make", "nvcc"} == set()
    assert not list(serve.root.glob("root/.cache/*"))
    assert {path.name for path in (serve.root / "app").iterdir()} == {"model", "service", "requirements"}


def _pins(name: str) -> dict[str, str]:
    pins: dict[str, str] = {}
    for line in (REPOSITORY / "requirements" / name).read_text().splitlines():
        if line.startswith("-r "):
            pins |= _pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            package, _, version = line.partition("==")
            pins[canonicalize_name(package)] = version
    return pins


def test_images_hold_what_the_lock_files_say_and_nothing_else(serve: Image, train: Image) -> None:
    expected = {"serve": _pins("serve.txt"), "train": _pins("train.txt") | _pins("fbgemm-cpu.txt")}
    for name, image in (("serve", serve), ("train", train)):
        (packages,) = image.root.glob("opt/venv/lib/python3*/site-packages")
        found = [PathDistribution(folder) for folder in packages.glob("*.dist-info")]
        installed = {canonicalize_name(one.metadata["Name"]): Version(one.version).public for one in found}
        assert installed == {package: Version(version).public for package, version in expected[name].items()}


def test_images_say_what_they_are_and_run_as_nobody_in_particular(serve: Image, train: Image) -> None:
    for image in (serve, train):
        assert image.config["User"] == "10001:10001"
        assert image.config["Labels"]["org.opencontainers.image.revision"]
    assert serve.config["Entrypoint"] == ["python", "-m", "service"]
    assert train.config["Entrypoint"] == ["python", "-m", "training"]
