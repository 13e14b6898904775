"""A machine that has nothing yet: which torch `make setup` and the images install, by indexes on loopback.

tests/deploy/test_image_torch.py builds images against such indexes, and installs the real CPU wheel.
"""

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fresh_machine import (
    BROKEN,
    CPU,
    CUDA,
    LIBRARIES,
    MISSING,
    PIN,
    ROOT,
    SCRIPT,
    VERSION,
    Machine,
    pip_alone,
    refusing_index,
    settings_of,
)
from tests.package_index import Wheel, package_index


@pytest.fixture
def refusing() -> Iterator[str]:
    with refusing_index() as url:
        yield url


def only_line(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a failed run on stderr."""
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    return line


def test_cuda_build_gets_its_libraries_where_torchs_own_index_refuses(tmp_path: Path, refusing: str) -> None:
    with package_index({"torch": CUDA, **LIBRARIES}) as pips:
        machine = Machine(tmp_path, pips, has_pip=False)
        done = machine.install("--index", refusing)
        assert done.returncode == 0, done.stderr
        assert f"no {PIN} from {refusing}" in done.stdout
        assert f"torch {VERSION}, built for CUDA 13.0: its libraries come too" in done.stdout
        assert machine.install("--check", "torch").returncode == 0
    # Later torch's own index answers: the CPU build replaces it, and the libraries go.
    with package_index({"torch": CPU}) as torchs:
        assert machine.install("--index", torchs).returncode == 0
    assert machine.packages() == {f"torch-{VERSION}+cpu"}


def test_cuda_build_without_its_libraries_ends_in_one_line(tmp_path: Path, refusing: str) -> None:
    with package_index({"torch": CUDA}) as pips:
        machine = Machine(tmp_path, pips)
        line = only_line(machine.install("--index", refusing))
        assert f"torch {VERSION}, built for CUDA 13.0, needs requirements/torch-gpu.txt" in line
        assert "TORCH_INDEX=URL" in line
        # As an environment that was made without the libraries, by pip and the lock file.
        line = only_line(machine.install("--check", "torch"))
        assert MISSING in line
        assert f"torch {VERSION}, built for CUDA 13.0: without a GPU give TORCH_INDEX=URL" in line
    with package_index({"torch": CPU}) as torchs:
        assert machine.install("--index", torchs).returncode == 0
        assert machine.install("--check", "torch").returncode == 0


def test_build_that_does_not_import_gives_way_and_both_builds_of_fbgemm_go(tmp_path: Path, refusing: str) -> None:
    with package_index({"torch": BROKEN}) as torchs:
        machine = Machine(tmp_path, refusing)
        # Both builds of fbgemm hold the same folder: removing one alone would leave the other without its files.
        for name in ("fbgemm-gpu", "fbgemm-gpu-cpu"):
            machine.unpack(name, Wheel("1.8.0", {"fbgemm_gpu/__init__.py": ""}))
        assert machine.install("--index", torchs).returncode == 0
        assert machine.packages() == {f"torch-{VERSION}+cpu"}
        line = only_line(machine.install("--check", "torch"))
        assert line.startswith("error: `import torch` fails (ImportError: libgomp.so.1: cut short) beside torch")
        assert "TORCH_INDEX=URL" in line
    with package_index({"torch": CPU}) as torchs:
        assert machine.install("--index", torchs).returncode == 0
        assert machine.install("--check", "torch").returncode == 0


def test_no_index_at_all_ends_in_one_line(tmp_path: Path, refusing: str) -> None:
    machine = Machine(tmp_path, refusing)
    assert f"no {PIN} from {refusing} nor from pip's own index" in only_line(machine.install("--index", refusing))
    assert "no torch" in only_line(machine.install("--check", "torch"))


def test_gpu_gets_the_cuda_build_and_its_libraries_or_one_line(tmp_path: Path) -> None:
    with package_index({"torch": CPU, **LIBRARIES}) as pips, package_index({"torch": CUDA}) as torchs:
        machine = Machine(tmp_path, pips, has_pip=False)
        assert "a CPU build from pip: DEVICE=gpu needs TORCH_INDEX=URL" in only_line(machine.install("--device", "gpu"))
        machine.environment["PIP_EXTRA_INDEX_URL"] = pips
        assert machine.install("--device", "gpu", "--index", torchs).returncode == 0
        assert machine.packages() == {f"torch-{VERSION}"} | {
            f"{name.replace('-', '_')}-{wheel.version}" for name, wheel in LIBRARIES.items()
        }


def probed(url: str, **changed: object) -> str:
    """Answer of `probe` for an index, in a process of its own, as the script is run."""
    code = (
        f"import runpy; script = runpy.run_path({str(SCRIPT)!r})['probe'].__globals__; script.update({changed!r});"
        f"print(script['probe']({url!r}))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    environment |= {"PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_index_that_never_answers_is_given_up() -> None:
    """In the environment that runs the tests: an index is read, nothing is installed."""
    assert runpy.run_path(str(SCRIPT))["PROBE"][1::2] == ["10", "1"]  # seconds, tries besides the first
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        assert probed(url, PROBE=["--timeout", "0.2", "--retries", "0"]) not in ("", "None")
        # And one that goes on sending, but never to an end.
        assert probed(url, PROBE=[], PROBE_SECONDS=2) == "no answer in 2 s"


PYTHON = """#!/bin/sh
set -e
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3"
for packages in "$3"/lib/python3*/site-packages; do echo {pip} >"$packages/pip.pth"; done
"""


def checkout(folder: Path) -> Path:
    """The Makefile and lock files of three packages, so that an environment takes seconds."""
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    (folder / "pyproject.toml").write_text('version = "0.1.0"\n')
    for name, lines in {"serve": PIN, "train": "-r serve.txt\ntorchrec==1.8.0", "dev": "-r train.txt"}.items():
        (folder / f"requirements/{name}.txt").write_text(lines + "\n")
    return folder


def make_setup(folder: Path, environment: dict[str, str], *variables: str) -> "subprocess.CompletedProcess[str]":
    """`make setup`, by a Python whose environments take their pip from the one that runs the tests."""
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable, pip=pip_alone(folder / "pip")))
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "setup", f"PYTHON={python}", *variables]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def rest(module: str) -> dict[str, Wheel]:
    """Packages that `make setup` installs besides torch, in the trimmed lock files."""
    return {
        "fbgemm-gpu-cpu": Wheel("1.8.0", {"fbgemm_gpu/__init__.py": ""}),
        "torchrec": Wheel("1.8.0", {"torchrec/__init__.py": f"import {module}\n"}),
    }


def test_make_setup_works_with_no_variable_where_pips_index_has_the_cuda_build(tmp_path: Path, refusing: str) -> None:
    folder = checkout(tmp_path / "clone")
    with package_index({"torch": CUDA, **LIBRARIES, **rest("fbgemm_gpu")}) as pips:
        environment = settings_of(tmp_path / "home", pips)
        done = make_setup(folder, {**environment, "TORCH_INDEX": refusing})
        assert done.returncode == 0, done.stderr
        assert (folder / ".venv/.installed-cpu").exists()
    imported = [str(folder / ".venv/bin/python"), "-c", "import torch, fbgemm_gpu, torchrec"]
    assert subprocess.run(imported, check=False).returncode == 0


def test_make_setup_that_cannot_import_ends_in_one_line_and_is_not_done(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "clone")
    with package_index({"torch": CPU}) as torchs, package_index(rest("nothing_of_this_name")) as pips:
        done = make_setup(folder, settings_of(tmp_path / "home", pips), f"TORCH_INDEX={torchs}")
    assert done.returncode != 0
    assert not (folder / ".venv/.installed-cpu").exists()
    fault, end = done.stderr.splitlines()
    assert "`import torchrec` fails (ModuleNotFoundError: No module named 'nothing_of_this_name')" in fault
    assert f"beside torch {VERSION}+cpu, a CPU build: TORCH_INDEX=URL" in fault
    assert end.startswith("make: ***")


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("stage", ["serve", "train"])
def test_images_install_torch_as_make_setup_does(stage: str) -> None:
    """tests/deploy/test_image_torch.py builds one. This needs no engine."""
    text = stages()[stage]
    assert re.search(r"^COPY (?:.*\\\n)?.*requirements/install_torch\.py requirements/$", text, re.MULTILINE)
    assert 'python requirements/install_torch.py --device "$DEVICE" --index "$TORCH_INDEX"' in text
    assert "python requirements/install_torch.py --check torch" in text
    assert {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "TORCH_INDEX"} <= set(
        re.findall(r"^ARG (\w+)$", text, re.MULTILINE)
    )
    assert "!requirements/install_torch.py" in (ROOT / ".dockerignore").read_text().splitlines()


def test_image_verbs_and_compose_pass_the_index_on(tmp_path: Path) -> None:
    command = ["make", "-n", "image", "ENGINE=docker", "TORCH_INDEX=http://127.0.0.1:1/simple"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert '--build-arg TORCH_INDEX="http://127.0.0.1:1/simple"' in printed
    compose = (ROOT / "docker-compose.yml").read_text()
    assert 'TORCH_INDEX: "${TORCH_INDEX:-}"' in compose
