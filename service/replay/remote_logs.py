"""Logs of any fsspec URL, copied to where replay reads them.

In: paths and URLs, such as those of `--ship`. Out: local paths, of a URL those of copies, which go with the block. A
closed file that is there as lines and as Parquet is copied once. Every fault is a ValueError that names the URL.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec

from service.impressions.folder import PREFIX
from service.log_files.folder import LINES, PARQUET


class LocalLogs:
    """Local paths of logs. `urls` has the URL of each folder of copies."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.urls: dict[Path, str] = {}

    def named(self, message: str) -> str:
        """A message with URLs in place of their copies."""
        for folder, url in self.urls.items():
            message = message.replace(f"{folder}/", f"{url.rstrip('/')}/")
        return message


@contextmanager
def local_logs(given: Sequence[str]) -> Iterator[LocalLogs]:
    """The logs, until the block ends. Raises ValueError."""
    logs = LocalLogs()
    with ExitStack() as stack:
        for one in given:
            if "://" not in one:
                logs.paths.append(Path(one))
                continue
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedrank-replay-")))
            logs.urls[folder] = one
            logs.paths += _copied(one, folder)
        yield logs


def _copied(url: str, folder: Path) -> list[Path]:
    try:
        system, root = fsspec.url_to_fs(url)
        found = system.find(root, detail=True)
        files = {path: int(about["size"]) for path, about in found.items() if _is_closed(path)}
        in_parquet = {path.removesuffix(PARQUET) for path in files if path.endswith(PARQUET)}
        files = {
            path: size
            for path, size in files.items()
            if path.endswith(PARQUET) or path.removesuffix(LINES) not in in_parquet
        }
        if not files:
            raise ValueError("no impression log there; give the folder that has its closed files")
        print(f"{url}: {len(files):,} files, {sum(files.values()) / 2**20:,.1f} MiB, are copied", file=sys.stderr)
        copies = []
        for path in sorted(files):
            # One folder for all: names of closed files have a token of their writer.
            copy = folder / path.rpartition("/")[2]
            if copy.exists():
                raise ValueError(f"{copy.name} is there twice; give one folder of a log at a time")
            system.get_file(path, str(copy))
            copies.append(copy)
    except Exception as error:  # beside OSError each cloud's client has errors of its own
        raise ValueError(f"{url}: {str(error) or type(error).__name__}") from None
    return copies


def _is_closed(path: str) -> bool:
    """True for the path of a closed file of an impression log."""
    return path.rpartition("/")[2].startswith(PREFIX) and path.endswith((LINES, PARQUET))
