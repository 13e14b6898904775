"""Change of a model's labels by a person: an entry of the journal, then the file.

In: the labels file and the journal of one model, and the labels that are to be. Out: both written, or neither. The
entry is first. A change that leaves no trace would let the judge date a canary wrongly, so where the journal cannot be
written the labels stay as they are. Editing the file by hand is then left. The daily job notes such labels as found.
"""

from contextlib import suppress
from datetime import datetime

from model.rollout.decisions import labels_entry
from model.rollout.journal import FILE_NAME as JOURNAL_FILE
from model.rollout.journal import Journal
from model.rollout.labels import FILE_NAME, Labels, LabelsFile


class UnwritableJournalError(Exception):
    """An entry that cannot be written. Nothing was changed."""


def change_labels(file: LabelsFile, journal: Journal, after: Labels, time: datetime, who: str) -> None:
    """Write labels in the place of the file's last valid ones, where it is locked and was just polled. Raises
    UnwritableJournalError, and OSError where the labels cannot be written, each with the labels as they were."""
    before = file.last_valid
    if after != before:
        try:
            journal.append(labels_entry(time, before, after, who))
        except OSError as error:
            rule = f"{JOURNAL_FILE} cannot be written ({error.strerror}), and a change is made with its entry alone"
            raise UnwritableJournalError(f"{rule}; mend it, or edit {FILE_NAME} by hand") from None
    try:
        file.write(after)
    except OSError:
        if after != before:
            with suppress(OSError):  # else the next daily job finds that the labels are not the entry's
                journal.append(labels_entry(time, after, before, who, [f"{FILE_NAME} could not be written"]))
        raise
