"""Images built and run in tests: by the command in FEEDRANK_BUILD_IMAGE, unpacked by buildah, run without an engine.

The command is called as `docker build` and `buildah build` are, `COMMAND --target TARGET --tag NAME FOLDER`, and has to
leave the image where buildah finds it.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("run_image.sh")
COMMAND = os.environ.get("FEEDRANK_BUILD_IMAGE", "")
# A uid that no image knows of, as OpenShift gives them.
ANY_UID = 1_000_680_000


def why_not() -> str | None:
    """Reason why no image can be built and run here, None if one can."""
    if not COMMAND:
        return "FEEDRANK_BUILD_IMAGE names no command that builds images"
    if os.geteuid() != 0:
        return "an unpacked image is started by root alone"
    missing = [name for name in ("unshare", "setpriv", "chroot") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Image:
    """A built image and the folder it is unpacked in."""

    name: str
    container: str
    root: Path
    config: dict[str, Any]

    @classmethod
    def build(cls, target: str) -> "Image":
        """Build a target of the Dockerfile and unpack it. A build that fails shows its last lines."""
        name = f"localhost/feedrank-test-{target}:latest"
        command = [*shlex.split(COMMAND), "--target", target, "--tag", name, str(REPOSITORY)]
        built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
        assert built.returncode == 0, f"{shlex.join(command)}\n{built.stdout[-2000:]}\n{built.stderr[-4000:]}"
        container = _buildah("from", "--pull-never", name)
        inspected = json.loads(_buildah("inspect", "--type", "image", name))
        return cls(name, container, Path(_buildah("mount", container)), inspected["OCIv1"]["config"])

    def close(self) -> None:
        """Remove what was unpacked. The image stays, for the next build's sake."""
        _buildah("rm", self.container)

    def start(
        self,
        command: Sequence[str],
        *,
        binds: Mapping[Path, str],
        environment: Mapping[str, str] | None = None,
        uid: int = ANY_UID,
        output: Path,
    ) -> "subprocess.Popen[bytes]":
        """Start a command (the image's entry point comes first where it begins with a flag or a word of ours)."""
        variables = [*self.config["Env"], *(f"{key}={value}" for key, value in (environment or {}).items())]
        mounts = " ".join(f"{source}:{target}" for source, target in binds.items())
        isolated = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            str(RUN),
            str(self.root),
            str(uid),
            mounts,
        ]
        with output.open("ab") as file:
            return subprocess.Popen([*isolated, *variables, *command], stdout=file, stderr=file, start_new_session=True)

    def run(self, command: Sequence[str], *, binds: Mapping[Path, str], output: Path) -> None:
        """Run a command to its end. One that fails shows what it said."""
        status = self.start(command, binds=binds, output=output).wait()
        assert status == 0, f"{shlex.join(command)}: status {status}\n{output.read_text()[-4000:]}"

    def megabytes(self) -> float:
        """Size of the files, in MB (10^6 bytes). Hard links count once."""
        seen: dict[tuple[int, int], int] = {}
        for folder, _, files in os.walk(self.root):
            for name in files:
                status = (Path(folder) / name).lstat()
                seen[status.st_dev, status.st_ino] = status.st_size
        return sum(seen.values()) / 1e6


def remove_image(name: str) -> None:
    """Remove an image that no later build is quicker for."""
    _buildah("rmi", name)


def _buildah(*arguments: str) -> str:
    # The driver that needs no kernel module, and what images were built with where an engine is missing.
    environment = {"STORAGE_DRIVER": "vfs", **os.environ}
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"buildah {shlex.join(arguments)}: {done.stderr}"
    return done.stdout.strip()
