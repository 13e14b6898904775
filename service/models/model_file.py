"""A file beside a model's versions, such as `<models>/<name>/value_models.yaml`, polled.

In: the file. Out: what it says to a scorer, and why the file is not taken up as it is now. A file that goes away leaves
in force what it said: removing it for good takes a file with `{}`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.scorer.scorer import Scorer
from model.untrusted_files import PolledFile
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics

T = TypeVar("T")

_log = FieldLogger("models")


@dataclass(frozen=True, slots=True)
class FileKind(Generic[T]):
    """A kind of file beside versions. `key` names it in `ServedModel`, /v1/models and metrics, `called` in messages.

    `parse` makes a value of content, path and scorer, and raises ValueError where the file does not fit. `without` is
    the value where there is no file, or where the first is a bad one: messages call it `fallback`. `absence` is logged
    where there is no file. `versions` are what a value has, by name. `check` raises ValueError where a path's value
    does not fit what other files say to a version, by key: those that `reads` names, which are read before it. What
    `is_shared` is of no single version: one more, which it does not fit, serves with what is in force."""

    file_name: str
    key: str
    called: str
    fallback: str
    parse: Callable[[bytes, str, Scorer], T]
    without: Callable[[Scorer], T]
    versions: Callable[[T], Mapping[str, str]]
    absence: str | None = None
    is_shared: bool = False
    reads: tuple[str, ...] = ()
    check: Callable[[T, str, Scorer, Mapping[str, Any]], None] | None = None


class ModelFile(Generic[T]):
    """The file of one kind of one model. One thread calls the methods. `shown` makes a reason fit for clients."""

    def __init__(
        self, kind: FileKind[T], model: str, folder: Path, metrics: Metrics, shown: Callable[[str], str]
    ) -> None:
        self.kind = kind
        self._model = model
        self._metrics = metrics
        self._shown = shown
        self._file = PolledFile(folder / kind.file_name)
        self._content_error: str | None = None
        self._in_force: T | None = None

    @property
    def error(self) -> str | None:
        """Reason why the file is not in force as it is, None where it is, or where there never was one."""
        error = self._file.error or self._content_error
        return None if error is None else self._shown(error)

    @property
    def content(self) -> bytes | None:
        """The content read last, None where nothing was."""
        return self._file.content

    def poll(self) -> bool:
        """Read the file and return whether its content has changed."""
        before = self._file.content
        if self._file.poll() and self._file.error is not None:
            self._log_fault(self._before if before is not None else self.kind.fallback)
        return self._file.content != before

    def read_for(self, scorer: Scorer, beside: Mapping[str, Any]) -> T:
        """The value for a version that may come to serve. Raises ValueError where the file does not fit it."""
        if self._file.content is not None:
            path = str(self._file.path)
            value = self.kind.parse(self._file.content, path, scorer)
            if self.kind.check is not None:
                self.kind.check(value, path, scorer, beside)
            return value
        if self.kind.absence is not None:
            _log.warning(f"no {self.kind.file_name}: {self.kind.absence}", model=self._model)
        return self.kind.without(scorer)

    def read_next(self, scorer: Scorer, beside: Mapping[str, Any]) -> T:
        """The value for a version beside those that serve. Raises ValueError where the file is of single versions and
        does not fit it."""
        try:
            return self.read_for(scorer, beside)
        except ValueError as error:
            if not self.kind.is_shared:
                raise
            message = f"{self.kind.called} do not fit one more version; what was in force serves"
            _log.error(message, model=self._model, model_version=scorer.version, reason=self._shown(str(error)))
            return self.kind.without(scorer) if self._in_force is None else self._in_force

    def begin_first(self, scorer: Scorer, beside: Mapping[str, Any]) -> T:
        """The value for a version with none beside it to serve on. A bad file is answered by the fallback: a service
        that starts with a slip in such a file still answers, and says by what."""
        try:
            value = self.read_for(scorer, beside)
        except ValueError as error:
            self._content_error = str(error)
            self._log_fault(self.kind.fallback)
            return self.kind.without(scorer)
        self._in_force = value
        self.mark_ready()
        return value

    def reread(self, serving: Sequence[tuple[Scorer, Mapping[str, Any]]]) -> list[T] | None:
        """The value for every version that serves, None where the file does not fit them all."""
        try:
            values = [self.read_for(scorer, beside) for scorer, beside in serving]
        except ValueError as error:
            self._content_error = str(error)
            self._log_fault(self._before)
            return None
        self._in_force = values[0]
        self.mark_ready()
        names = {self.kind.key: list(self.kind.versions(values[0]))}
        _log.info(f"{self.kind.called} ready", model=self._model, **names)
        return values

    def mark_ready(self) -> None:
        """Note that the file is in force as it was read last, or what serves without one."""
        self._content_error = None
        is_in_force = self._file.content is not None or self.kind.absence is not None
        if self._file.error is None and is_in_force:
            self._metrics.loads.labels(f"{self.kind.key}_ready").inc()

    @property
    def _before(self) -> str:
        return f"the {self.kind.called} before it"

    def _log_fault(self, instead: str) -> None:
        self._metrics.loads.labels(f"{self.kind.key}_refused").inc()
        _log.error(f"{self.kind.called} refused; {instead} serves", model=self._model, reason=self.error)
