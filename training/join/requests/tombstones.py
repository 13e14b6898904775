"""Tombstones of users that are forgotten: `<out>/_join/forgotten.json`, their keyed hashes, which later joins obey."""

import json
from pathlib import Path

from training.files import replace_file
from training.join.hour_file import FORMAT

_FILE = "forgotten.json"


def tombstones(out: Path) -> frozenset[str]:
    """The hashes of the users that are forgotten. Raises ValueError for a damaged file."""
    path = out / "_join" / _FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(json.loads(content)["users"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: not the tombstones of a join; restore it, or forget these users again") from None


def add_tombstone(out: Path, hashed: str) -> None:
    """Keep the hash of a user who is forgotten. Raises ValueError."""
    users = sorted(tombstones(out) | {hashed})
    replace_file(out / "_join" / _FILE, [json.dumps({"format": FORMAT, "users": users}, indent=1).encode()])
