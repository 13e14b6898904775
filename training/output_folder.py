"""Output folders: a job writes into one that is new, empty or its own, so that nothing of the user's is replaced.

In: the path that a command or a file names, and how the job knows its own folder. Every fault is a ValueError, raised
before anything is written.
"""

import json
import os
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

# Of file systems, desktops and git: with these alone a folder counts as empty. No job writes files of such names.
_IGNORED = ("lost+found", ".gitkeep", ".gitignore", ".DS_Store", ".nfs*")
# What a job that was killed at once leaves (`locked`, `replace_file`).
LEFT_BY_ANY = (".lock", ".*.partial")
_SHOWN = 3


def output_path(value: object) -> Path:
    """A path as a file or an option gives it. Raises ValueError for an empty one, and for a URL."""
    if not isinstance(value, str | Path):
        raise ValueError(f"expected a folder, got {type(value).__name__}")
    if not str(value).strip() or "\0" in str(value):
        raise ValueError("is empty; name a folder to write into")
    if "://" in str(value):
        raise ValueError(f"{value}: is a URL; name a folder of this machine")
    return Path(value)


def entries(folder: Path) -> list[str]:
    """Names in a folder; none where there is no folder. Raises ValueError for a file and a dangling link."""
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder}: is a link to nothing ({os.readlink(folder)}); name a folder")
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not _is_among(name, _IGNORED)]


def refuse_foreign(folder: Path, what: str, *, is_own: Callable[[], bool], left: tuple[str, ...] = LEFT_BY_ANY) -> None:
    """Raises ValueError for a folder that holds something and is no `what`; `left` are patterns of names that a job
    leaves before `is_own` knows its folder."""
    foreign = [name for name in entries(folder) if not _is_among(name, left)]
    if foreign and not is_own():
        shown = ", ".join(map(repr, foreign[:_SHOWN]))
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ValueError(
            f"{folder}: is not empty and is no {what} (it holds {shown}{more}), so nothing is written there; name a "
            "new or an empty folder"
        )


def refuse_within(folder: Path, data: Path | str, what: str = "data") -> None:
    """Raises ValueError for an output folder that is, or is inside, the folder that a job reads."""
    if "://" in str(data):
        return
    written, read = (Path(os.path.realpath(path)) for path in (folder, data))
    if written == read or read in written.parents:
        where = "is" if written == read else "is inside"
        raise ValueError(f"{folder}: {where} the folder of the {what} ({data}); write into another one")


def is_json_with(path: Path, *keys: str) -> bool:
    """True for a JSON mapping that has some keys: it tells a job's own file from another of its name."""
    try:
        return path.is_file() and set(keys) <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _is_among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
