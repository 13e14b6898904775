"""Listing of a log's folder: its *.parquet files, those of its Hive-style partitions, and what is ignored.

Names are hidden as for Spark, and as for Arrow but for the last: those that begin with a dot, and those that begin
with an underscore and have no `=` (`_model=3` is a partition). Every fault is a ValueError that names the folder.
"""

from dataclasses import dataclass, field
from typing import Any

from training.data.retries import first_line, retried


@dataclass(slots=True)
class Listing:
    """By its name within the folder each file's path in the file system. `passed_over` has, by kind, the names of what
    is no part of the log."""

    files: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def pass_over(self, kind: str, name: str) -> None:
        """Note an entry that is no part of the log."""
        self.passed_over.setdefault(kind, []).append(name)


def listing_of(system: Any, root: str, shown: str) -> Listing:
    """All files below a folder of an fsspec file system, or the one file that `root` is. `shown` is its name in
    messages. Raises ValueError for a folder that cannot be listed."""
    listing = Listing()
    _list(listing, system, root, shown, "")
    return listing


def _list(listing: Listing, system: Any, folder: str, shown: str, name: str) -> None:
    place = f"{shown.rstrip('/')}/{name}".rstrip("/")
    entries = _entries(system, folder, place, is_root=not name)
    for entry in entries:
        path = entry["name"].rstrip("/")
        last = path.rsplit("/", 1)[-1]
        is_itself = path == folder.rstrip("/")  # a file is listed as itself
        if _is_hidden(last) and not is_itself:
            listing.pass_over("hidden", name + last)
        elif last.endswith(".parquet"):
            listing.files[name + last] = path
        elif "=" in last and _is_folder(system, entry, f"{place}/{last}"):
            _list(listing, system, path, shown, f"{name}{last}/")
        else:
            listing.pass_over("neither *.parquet nor a partition", name + last)
    if name and not entries:
        listing.pass_over("empty", name.rstrip("/"))


def _entries(system: Any, folder: str, place: str, *, is_root: bool) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = retried(lambda: system.ls(folder, detail=True), place)
    except Exception as error:  # beside OSError each cloud's client has errors of its own
        if isinstance(error, FileNotFoundError) and is_root:
            raise ValueError(f"{place}: no *.parquet file here: there is no such folder") from None
        raise ValueError(
            f"{place}: cannot be listed ({first_line(error)}); a log is read whole or not at all: make it readable, or "
            "move it out of the log"
        ) from None
    return entries


def _is_folder(system: Any, entry: dict[str, Any], place: str) -> bool:
    if entry.get("islink"):  # a local link is listed as neither
        try:
            return bool(retried(lambda: system.info(entry["name"]), place)["type"] == "directory")
        except OSError as error:
            raise ValueError(f"{place}: a link that leads nowhere ({first_line(error)}); remove or fix it") from None
    return bool(entry["type"] == "directory")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)
