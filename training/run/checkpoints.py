"""A run's checkpoints: one folder each, written beside training, visible only when whole, read only when undamaged.

    checkpoints/<step>/state.pt        network, optimizers, balancing, policies, position, history (state_file.py)
    checkpoints/<step>/tables-*.pt     tables and their optimizers' states, a file a process (table_files.py)
    checkpoints/<step>/manifest.json   format, schema, configuration, number of processes, sha256 of every file
    checkpoints/last, best             links to the newest and to the best one

A write takes copies and goes on in a thread, with a process group of its own. What failed in it is raised by the next
`save` or `wait`, the same on all processes. A full disk ends training so, and leaves every earlier checkpoint. The
newest `keep` and the best are kept. The folder must be one that all processes see.
"""

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil
import torch.distributed as dist

from model.artifact.artifact import sync
from model.untrusted_files import DOCUMENT_BYTES, fingerprint_of, open_regular, read_bytes, sha256_of
from training.distributed.ranks import Ranks
from training.files import replace_file
from training.run import state_file, table_files
from training.run.table_files import Table

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
STATE = "state.pt"
MANIFEST = "manifest.json"
LAST_LINK, BEST_LINK = "last", "best"
FORMAT = 2

Parts = tuple[bytes | memoryview, ...]


class Checkpoints:
    """Writes, prunes and finds the checkpoints of the run in folder `run`."""

    def __init__(self, run: Path, ranks: Ranks, *, keep: int, about: Mapping[str, Any]) -> None:
        """`about` is in every manifest: the schema and the configuration that the run is of."""
        self._folder = run / FOLDER
        self._ranks = ranks
        self._keep = keep
        self._about = dict(about)
        self._group = dist.new_group(backend="gloo") if ranks.world > 1 else None
        self._thread: threading.Thread | None = None
        self._fault: str | None = None
        self._saved_step = -1
        ranks.first_does(self._remove_partials)

    def _remove_partials(self) -> None:
        """Remove what a write that was killed has left."""
        for partial in self._folder.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def save(self, step: int, state: Mapping[str, Any], tables: Mapping[str, Any], *, is_best: bool = False) -> None:
        """Begin to write the checkpoint of `step` steps. All processes call it. Raises ValueError where the write
        before this one failed."""
        self.wait()
        if step == self._saved_step and not is_best:
            return
        self._saved_step = step
        parts = state_file.encoded(dict(state)) if self._ranks.is_first else ()
        held = table_files.own_parts(tables, is_first=self._ranks.is_first)
        if 2 * table_files.size_of(held) > psutil.virtual_memory().available:
            # No room for copies: training waits until the tables are on disk.
            self._write(step, parts, held, is_best)
            self.wait()
            return
        arguments = (step, parts, table_files.copied(held), is_best)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait until everything is written. Raises ValueError where it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            self._saved_step = -1
            raise ValueError(fault)

    def _write(self, step: int, parts: Parts, tables: Mapping[str, Table], is_best: bool) -> None:
        final = self._folder / f"{step:010d}"
        partial = self._folder / f".{final.name}.partial"
        try:
            self._on_all(self._make_folder if self._ranks.is_first else None, partial)
            sums = self._on_all(self._write_own, partial, parts, tables)
            files = {name: entry for found in sums for name, entry in found.items()}
            self._on_all(self._publish if self._ranks.is_first else None, partial, final, files, is_best)
        except Exception as error:
            if self._ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            reason = _reason(error, self._folder)
            self._fault = f"{final}: the checkpoint cannot be written ({reason}); what was saved before is kept"

    def _on_all(self, what: Any, *arguments: Any) -> list[Any]:
        """Do `what` on this process and return all processes' results. A fault of one is raised on all."""
        result, fault = None, None
        try:
            result = what(*arguments) if what is not None else None
        except Exception as error:
            fault = _reason(error, self._folder)
        found: list[Any] = [(result, fault)]
        if self._group is not None:
            found = [None] * self._ranks.world
            dist.all_gather_object(found, (result, fault), group=self._group)
        faults = [fault for _, fault in found if fault is not None]
        if faults:
            raise OSError(faults[0])
        return [result for result, _ in found]

    def _make_folder(self, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def _write_own(self, partial: Path, parts: Parts, tables: Mapping[str, Table]) -> dict[str, dict[str, Any]]:
        """Write this process's files. Returns their sizes and checksums."""
        names = []
        if tables:
            names.append(table_files.file_of(self._ranks.rank))
            table_files.write(partial / names[0], tables)
        if self._ranks.is_first:
            replace_file(partial / STATE, parts)
            names.append(STATE)
        return {name: _entry(partial / name) for name in names}

    def _publish(self, partial: Path, final: Path, files: Mapping[str, Any], is_best: bool) -> None:
        manifest = {"format": FORMAT, **self._about, "processes": self._ranks.world, "files": files}
        replace_file(partial / MANIFEST, (json.dumps(manifest, indent=1).encode(),))
        sync(partial)
        if final.exists():  # one that was skipped as damaged, or that this run has written before
            shutil.rmtree(final)
        partial.rename(final)
        sync(self._folder)
        for link in (LAST_LINK, *([BEST_LINK] if is_best else [])):
            self._link(link, final.name)
        kept = {path.name for path in self.folders()[: self._keep]} | {_target(self._folder / BEST_LINK), final.name}
        for path in self.folders():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _link(self, name: str, target: str) -> None:
        temporary = self._folder / f".{name}.link"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        if (self._folder / name).is_dir() and not (self._folder / name).is_symlink():
            shutil.rmtree(self._folder / name)  # the copy of the run has followed the link
        temporary.replace(self._folder / name)

    def folders(self) -> list[Path]:
        """The folders of whole checkpoints, damaged ones included, the newest first."""
        return sorted((path for path in self._folder.glob("[0-9]*") if path.is_dir()), reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is undamaged. None where there is none at all. Raises ValueError where all are
        damaged, and where one is of another schema."""
        name: str | None = self._ranks.first_does(self._newest)
        if name is None:
            return None
        self._saved_step = int(name)  # it need not be written again
        return self._folder / name

    def _newest(self) -> str | None:
        damaged = []
        for path in self.folders():
            try:
                manifest = verified(path)
            except ValueError as error:
                log.warning("%s; using the checkpoint before it", error)
                damaged.append(path)
                continue
            for key, value in self._about.items():
                if manifest.get(key) != value:
                    raise ValueError(f"{path}: is of another {key} ({manifest.get(key)}) than this run ({value})")
            self._link(LAST_LINK, path.name)
            return path.name
        if damaged:
            raise ValueError(f"{self._folder}: every checkpoint is damaged ({', '.join(p.name for p in damaged)})")
        return None


def any_found(run: Path) -> bool:
    """True where a run's folder contains a checkpoint, damaged or not."""
    return any(path.is_dir() for path in (run / FOLDER).glob("[0-9]*"))


def verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files all are as they were written. Raises ValueError naming what is not."""
    try:
        manifest = json.loads(read_bytes(path / MANIFEST, DOCUMENT_BYTES))
        files = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        for name, entry in files.items():
            if "/" in name or _entry(path / name) != entry:
                raise ValueError(f"{name}: its checksum does not match")
    except OSError as error:
        raise ValueError(f"{path}: the checkpoint is damaged ({error.filename}: {error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the checkpoint is damaged ({error})") from None
    assert isinstance(manifest, dict)
    return manifest


def _entry(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        return {"bytes": fingerprint_of(file).size_bytes, "sha256": sha256_of(file)}


def _target(link: Path) -> str:
    return os.readlink(link) if link.is_symlink() else ""


def _reason(error: BaseException, folder: Path) -> str:
    """Reason of a failed write, in a few words. torch's writers say of a full disk that a position was not expected."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    room = os.statvfs(folder if folder.exists() else folder.parent)
    if room.f_bavail * room.f_frsize < 1 << 20:
        return os.strerror(errno.ENOSPC)
    return str(error).splitlines()[0] if str(error) else type(error).__name__
