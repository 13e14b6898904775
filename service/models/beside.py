"""The files beside a model's versions: value models, users' state.

In: `<models>/<name>/`, polled. Out: what they say to each version that is loaded, replaced in one assignment. A changed
file is taken up where it fits every version that is loaded, otherwise all of them stay as they are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.scorer.scorer import Scorer
from model.state_file import FILE_NAME as STATE_FILE
from model.state_file import StateFile
from model.value_models.value_model import FILE_NAME, ValueModels
from service.metrics.metrics import Metrics
from service.models.model_file import FileKind, ModelFile

VALUE_MODELS = FileKind(
    FILE_NAME,
    "value_models",
    "value models",
    fallback="the built-in value model",
    parse=lambda content, path, scorer: ValueModels.from_bytes(content, path, scorer.domain),
    without=lambda scorer: ValueModels.built_in(scorer.domain),
    versions=lambda value_models: {name: value_models[name].version for name in value_models.names},
    absence="'default' is a sum with weight 1 on each binary task",
)
STATE: FileKind[StateFile | None] = FileKind(
    STATE_FILE,
    "state",
    called="state of users",
    fallback="no state of users",
    parse=lambda content, path, scorer: StateFile.fitting(content, path, scorer.schema),
    without=lambda _: None,
    versions=lambda state: {} if state is None else {state.key: state.version},
)
KINDS: tuple[FileKind[Any], ...] = (VALUE_MODELS, STATE)


class Beside(NamedTuple):
    """What the files say to one version, by the keys of their kinds. None where there is no file, but for value models,
    of which one is built in."""

    value_models: ValueModels
    state: StateFile | None


class BesideFiles:
    """The files of one model. One thread calls the methods. `shown` makes a reason fit for clients."""

    def __init__(self, model: str, folder: Path, metrics: Metrics, shown: Callable[[str], str]) -> None:
        self._files = [ModelFile(kind, model, folder, metrics, shown) for kind in KINDS]

    @property
    def errors(self) -> dict[str, str | None]:
        """Reason why a file is not in force as it is, by its key."""
        return {file.kind.key: file.error for file in self._files}

    @property
    def contents(self) -> tuple[bytes | None, ...]:
        """What was read last of each file."""
        return tuple(file.content for file in self._files)

    def entry(self, beside: Beside | None) -> dict[str, Any]:
        """What a version has of each file, for /v1/models. None is for no version."""
        entry: dict[str, Any] = {}
        for file in self._files:
            key = file.kind.key
            versions = {} if beside is None else file.kind.versions(getattr(beside, key))
            entry[key] = [{"name": name, "version": version} for name, version in versions.items()]
            entry[f"{key}_error"] = file.error
        return entry

    def poll(self, serving: Sequence[tuple[Scorer, Beside]]) -> list[Beside]:
        """Read the files and return what they say from now on to the versions that serve, in their order."""
        changed = [file for file in self._files if file.poll()]
        every = [beside for _, beside in serving]
        for file in changed if serving else []:
            values = file.reread([scorer for scorer, _ in serving])
            if values is not None:
                every = [beside._replace(**{file.kind.key: value}) for beside, value in zip(every, values, strict=True)]
        return every

    def read_for(self, scorer: Scorer) -> Beside:
        """What they say to a version that may come to serve. Raises ValueError where a file does not fit it."""
        return Beside(**{file.kind.key: file.read_for(scorer) for file in self._files})

    def begin_first(self, scorer: Scorer) -> Beside:
        """What they say to a version with none beside it to serve on: a bad file has its fallback."""
        return Beside(**{file.kind.key: file.begin_first(scorer) for file in self._files})

    def begin_serving(self, scorer: Scorer) -> Beside:
        """What they say to a version that begins to serve. Raises ValueError where a file does not fit it."""
        beside = self.read_for(scorer)
        for file in self._files:
            file.mark_ready()
        return beside
