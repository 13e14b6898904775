"""A machine that has nothing yet, and what indexes offer it: an empty environment, made-up wheels named torch.

One imports nowhere, one as the CUDA build only where the libraries of requirements/torch-gpu.txt are beside it.
"""

import io
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from tests.package_index import Wheel

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "requirements" / "install_torch.py"
PIN = next(line for line in (ROOT / "requirements/serve.txt").read_text().splitlines() if line.startswith("torch=="))
VERSION = PIN.partition("==")[2]
MISSING = "libcudnn.so.9: cannot open shared object file: No such file or directory"

CPU = Wheel(f"{VERSION}+cpu", {"torch/__init__.py": "", "torch/version.py": "cuda = None\n"})
BROKEN = Wheel(f"{VERSION}+cpu", {"torch/__init__.py": "raise ImportError('libgomp.so.1: cut short')\n"})
# As the CUDA build: of the plain version, and in need of a library that another package brings.
CUDA = Wheel(
    VERSION,
    {
        "torch/__init__.py": f"""
try:
    import nvidia_cudnn_cu13
except ImportError:
    raise ImportError({MISSING!r}) from None
""",
        "torch/version.py": "cuda = '13.0'\n",
    },
)
LIBRARIES = {
    name: Wheel(version, {f"{name.replace('-', '_')}/__init__.py": ""})
    for name, _, version in (line.partition("==") for line in (ROOT / "requirements/torch-gpu.txt").read_text().split())
    if version
}


@contextmanager
def refusing_index() -> Iterator[str]:
    """The URL of an index without an answer: the port is taken, and nothing listens on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/simple"


def settings_of(home: Path, own_index: str) -> dict[str, str]:
    """The environment of a machine where pip knows one index and nothing else."""
    # pip of the environment that runs the tests stands for that of the base image.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    home.mkdir(exist_ok=True)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": own_index, "PIP_RETRIES": "0", "PIP_NO_COMPILE": "1"}
    return {"PATH": path, "HOME": str(home), **settings}


def pip_alone(folder: Path) -> Path:
    """A folder with the pip of the environment that runs the tests. To install a copy takes seconds a machine."""
    folder.mkdir(exist_ok=True)
    # Not by importing it: setuptools, where it came first, warns of that.
    (folder / "pip").symlink_to(Path(str(metadata.distribution("pip").locate_file("pip"))))
    return folder


class Machine:
    """An empty environment, and pip's own index. As `make setup` makes it, or without a pip, as the images have it."""

    def __init__(self, folder: Path, own_index: str, *, has_pip: bool = True) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        (self.site_packages,) = self.python.parents[1].glob("lib/python3*/site-packages")
        self.environment = settings_of(folder / "home", own_index)
        if has_pip:
            (self.site_packages / "pip.pth").write_text(f"{pip_alone(folder / 'pip')}\n")

    def install(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """install_torch.py in the environment."""
        command = [str(self.python), str(SCRIPT), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def unpack(self, package: str, wheel: Wheel) -> None:
        """Install a wheel without pip."""
        zipfile.ZipFile(io.BytesIO(wheel.content(package))).extractall(self.site_packages)

    def packages(self) -> set[str]:
        """Installed packages, as `name-version`."""
        return {path.name.removesuffix(".dist-info") for path in self.site_packages.glob("*.dist-info")}
