"""Install the pinned torch in the build that a machine needs, and check that what was installed can be imported.

    python requirements/install_torch.py [--device cpu|gpu] [--index URL]      torch alone, before the lock files
    python requirements/install_torch.py --check torch fbgemm_gpu torchrec     imports, after them

Run by the interpreter whose environment it fills, with the standard library alone: its pip, or where it has none the
first pip on PATH. `cpu` takes torch from PyTorch's own CPU index, or from --index. Where that gives nothing it takes
what pip's own settings offer. A CUDA build comes with its libraries (torch-gpu.txt), as it does not import without.
`gpu` takes the CUDA build from pip's own settings, or from --index, and those libraries. Exit status 1 after one line
that says what to do.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# PyTorch's documented index of CPU builds: the default of TORCH_INDEX.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LOCKS = Path(__file__).resolve().parent
LIBRARIES = LOCKS / "torch-gpu.txt"
# An index that does not answer costs a fresh machine no more than this.
PROBE = ["--timeout", "10", "--retries", "1"]
PROBE_SECONDS = 60
# A proxy that checks a wheel before it passes it on takes its time. A host that is cut off does not get all day.
FBGEMM = ("fbgemm-gpu", "fbgemm-gpu-cpu")
FETCH = ["--timeout", "60", "--retries", "2"]
NO_DRIVER = "the driver of a GPU brings it, and DEVICE=gpu needs one; DEVICE=cpu does not"
NAME_AN_INDEX = "TORCH_INDEX=URL names another index of torch's CPU builds"


class Build(NamedTuple):
    """An installed torch: its version, and the CUDA that it was built for, None for a CPU build."""

    version: str
    cuda: str | None

    def __str__(self) -> str:
        return f"torch {self.version}, " + (f"built for CUDA {self.cuda}" if self.cuda else "a CPU build")


class InstallError(Exception):
    """One line for the user: which build is there, what to do."""


def main() -> int:
    """Install, or check. Returns the exit status."""
    parser = argparse.ArgumentParser(description="The pinned torch, in the build that a machine needs.")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--index", metavar="URL", default="", help=f"torch's index (for cpu: {CPU_INDEX})")
    parser.add_argument("--check", nargs="+", metavar="MODULE", help="import these, install nothing")
    options = parser.parse_args()
    try:
        if options.check:
            check(options.check)
            return 0
        remove_fbgemm_unless(options.device)
        if options.device == "cpu":
            install_for_cpu(options.index or CPU_INDEX)
        else:
            install_for_gpu(options.index)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def remove_fbgemm_unless(device: str) -> None:
    """Both builds of fbgemm have the same folder: where the other device's is there, both go."""
    other = FBGEMM[device == "gpu"]
    if version_of(other) is not None:
        pip("uninstall", "--yes", *FBGEMM)


def install_for_cpu(index: str) -> None:
    """A CPU build from `index`, or what pip's own settings offer, with its libraries where that is a CUDA build."""
    pin = pinned()
    before = installed()
    is_usable = is_pinned(before, pin) and fault_of("torch") is None
    if is_usable and before is not None and before.cuda is None:
        return
    fault = probe(index) or pip("install", "--force-reinstall", "--index-url", index, *FETCH, pin)
    if fault is not None:
        say(f"no {pin} from {index} ({fault}); taking what pip's own settings offer")
        # What works already gives way to a higher version alone, as a CPU build (+cpu) is beside the plain one.
        fault = pip("install", "--upgrade" if is_usable else "--force-reinstall", pin)
        if fault is not None:
            raise InstallError(f"no {pin} from {index} nor from pip's own index ({fault}): {NAME_AN_INDEX}")
    found = installed()
    if found is not None and found.cuda is not None:
        say(f"{found}: its libraries come too, some 2 GB (TORCH_INDEX=URL of an index of CPU builds saves them)")
        install_libraries(found)
    elif before is not None and before.cuda is not None:
        pip("uninstall", "--yes", "-r", str(LIBRARIES))


def install_for_gpu(index: str) -> None:
    """A CUDA build from `index`, or from pip's own settings, and its libraries."""
    pin = pinned()
    found = installed()
    if found is None or found.cuda is None or not is_pinned(found, pin):
        source = ["--index-url", index] if index else []
        # Three signs leave out builds of the same version that are marked +cpu.
        for version in (pin.replace("==", "==="), pin):
            fault = pip("install", "--force-reinstall", *source, version)
            if fault is None:
                break
        else:
            raise InstallError(f"no {pin} from {index or 'pip'} ({fault}): DEVICE=gpu needs an index of CUDA builds")
        found = installed()
    if found is None or found.cuda is None:
        raise InstallError(
            f"{found} from {index or 'pip'}: DEVICE=gpu needs TORCH_INDEX=URL of an index of CUDA builds"
        )
    install_libraries(found)


def install_libraries(found: Build) -> None:
    """The CUDA libraries beside `found`. Raises InstallError where they cannot be had."""
    fault = pip("install", "-r", str(LIBRARIES))
    if fault is not None:
        raise InstallError(f"{found}, needs requirements/{LIBRARIES.name}, and pip ends in {fault}: {remedy(found)}")


def check(modules: Sequence[str]) -> None:
    """Import each, in a process of its own. Raises InstallError at the first that fails."""
    for module in modules:
        fault = fault_of(module)
        if fault is not None:
            found = installed()
            todo = NO_DRIVER if re.search(r"libnvidia-ml|libcuda\.", fault) else remedy(found)
            raise InstallError(f"`import {module}` fails ({fault}) beside {found or 'no torch'}: {todo}")


def remedy(found: Build | None) -> str:
    """Advice on a build that does not import."""
    if found is not None and found.cuda is not None:
        return "without a GPU give TORCH_INDEX=URL of an index of torch's CPU builds, with one DEVICE=gpu"
    return NAME_AN_INDEX


def fault_of(module: str) -> str | None:
    """The line that `import module` ends with in a new process, None where it works."""
    # -W: what libraries warn of at import is not the fault.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    # The library that is missing, where one is: what follows names the libraries that wanted it.
    return next((line for line in lines if "cannot open shared object file" in line), lines[-1]).strip()


def installed() -> Build | None:
    """The torch of this environment, read and not imported. None where there is none."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("torch")
    version = version_of("torch")
    if spec is None or spec.origin is None or version is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    cuda = runpy.run_path(str(file)).get("cuda") if file.exists() else None
    return Build(version, str(cuda) if cuda else None)


def version_of(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned() -> str:
    """The line of serve.txt that pins torch."""
    lines = (LOCKS / "serve.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def is_pinned(found: Build | None, pin: str) -> bool:
    """True where a build has the pinned version, with anything after its `+`."""
    return found is not None and found.version.partition("+")[0] == pin.partition("==")[2]


def probe(index: str) -> str | None:
    """The fault of an index that does not answer in time, or lists no torch. None where it does."""
    return pip("index", "versions", "--index-url", index, *PROBE, "torch", seconds=PROBE_SECONDS)


def pip(command: str, *arguments: str, seconds: float | None = None) -> str | None:
    """Run pip on this environment. Returns the last line of its complaint, None where it succeeded."""
    own = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip", "--python", sys.executable]
    flags = ["-qq", "--disable-pip-version-check", "--no-input", *(["--no-deps"] if command == "install" else [])]
    try:
        done = subprocess.run(
            [*own, command, *flags, *arguments], capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:.0f} s"
    complaints = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return None if done.returncode == 0 else complaints[-1].removeprefix("ERROR: ")


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
