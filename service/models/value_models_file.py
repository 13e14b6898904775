"""The value models of one model, `<models>/<name>/value_models.yaml`, polled.

In: the file. Out: the value models for a scorer, and why the file is not taken up as it is now. A file that goes away
leaves in force what it said: removing value models for good takes a file with `{}`.
"""

from collections.abc import Callable
from pathlib import Path

from model.scorer.scorer import Scorer
from model.untrusted_files import PolledFile
from model.value_models.value_model import FILE_NAME, ValueModels
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics

_log = FieldLogger("models")


class ValueModelsFile:
    """The file of one model. One thread calls the methods. `shown` makes a reason fit for clients."""

    def __init__(self, model: str, folder: Path, metrics: Metrics, shown: Callable[[str], str]) -> None:
        self._model = model
        self._metrics = metrics
        self._shown = shown
        self._file = PolledFile(folder / FILE_NAME)
        self._content_error: str | None = None

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
            self._log_fault("the value models before it" if before is not None else "the built-in value model")
        return self._file.content != before

    def read_for(self, scorer: Scorer) -> ValueModels:
        """The value models of a version that may come to serve. Raises ValueError where the file does not fit it."""
        if self._file.content is not None:
            return ValueModels.from_bytes(self._file.content, str(self._file.path), scorer.domain)
        message = f"no {FILE_NAME}: 'default' is a sum with weight 1 on each binary task"
        _log.warning(message, model=self._model)
        return ValueModels.built_in(scorer.domain)

    def begin_first(self, scorer: Scorer) -> ValueModels:
        """The value models of a version with none beside it to serve on. A bad file is answered by the built-in one: a
        service that starts with a slip in a weights file still answers, and says by what."""
        try:
            return self.begin_serving(scorer)
        except ValueError as error:
            self._content_error = str(error)
            self._log_fault("the built-in value model")
            return ValueModels.built_in(scorer.domain)

    def begin_serving(self, scorer: Scorer) -> ValueModels:
        """The value models of a version that begins to serve. Raises ValueError where the file does not fit it."""
        value_models = self.read_for(scorer)
        self._clear_fault()
        return value_models

    def reread(self, scorers: list[Scorer]) -> list[ValueModels] | None:
        """The value models of every version that serves, None where the file does not fit them all."""
        try:
            value_models = [self.read_for(scorer) for scorer in scorers]
        except ValueError as error:
            self._content_error = str(error)
            self._log_fault("the value models before it")
            return None
        self._clear_fault()
        _log.info("value models ready", model=self._model, value_models=value_models[0].names)
        return value_models

    def _clear_fault(self) -> None:
        self._content_error = None
        if self._file.error is None:
            self._metrics.loads.labels("value_models_ready").inc()

    def _log_fault(self, instead: str) -> None:
        self._metrics.loads.labels("value_models_refused").inc()
        _log.error(f"value models refused; {instead} serves", model=self._model, reason=self.error)
