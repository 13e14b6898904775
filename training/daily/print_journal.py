"""`python -m training journal MODELS NAME`: the decisions about a model, in the order made.

In: the models folder and a model's name. Out: lines for people, with the figures, versions and inputs of each
decision. What lies in the journal and is no entry is counted. Raises ValueError for a model without a folder.
"""

from collections.abc import Iterator
from pathlib import Path

from model.rollout.journal import Entry, Journal, shown

_SHOWN_FAULTS = 3
_HASH_DIGITS = 12


def journal_lines(models: Path, name: str, most: int | None = None) -> Iterator[str]:
    """The lines of the last `most` decisions, or of all."""
    folder = models / name
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no model of this name")
    content = Journal(folder).read()
    entries = content.entries if most is None else content.entries[-most:]
    for entry in entries:
        yield from _lines_of(entry)
    if not content.entries:
        yield f"{folder}: no decision yet"
    if content.faults:
        yield f"lines that are no entry: {len(content.faults):,}"
        yield from (f"  {fault}" for fault in content.faults[:_SHOWN_FAULTS])


def _lines_of(entry: Entry) -> Iterator[str]:
    time = entry.time.isoformat(timespec="seconds").replace("+00:00", "Z")
    versions = "".join(f"  {role} {shown(version)}" for role, version in entry.versions.items())
    yield _printable(f"{time}  {entry.step}: {entry.decision}{versions}  by {entry.who}")
    for reason in entry.reasons:
        yield _printable(f"    {reason}")
    for figure, value in entry.figures.items():
        yield _printable(f"    {figure}: {shown(value)}")
    for file, sha256 in entry.inputs.items():
        yield _printable(f"    read {file} ({sha256[:_HASH_DIGITS]})")


def _printable(text: str) -> str:
    """Text without characters that would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
