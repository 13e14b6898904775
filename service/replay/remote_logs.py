"""Logs of any fsspec URL, copied to where replay reads them.

In: paths and URLs, such as those of `--ship`. Out: local paths, of a URL those of copies, which go with the block. A
closed file that is there as lines and as Parquet is copied once, and one that becomes Parquet meanwhile as such. What
is removed meanwhile is named. Every fault is a ValueError that names the URL.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fsspec

from service.impressions.folder import PREFIX
from service.log_files.folder import LINES, PARQUET


class LocalLogs:
    """Local paths of logs. `urls` has the URL of each folder of copies, `gone` the names of files that were removed
    before they were copied."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.urls: dict[Path, str] = {}
        self.gone: list[str] = []

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
            logs.paths += _copied(one, folder, logs.gone)
        yield logs


def _copied(url: str, folder: Path, gone: list[str]) -> list[Path]:
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
            copied = _copy(system, path, copy)
            if copied is None:
                gone.append(copy.name)
            else:
                copies.append(copied)
    except Exception as error:  # beside OSError each cloud's client has errors of its own
        raise ValueError(f"{url}: {str(error) or type(error).__name__}") from None
    return copies


def _copy(system: Any, path: str, copy: Path) -> Path | None:
    """Copy a file, or the Parquet that it has become, and return where. None where it is gone."""
    for end in dict.fromkeys([path[path.rindex(".") :], PARQUET]):
        target = copy.with_suffix(end)
        try:
            system.get_file(path[: path.rindex(".")] + end, str(target))
        except FileNotFoundError:
            target.unlink(missing_ok=True)  # some clients make it before they look
        else:
            return target
    return None


def _is_closed(path: str) -> bool:
    """True for the path of a closed file of an impression log."""
    return path.rpartition("/")[2].startswith(PREFIX) and path.endswith((LINES, PARQUET))
