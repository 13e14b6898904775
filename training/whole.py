"""Files and folders that appear whole or not at all: a crash, a full disk or Ctrl-C leaves what was there before."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from training.output_folder import entries


def replace_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes `parts` one after the other and replaces `path` in one step. Raises ValueError naming the file."""
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

    An existing `out` is replaced if it is empty, or holds `marker`, the file by which its maker knows its own, and no
    file beside it but those of the patterns `own`; anything else is a ValueError. Of a link its target is replaced."""
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
