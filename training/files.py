"""Files and folders of a job: whole or absent, and none of the user's replaced.

A crash, a full disk or Ctrl-C leaves what was there before. A job writes into a folder that is new, empty or its own.
Every fault is a ValueError, raised before anything is written.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

# Of file systems, desktops and git: with these alone a folder counts as empty. No job writes files of such names.
_IGNORED = ("lost+found", ".gitkeep", ".gitignore", ".DS_Store", ".nfs*")
# What a job that was killed at once leaves (`lock_file`, `replace_file`).
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
    """Names in a folder, none where there is no folder. Raises ValueError for a file and a dangling link."""
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder}: is a link to nothing ({os.readlink(folder)}); name a folder")
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not _is_among(name, _IGNORED)]


def refuse_foreign(folder: Path, what: str, *, is_own: Callable[[], bool], left: tuple[str, ...] = LEFT_BY_ANY) -> None:
    """Raise ValueError for a folder that is not empty and is no `what`. `left` are patterns of names that a job leaves
    before `is_own` recognises its folder."""
    foreign = [name for name in entries(folder) if not _is_among(name, left)]
    if foreign and not is_own():
        shown = ", ".join(map(repr, foreign[:_SHOWN]))
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ValueError(
            f"{folder}: is not empty and is no {what} (it holds {shown}{more}), so nothing is written there; name a "
            "new or an empty folder"
        )


def refuse_within(folder: Path, data: Path | str, what: str = "data") -> None:
    """Raise ValueError for an output folder that is, or is inside, the folder that a job reads."""
    if "://" in str(data):
        return
    written, read = (Path(os.path.realpath(path)) for path in (folder, data))
    if written == read or read in written.parents:
        where = "is" if written == read else "is inside"
        raise ValueError(f"{folder}: {where} the folder of the {what} ({data}); write into another one")


def is_json_with(path: Path, *keys: str) -> bool:
    """True for a JSON mapping that has some keys: it distinguishes a job's own file from another of its name."""
    try:
        return path.is_file() and set(keys) <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextmanager
def lock_file(path: Path, taken: ValueError) -> Iterator[None]:
    """A file that is locked for this process alone, made with its folder. A job that is killed leaves it unlocked.

    Raises `taken` where another process has it, and ValueError where the file system cannot lock: two jobs at once
    would mix their files."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror}), and it keeps a second job away") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError as error:
            raise ValueError(
                f"{path}: cannot be locked ({error.strerror}), so nothing would keep a second job away; use a file "
                "system with locks"
            ) from None
        yield


def _is_among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def replace_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `parts` one after the other and replace `path` in one step. Raises ValueError naming the file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written ({error.strerror}); what was saved before is kept") from error


@contextmanager
def replaced_folder(out: Path, marker: str, own: Sequence[str]) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when all went well, and is removed when not.

    An existing `out` is replaced if it is empty, or has `marker`, by which its maker recognises its own, and otherwise
    only files of the patterns `own`. Anything else is a ValueError. Of a link its target is replaced."""
    if entries(out):
        if not (out / marker).is_file():
            raise ValueError(f"{out}: is not empty and has no {marker}, so it is not replaced; name another folder")
        files = [path.relative_to(out) for path in out.rglob("*") if path.is_symlink() or not path.is_dir()]
        foreign = sorted(str(file) for file in files if not any(fnmatch(str(file), name) for name in (marker, *own)))
        if foreign:
            raise ValueError(
                f"{out}: holds {foreign[0]!r} beside what is replaced ({len(foreign)} in all); move it away, or name "
                "another folder"
            )
    out = Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        new, old = staging / "new", staging / "old"
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def derived_seed(*numbers: int) -> int:
    """A seed from 0 to 2**63 - 1 that follows from non-negative numbers, in their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
