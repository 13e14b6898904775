"""The step of the Dockerfile that installs torch, built against indexes on loopback, and the real CPU wheel.

Only where FEEDRANK_BUILD_IMAGE names a build command (tests/deploy/images.py) whose builds reach loopback.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.images import COMMAND, REPOSITORY, remove_image, why_not
from tests.fresh_machine import BROKEN, CUDA, LIBRARIES, PIN, VERSION, Machine, refusing_index
from tests.package_index import Wheel, package_index

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

NAME = "localhost/feedrank-test-torch:latest"
# What the real wheel imports besides itself.
IMPORTED = {"torch", "numpy", "filelock", "typing_extensions", "setuptools", "sympy", "mpmath", "networkx", "fsspec"}
IMPORTED |= {"Jinja2", "MarkupSafe"}


@pytest.fixture
def refusing() -> Iterator[str]:
    with refusing_index() as url:
        yield url


def only(pattern: str, replacement: str, text: str) -> str:
    """`text` with the one line that is `pattern` replaced."""
    changed, count = re.subn(rf"^{pattern}$", replacement, text, flags=re.MULTILINE)
    assert count == 1, f"the Dockerfile has {count} lines {pattern!r} before its first check of torch"
    return changed


def run(folder: Path, target: str) -> "subprocess.CompletedProcess[str]":
    """Build a folder, and remove the image."""
    # Else the build command may hand its own wheels on.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [*shlex.split(COMMAND), "--target", target, "--tag", NAME, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        remove_image(NAME)
    return done


@pytest.fixture(scope="module", autouse=True)
def loopback(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where a build has a network of its own. tests/deploy/test_image.py shows that builds work at all."""
    folder = tmp_path_factory.mktemp("loopback")
    base = (REPOSITORY / "Dockerfile").read_text().partition(" AS base\n")
    with package_index({"torch": CUDA}) as url:
        ask = f"RUN python -c \"from urllib.request import urlopen; urlopen('{url}/torch/')\"\n"
        (folder / "Dockerfile").write_text(base[0] + base[1] + ask)
        done = run(folder, "base")
    if done.returncode != 0:
        pytest.skip(f"a build of {COMMAND} does not reach loopback: {done.stderr.strip()[-200:]}")


def build(folder: Path, torchs: str, *, pips: str | None, packages: set[str]) -> "subprocess.CompletedProcess[str]":
    """Build the Dockerfile up to its first check of torch, with a lock file of a few packages.

    `torchs` becomes TORCH_INDEX's default. `pips` stands for pip's own index where it is given.
    """
    text = (REPOSITORY / "Dockerfile").read_text()
    (begin, end) = re.findall(r"^[^#\n]*install_torch\.py --(?:device|check).*$", text, flags=re.MULTILINE)[:2]
    assert "--device" in begin
    assert end.endswith("--check torch"), end
    text = only("ARG TORCH_INDEX", f"ARG TORCH_INDEX={torchs}", text.partition(end)[0] + end + "\n")
    if pips is not None:
        settings = f"ENV PIP_INDEX_URL={pips} PIP_RETRIES=0"
        text = only("FROM base AS serve", f"FROM base AS serve\n{settings}", text)
    shutil.copytree(REPOSITORY / "requirements", folder / "requirements")
    shutil.copy(REPOSITORY / ".dockerignore", folder)
    (folder / "Dockerfile").write_text(text)
    lock = folder / "requirements/serve.txt"
    pins = [line for line in lock.read_text().splitlines() if line.partition("==")[0] in packages]
    assert len(pins) == len(packages), pins
    lock.write_text("\n".join(pins) + "\n")
    return run(folder, "serve")


def test_cuda_build_without_its_libraries_ends_a_build_in_one_line(tmp_path: Path, refusing: str) -> None:
    with package_index({"torch": CUDA}) as torchs:
        done = build(tmp_path, torchs, pips=refusing, packages={"torch"})
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: torch {VERSION}, built for CUDA 13.0, needs requirements/torch-gpu.txt"), line
    assert "TORCH_INDEX=URL" in line
    assert "Traceback" not in done.stderr + done.stdout


def test_build_that_does_not_import_ends_a_build_in_one_line(tmp_path: Path, refusing: str) -> None:
    with package_index({"torch": BROKEN}) as torchs:
        done = build(tmp_path, torchs, pips=refusing, packages={"torch"})
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: `import torch` fails (ImportError: libgomp.so.1: cut short) beside torch"), line
    assert "TORCH_INDEX=URL" in line
    assert "Traceback" not in done.stderr + done.stdout


def test_build_takes_what_pip_offers_where_torchs_own_index_refuses(tmp_path: Path, refusing: str) -> None:
    with package_index({"torch": CUDA, **LIBRARIES}) as pips:
        done = build(tmp_path, refusing, pips=pips, packages={"torch"})
    assert done.returncode == 0, done.stderr
    assert f"no {PIN} from {refusing}" in done.stdout
    assert f"torch {VERSION}, built for CUDA 13.0: its libraries come too" in done.stdout


@pytest.fixture(scope="module")
def real_wheel() -> Path:
    """The CPU wheel that this machine's pip takes from its disk. Skips where it would fetch one."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image has Python 3.11, and a wheel of torch is for one Python")
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps"]
    done = subprocess.run([*command, "--report", "-", PIN], capture_output=True, text=True, check=False)
    places = (
        [item["download_info"]["url"] for item in json.loads(done.stdout)["install"]] if not done.returncode else []
    )
    if not places or not places[0].startswith("file:"):
        pytest.skip("pip has no CPU wheel of torch on this machine's disk")
    return Path(places[0].removeprefix("file://").replace("%2B", "+"))


def test_build_takes_the_real_cpu_wheel(tmp_path: Path, real_wheel: Path) -> None:
    with package_index({"torch": Wheel(real_wheel.name.split("-")[1], path=real_wheel)}) as torchs:
        done = build(tmp_path, torchs, pips=None, packages=IMPORTED)
    assert done.returncode == 0, done.stderr
    assert "taking what pip's own settings offer" not in done.stdout


def test_real_cpu_wheel_is_installed_and_imports(tmp_path: Path, real_wheel: Path, refusing: str) -> None:
    """As `make setup` does, in an environment of this machine."""
    with package_index({"torch": Wheel(real_wheel.name.split("-")[1], path=real_wheel)}) as torchs:
        machine = Machine(tmp_path, refusing)
        done = machine.install("--index", torchs)
        assert done.returncode == 0, done.stderr
    # What torch needs besides lies in the environment that runs the tests, which comes last.
    (machine.site_packages / "others.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    done = machine.install("--check", "torch")
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [machine.python, "-c", "import torch; print(torch.__file__)"], capture_output=True, text=True
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
