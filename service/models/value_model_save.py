"""One value model saved into `<models>/<name>/value_models.yaml`, under the version of the file that its author saw.

In: a definition, and the sha256 of the file as it was seen, None where there was none. Out: the file with that entry,
replaced by one rename, and before it a line of the model's journal. Other entries keep their text. Where anything is
refused, the file is as it was.
"""

import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from model.rollout.decisions import AFTER, BEFORE, CHANGED, VALUE_MODELS
from model.rollout.journal import FILE_NAME as JOURNAL_FILE
from model.rollout.journal import Entry, Journal
from model.rollout.locks import lock
from model.rollout.replaced_file import replace_file
from model.scorer.scorer import Scorer
from model.untrusted_files import read_bytes
from model.value_models.entry_edit import entry_line, with_entry
from model.value_models.value_model import DEFAULT, FILE_NAME, ValueModels
from service.base.errors import Fault, Problem


@dataclass(frozen=True, slots=True)
class ValueModelSave:
    """A value model that is to be saved. `seen` is the sha256 of the file that its author saw."""

    name: str
    definition: Mapping[str, Any]
    seen: str | None
    time: datetime
    who: str

    def write(self, folder: Path, journal: Journal, scorers: Sequence[Scorer]) -> None:
        """Save it, where it fits every version that is loaded. Raises Problem: 409 where the folder is read-only here,
        412 where the file is another by now, 422 where the value model does not fit, 500, 503 without any version."""
        if not scorers:
            raise Problem(503, "no version of the model is loaded, which a value model could be checked for")
        if not os.access(folder, os.W_OK):
            raise _read_only()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock(descriptor)
                self._write(folder / FILE_NAME, journal, scorers)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno == errno.EROFS:
                raise _read_only() from None
            raise Problem(500, f"{FILE_NAME} cannot be written ({error.strerror})") from None

    def _write(self, path: Path, journal: Journal, scorers: Sequence[Scorer]) -> None:
        try:
            before = read_bytes(path)
        except FileNotFoundError:
            before = None
        if before is None or self.seen is None:
            is_as_seen = before is None and self.seen is None
        else:
            is_as_seen = hashlib.sha256(before).hexdigest() == self.seen
        if not is_as_seen:
            detail = f"{FILE_NAME} is not as it was seen; look at what others have changed, then save again"
            raise Problem(412, detail)
        try:
            after = with_entry(_base(before, scorers[0]), self.name, self.definition, FILE_NAME)
            values = [ValueModels.from_bytes(after, FILE_NAME, scorer.domain) for scorer in scorers]
        except ValueError as error:
            raise Problem.wrong_content([Fault("$", str(error))]) from None
        if after != before:
            entry = self._entry(before, after, values[0], scorers[0])
            try:
                journal.append(entry)
            except OSError as error:
                if error.errno == errno.EROFS:
                    raise
                rule = f"{JOURNAL_FILE} cannot be written ({error.strerror}), and a change is made with its entry alone"
                raise Problem(500, rule) from None
            try:
                replace_file(path, after)
            except OSError:
                with suppress(OSError):  # the journal has the sha256 of what was to be
                    journal.append(entry.model_copy(update={"reasons": (f"{FILE_NAME} could not be written",)}))
                raise

    def _entry(self, before: bytes | None, after: bytes, values: ValueModels, scorer: Scorer) -> Entry:
        versions: dict[str, Any] = {BEFORE: {self.name: None}, AFTER: {self.name: values[self.name].version}}
        try:
            stood = ValueModels.built_in(scorer.domain)
            if before is not None:
                stood = ValueModels.from_bytes(before, FILE_NAME, scorer.domain)
            if self.name in stood:
                versions[BEFORE] = {self.name: stood[self.name].version}
        except ValueError:  # what stood there was no value model
            versions[BEFORE] = {self.name: "refused"}
        inputs = {FILE_NAME: hashlib.sha256(after).hexdigest()}
        return Entry(
            time=self.time, step=VALUE_MODELS, decision=CHANGED, versions=versions, inputs=inputs, who=self.who
        )


def _base(content: bytes | None, scorer: Scorer) -> bytes:
    """The content that an entry comes into. Without a file, or with an empty mapping, one with the built-in `default`,
    as a file needs that name."""
    if content is not None and content.strip() != b"{}":
        return content
    built_in = ValueModels.built_in(scorer.domain)[DEFAULT].definition
    return entry_line(DEFAULT, built_in.model_dump(mode="json")).encode()


def _read_only() -> Problem:
    detail = f"the models folder is read-only here; put the entry into {FILE_NAME} where the folder is written"
    return Problem(409, detail)
