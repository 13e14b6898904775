"""The version that serves, and changes of labels: each is one write of the file and one entry of the journal.

In: a model's folder. Out: the champion, which is the stable version, or the newest that verifies where nothing is
pinned, as services choose it. A version that was withdrawn is never it unless somebody pinned it. Versions that do not
verify are skipped by name.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from model.artifact.artifact import FORMAT_VERSION, ArtifactError, read_manifest, versions
from model.rollout.decisions import FOUND, Decisions, labels_entry
from model.rollout.journal import Journal
from model.rollout.labels import FILE_NAME, Labels, LabelsFile
from model.scorer.newest import take_newest_calibration
from model.scorer.scorer import Scorer

log = logging.getLogger(__name__)

WHO = "daily"
# Who is named where the labels' file differs from what the journal says last.
_BY_HAND = "labels.yaml"


@dataclass(frozen=True)
class Champion:
    """A version that verified and answered its golden requests."""

    path: Path
    scorer: Scorer

    @property
    def version(self) -> int:
        """Its number."""
        return self.scorer.manifest.version

    @property
    def last_trained(self) -> date | None:
        """Newest day that it was trained on. None where its data window names no day."""
        return _last_day(self.scorer.manifest.training, "train")

    @property
    def last_seen(self) -> date | None:
        """Newest day of its data window, the one that it was chosen by."""
        return _last_day(self.scorer.manifest.training, "validation")

    @property
    def is_cold(self) -> bool:
        """True where it was trained from fresh weights."""
        return "parent" not in self.scorer.manifest.training


def open_version(folder: Path, version: int) -> Champion:
    """A version of a model, with the calibration that services answer by. Raises ValueError where it does not
    verify."""
    path = folder / str(version)
    scorer = Scorer.load(path, "torchscript", model=folder.resolve().name)
    for reason in take_newest_calibration(scorer):
        log.warning("%s", reason)
    return Champion(path, scorer)


def champion_of(folder: Path, labels: Labels, withdrawn: frozenset[str]) -> Champion | None:
    """The version that serves, None where none does. Raises ValueError where the stable version does not verify:
    what services answer by then is not what was pinned."""
    if labels.stable is not None:
        try:
            return open_version(folder, labels.stable)
        except ArtifactError as error:
            raise ValueError(
                f"{folder / FILE_NAME}: stable is {labels.stable}, and that does not verify ({error}); pin another"
            ) from None
    for version in reversed(versions(folder.parent, folder.name)):
        if str(version) in withdrawn:
            log.info("%s: skipped, it was withdrawn", folder / str(version))
            continue
        try:
            return open_version(folder, version)
        except ArtifactError as error:
            log.warning("skipped, it does not verify: %s", error)
    return None


def version_of_run(folder: Path, run: str) -> int | None:
    """The version that was published from a run of this name, None where none was."""
    for version in reversed(versions(folder.parent, folder.name)):
        try:
            content = read_manifest(folder / str(version), FORMAT_VERSION)
        except ArtifactError as error:
            log.warning("not asked for its run: %s", error)
            continue
        training = content.get("training")
        if isinstance(training, dict) and training.get("run") == run:
            return version
    return None


def versions_trained_on(folder: Path, day: date) -> list[int]:
    """Versions whose own windows have a day, by their manifests."""
    found = []
    for version in versions(folder.parent, folder.name):
        try:
            training = read_manifest(folder / str(version), FORMAT_VERSION).get("training")
        except ArtifactError as error:
            log.warning("not asked for its days: %s", error)
            continue
        window = training.get("data_window") if isinstance(training, dict) else None
        if isinstance(window, dict) and any(_has_day(window, split, day) for split in ("train", "validation")):
            found.append(version)
    return found


def read_labels(folder: Path) -> Labels:
    """The labels of a model, none where there is no file. Raises ValueError for a file that is not valid."""
    file = LabelsFile(folder / FILE_NAME)
    file.poll()
    if file.error is not None:
        raise ValueError(f"{file.error}; services go by the labels before it, which nobody else knows: repair it")
    return file.last_valid


def note_found_labels(folder: Path, journal: Journal, decisions: Decisions, now: datetime) -> bool:
    """Enter labels that the journal does not know, changed by hand or by a job that was killed right after. Returns
    whether there were any."""
    found, known = read_labels(folder), decisions.labels()
    if found.document() == (known or {}):
        return False
    before = Labels() if known is None else _labels_of(known)
    reason = f"{FILE_NAME} says so, and no entry before"
    journal.append(labels_entry(now, before, found, _BY_HAND, [reason], FOUND))
    return True


def change_labels(
    folder: Path,
    journal: Journal,
    now: datetime,
    change: Callable[[Labels], Labels | None],
    reasons: list[str],
) -> bool:
    """Change the labels by what `change` makes of them, None for nothing. Returns whether they were changed. Others who
    write them wait meanwhile. Raises OSError, and ValueError for a file that is not valid."""
    file = LabelsFile(folder / FILE_NAME)
    with file.locked():
        before = read_labels(folder)
        after = change(before)
        if after is None or after == before:
            return False
        file.write(after)
        journal.append(labels_entry(now, before, after, WHO, reasons))
    return True


def _labels_of(document: Any) -> Labels:
    try:
        return Labels.model_validate(document)
    except ValueError:  # an entry that others wrote
        log.warning("the journal's last labels are none: %s", json.dumps(document)[:200])
        return Labels()


def _has_day(window: dict[str, Any], split: str, day: date) -> bool:
    bounds, left_out = window.get(split), window.get("left_out")
    if not isinstance(bounds, dict):
        return False
    first, last = _date(bounds.get("min")), _date(bounds.get("max"))
    is_left_out = isinstance(left_out, list) and day in map(_date, left_out)
    return first is not None and last is not None and first <= day <= last and not is_left_out


def _last_day(training: dict[str, Any], split: str) -> date | None:
    window = training.get("data_window")
    selection = window.get(split) if isinstance(window, dict) else None
    if isinstance(selection, dict):
        selection = selection.get("max")
    if isinstance(selection, list):
        selection = max(map(str, selection), default=None)
    return _date(selection)


def _date(value: object) -> date | None:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
