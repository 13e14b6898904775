"""The types of events that a model's files name: join.yaml beside its versions, polled.

In: `<models>/<name>/join.yaml`, a copy of the file that the model's rows are joined by. Out: the types that metrics
name, and those whose events need an `event_id`. A file that goes bad leaves in force what it said before.
"""

from pathlib import Path

from model.join_file import FILE_NAME, SHOWN, JoinFile
from model.untrusted_files import PolledFile
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics

_log = FieldLogger("events")


class EventTypes:
    """The types of every model's events. One thread polls, others read."""

    def __init__(self, models: Path, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._files: dict[str, PolledFile] = {}
        self._joins: dict[str, JoinFile] = {}

    def poll(self, models: list[str]) -> None:
        """Read the files of these models. May block."""
        for model in models:
            file = self._files.setdefault(model, PolledFile(self._models / model / FILE_NAME))
            if file.poll():
                self._take(model, file)

    def named(self, model: str) -> frozenset[str]:
        """The types that the model's file names, `shown` alone where there is none."""
        join = self._joins.get(model)
        return frozenset({SHOWN}) if join is None else join.event_types

    def adding(self, model: str) -> frozenset[str]:
        """The types whose events need an `event_id`. Empty where there is no file: the join then leaves such events
        out, and counts them."""
        join = self._joins.get(model)
        return frozenset() if join is None else join.adding_types

    def _take(self, model: str, file: PolledFile) -> None:
        error = file.error
        if error is None and file.content is not None:
            try:
                self._joins = {**self._joins, model: JoinFile.from_bytes(file.content, str(file.path))}
            except ValueError as refused:
                error = str(refused)
        self._metrics.file_errors.labels(model, "join").set(error is not None)
        fields = {"model": model, "reason": error}
        if error is not None:
            _log.error("join file refused; the one before it stays in force", **fields)
        elif file.content is not None:
            _log.info("join file read", model=model, types=sorted(self.named(model)))
