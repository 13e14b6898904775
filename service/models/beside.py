"""The files beside a model's versions: value models, users' state, policies, experiments.

In: `<models>/<name>/`, polled. Out: what they say to each version that is loaded, replaced in one assignment. A changed
file is taken up where it fits every version that is loaded, otherwise all of them stay as they are.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.experiments.assignment import Experiments
from model.experiments.experiments_file import FILE_NAME as EXPERIMENTS_FILE
from model.experiments.experiments_file import Setting
from model.policies.policies import FILE_NAME as POLICIES_FILE
from model.policies.policies import Policies
from model.scorer.scorer import Scorer
from model.state_file import FILE_NAME as STATE_FILE
from model.state_file import StateFile
from model.value_models.value_model import FILE_NAME, ValueModels
from service.metrics.metrics import Metrics
from service.models.model_file import FileKind, ModelFile

_Read = Callable[[Scorer, Mapping[str, Any]], Any]

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
POLICIES: FileKind[Policies | None] = FileKind(
    POLICIES_FILE,
    "policies",
    "policies",
    fallback="descending score",
    parse=lambda content, path, scorer: Policies.from_bytes(content, path, scorer.schema, scorer.domain),
    without=lambda _: None,
    versions=lambda policies: {} if policies is None else {name: policies[name].version for name in policies.names},
    reads=("state",),
    check=lambda policies, path, scorer, beside: _check_policies(policies, path, beside),
)
EXPERIMENTS: FileKind[Experiments | None] = FileKind(
    EXPERIMENTS_FILE,
    "experiments",
    "experiments",
    fallback="no experiment",
    parse=lambda content, path, scorer: Experiments.from_bytes(content, path),
    without=lambda scorer: None,
    versions=lambda experiments: {} if experiments is None else experiments.epochs,
    is_shared=True,
    reads=("value_models", "state", "policies"),
    check=lambda experiments, path, scorer, beside: _check_experiments(experiments, path, scorer, beside),
)
# Each after those that it reads.
KINDS: tuple[FileKind[Any], ...] = (VALUE_MODELS, STATE, POLICIES, EXPERIMENTS)


class Beside(NamedTuple):
    """Contents of the files for one version, by the keys of their kinds. None where there is no file, but for value
    models, of which one is built in."""

    value_models: ValueModels
    state: StateFile | None
    policies: Policies | None
    experiments: Experiments | None


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
        """Bytes of each file as they were read last."""
        return tuple(file.content for file in self._files)

    def entry(self, beside: Beside | None) -> dict[str, Any]:
        """Entry of each file in /v1/models, as a version has it. None is for no version."""
        entry: dict[str, Any] = {}
        for file in self._files:
            key = file.kind.key
            versions = {} if beside is None else file.kind.versions(getattr(beside, key))
            entry[key] = [{"name": name, "version": version} for name, version in versions.items()]
            entry[f"{key}_error"] = file.error
            if file.kind is VALUE_MODELS:
                entry[f"{key}_sha256"] = None if file.content is None else hashlib.sha256(file.content).hexdigest()
        return entry

    def poll(self, serving: Sequence[tuple[Scorer, Beside]]) -> list[Beside]:
        """Read the files and return what they say from now on to the versions that serve, in their order."""
        changed = {file.kind.key for file in self._files if file.poll()}
        every = [beside for _, beside in serving]
        for file in self._files if serving else []:
            if file.kind.key not in changed and (file.content is None or changed.isdisjoint(file.kind.reads)):
                continue
            scorers = [scorer for scorer, _ in serving]
            values = file.reread([(scorer, said._asdict()) for scorer, said in zip(scorers, every, strict=True)])
            if values is not None:
                every = [beside._replace(**{file.kind.key: value}) for beside, value in zip(every, values, strict=True)]
        return every

    def read_for(self, scorer: Scorer) -> Beside:
        """Contents for a version that may come to serve. Raises ValueError where a file does not fit it."""
        return self._said(scorer, lambda file: file.read_next)

    def begin_first(self, scorer: Scorer) -> Beside:
        """Contents for a version with none beside it to serve on: a bad file has its fallback."""
        return self._said(scorer, lambda file: file.begin_first)

    def begin_serving(self, scorer: Scorer) -> Beside:
        """Contents for a version that begins to serve. Raises ValueError where a file does not fit it."""
        beside = self.read_for(scorer)
        for file in self._files:
            if not file.kind.is_shared:
                file.mark_ready()
        return beside

    def _said(self, scorer: Scorer, read_of: Callable[[ModelFile[Any]], _Read]) -> Beside:
        said: dict[str, Any] = {}
        for file in self._files:
            said[file.kind.key] = read_of(file)(scorer, said)
        return Beside(**said)


def _check_policies(policies: Policies | None, path: str, beside: Mapping[str, Any]) -> None:
    state: StateFile | None = beside["state"]
    if policies is not None and state is not None:  # where no file of state is, the log says that nothing is kept
        policies.check_histories(list(state.append), path)


def _check_experiments(experiments: Experiments | None, path: str, scorer: Scorer, beside: Mapping[str, Any]) -> None:
    if experiments is not None:
        policies: Policies | None = beside["policies"]
        names: dict[Setting, list[str]] = {
            "value_model": beside["value_models"].names,
            "policy": [] if policies is None else policies.names,
        }
        state: StateFile | None = beside["state"]
        experiments.check(scorer.schema, scorer.manifest.user if state is None else state.key, names, path)
