"""`python -m service labels models/NAME '{"stable": "2"}'`: change the labels of a model where no admin API can.

In: the model's folder, writable, and what changes, as PATCH takes it (null removes a label, what is left out stays).
`{}` changes nothing and shows what is set. Where the file cannot be read, what changes has to name `stable`. Every
version that a label names has to verify and to answer its golden requests. Out: the labels as JSON. Services that read
the folder follow at their next poll. The change is an entry of the model's journal. Status 2 after one line where
something is wrong.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from model.rollout.journal import Journal
from model.rollout.label_change import UnwritableJournalError, change_labels
from model.rollout.labels import FILE_NAME, STABLE, Labels, LabelsFile
from model.scorer.scorer import Scorer
from service.models.labels import named_once


def main(arguments: Sequence[str]) -> int:
    """Change the labels. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service labels", description="Change the labels of a model.")
    parser.add_argument("folder", type=Path, help="the model's folder, models/NAME")
    parser.add_argument("changes", help='JSON: {"stable": "2", "canary": null}; {} shows what is set')
    parser.add_argument("--verify-key", type=Path, metavar="FILE", help="versions must be signed, as the service asks")
    options = parser.parse_args(arguments)
    try:
        labels = change(options.folder, options.changes, options.verify_key)
    except (ValueError, OSError, UnwritableJournalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(labels.document()))
    return 0


def change(folder: Path, changes: str, verify_key: Path | None = None) -> Labels:
    """Write the labels with their changes. Raises ValueError for what is no label or no version,
    OSError and UnwritableJournalError."""
    given = _document(changes)
    file = LabelsFile(folder / FILE_NAME)
    with file.locked():
        file.poll()
        if file.error is not None:
            if given and STABLE not in given:
                # Services may have a pin in force that is not in this file any more.
                raise ValueError(f"{file.error}; name {STABLE} too, null for no pin: the labels start again")
            print(f"not in force, and started again: {file.error}", file=sys.stderr)
        labels = Labels.from_mapping(file.last_valid.merged(given), "labels")
        for version in sorted(set(labels.versions().values())):
            Scorer.load(folder / str(version), "torchscript", verify_key, model=folder.resolve().name)
        if given:
            change_labels(file, Journal(folder), labels, datetime.now(UTC), f"user {os.getuid()}, by command")
    return labels


def _document(changes: str) -> dict[str, object]:
    try:
        given = json.loads(changes, object_pairs_hook=named_once)
    except ValueError as error:
        raise ValueError(f"changes: not JSON that is understood ({error})") from None
    if not isinstance(given, dict):
        raise ValueError('changes: expected a JSON object, as in \'{"stable": "2"}\'')
    return given
