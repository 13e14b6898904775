"""One model's folder, `<models>/<name>/`: its versions, its value models, and which of them are served.

In: the folder, looked at again and again by the store's polling thread. Out: a `ServedModel`, replaced in one
assignment: a request that has begun keeps the one it took. The newest version that verifies is served. One that does
not is quarantined with its reason and tried again only when its files change; the one before it serves on. What is
made later beside a version (a compiled package) is taken up when it appears.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.artifact import ArtifactError, versions
from model.scorer import Engine, EngineChoice, Scorer
from model.value_model import FILE_NAME, ValueModels
from service.catalogue_watch import CatalogueWatch
from service.metrics import Metrics, ModelMetrics
from service.model_files import Fingerprint, fingerprint
from service.request_log import LOGGER

State = Literal["loading", "ready", "quarantined", "retired"]

_log = logging.getLogger(f"{LOGGER}.models")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model version and the value models that score with it."""

    name: str
    scorer: Scorer
    value_models: ValueModels
    metrics: ModelMetrics


@dataclass(frozen=True, slots=True)
class VersionState:
    """What became of one published version, as /v1/models tells it; of a ready one, `reason` is why it is not compiled,
    or that it answers its golden requests no more."""

    state: State
    reason: str | None = None
    engine: Engine = "torchscript"


class ModelFamily:
    """The versions of one model. `refresh` is called by one thread; the attributes are read by all."""

    def __init__(
        self,
        models: Path,
        name: str,
        metrics: Metrics,
        engine: EngineChoice = "auto",
        verify_key: Path | None = None,
    ) -> None:
        self.name = name
        self.served: ServedModel | None = None
        self.states: dict[int, VersionState] = {}
        self.value_models_error: str | None = None
        self._models = models
        self._folder = models / name
        self._metrics = metrics
        self._engine: EngineChoice = engine
        self._verify_key = verify_key
        self._tried: dict[int, Fingerprint] = {}
        self._derived_tried: Fingerprint | None = None
        self._doubted: Scorer | None = None
        self._golden_error: str | None = None
        self._value_file_tried: Fingerprint | None = None
        self._catalogue = CatalogueWatch(name, metrics, self._place_free)

    def refresh(self) -> None:
        """Takes up what has changed on disk: a newer version, another value-model file."""
        value_file = fingerprint([self._folder / FILE_NAME])
        if self.served is not None and value_file != self._value_file_tried:
            self._reload_value_models(self.served)
        self._value_file_tried = value_file
        if self.served is not None:
            self._check_doubted(self.served.scorer)
            if self._derived(self.served.scorer.manifest.version) != self._derived_tried:
                self._reload_engine(self.served)
        serving = 0 if self.served is None else self.served.scorer.manifest.version
        published = versions(self._models, self.name)
        for version in reversed(published):
            if version <= serving:
                break
            # The value models belong to the fingerprint: where they did not fit a version, a new file is a new try.
            files = fingerprint(sorted((self._folder / str(version)).glob("*")))
            state = (*files, *value_file, *self._derived(version))
            if self._tried.get(version) != state:
                self._tried[version] = state
                self._try_version(version)
            if self.states[version].state == "ready":
                break
        if self.served is not None:
            self._catalogue.refresh(self.served.scorer)
        known = {version: self.states.get(version, VersionState("retired")) for version in published}
        if self.served is not None:  # it serves on from memory, even where its folder is gone
            known[self.served.scorer.manifest.version] = self._ready(self.served.scorer)
        self.states = known

    def entry(self) -> dict[str, Any]:
        """This model as /v1/models shows it."""
        served = self.served
        return {
            "name": self.name,
            "default_version": None if served is None else served.scorer.version,
            "labels": {},
            "versions": [
                {"version": str(version), "state": state.state, "engine": state.engine, "reason": state.reason}
                for version, state in sorted(self.states.items(), reverse=True)
            ],
            "value_models": []
            if served is None
            else [{"name": name, "version": served.value_models[name].version} for name in served.value_models.names],
            "value_models_error": self.value_models_error,
            "catalogue": None if served is None else self._catalogue.entry(served.scorer),
        }

    def doubt(self, scorer: Scorer) -> None:
        """Has the next refresh see whether a version that gave a score which is not finite still answers its golden
        requests."""
        self._doubted = scorer

    def _try_version(self, version: int) -> None:
        self.states = {**self.states, version: VersionState("loading")}
        derived = self._derived(version)
        try:
            scorer = Scorer.load(self._folder / str(version), self._engine, self._verify_key)
            value_models = self._value_models_for(scorer)
            self._catalogue.refresh(scorer)  # before it is served: who asks by ids alone meets a catalogue
        except Exception as error:  # whatever a published folder holds, the version before it serves on
            reason = self._place_free(str(error) or repr(error))
            self.states = {**self.states, version: VersionState("quarantined", reason)}
            self._metrics.loads.labels("quarantined").inc()
            _log.error(
                "model version quarantined",
                extra={"fields": {"model": self.name, "model_version": str(version), "reason": reason}},
                exc_info=None if isinstance(error, ValueError) else error,
            )
            return
        self._derived_tried = derived
        self._serve(scorer, value_models)

    def _serve(self, scorer: Scorer, value_models: ValueModels) -> None:
        metrics = ModelMetrics(self._metrics, scorer.schema, self.name, scorer.version, scorer.engine)
        metrics.know_value_models(value_models.names)
        before, self.served = self.served, ServedModel(self.name, scorer, value_models, metrics)
        self._golden_error = None
        states = dict(self.states)
        if before is not None:
            if (before.scorer.version, before.scorer.engine) != (scorer.version, scorer.engine):
                before.metrics.retire()
            states[before.scorer.manifest.version] = VersionState("retired")
        states[scorer.manifest.version] = self._ready(scorer)
        self.states = states
        self._metrics.loads.labels("ready").inc()
        if scorer.engine_reason is not None:
            self._metrics.loads.labels("compiled_refused").inc()
            reason = self._place_free(scorer.engine_reason)
            refused = {"model": self.name, "model_version": scorer.version, "reason": reason}
            _log.warning("compiled package refused; TorchScript serves", extra={"fields": refused})
        fields = {"model": self.name, "model_version": scorer.version, "engine": scorer.engine}
        _log.info("model version ready", extra={"fields": {**fields, "value_models": value_models.names}})

    def _reload_engine(self, served: ServedModel) -> None:
        """Loads the served version once more, as something beside it has changed; until then, and where that fails, it
        serves as it is."""
        self._derived_tried = self._derived(served.scorer.manifest.version)
        if self._engine == "torchscript":
            return
        try:
            scorer = Scorer.load(served.scorer.artifact.path, self._engine, self._verify_key)
        except Exception as error:  # as in _try_version
            fields = {"model": self.name, "model_version": served.scorer.version}
            _log.error(
                "model version serves as it was loaded before; what lies beside it cannot be taken up",
                extra={"fields": {**fields, "reason": self._place_free(str(error) or repr(error))}},
                exc_info=None if isinstance(error, ValueError) else error,
            )
            return
        scorer.catalogue = served.scorer.catalogue
        self._serve(scorer, served.value_models)

    def _check_doubted(self, scorer: Scorer) -> None:
        doubted, self._doubted = self._doubted, None
        if doubted is not scorer:
            return
        fields = {"model": self.name, "model_version": scorer.version}
        try:
            scorer.check_golden_requests()
        except ArtifactError as error:
            self._golden_error = self._place_free(str(error))
            self._metrics.loads.labels("golden_failed").inc()
            _log.error(
                "model version answers its golden requests no more, yet serves; publish another",
                extra={"fields": {**fields, "reason": self._golden_error}},
            )
        else:
            self._golden_error = None
            _log.warning("golden requests hold after a score that was not finite", extra={"fields": fields})

    def _derived(self, version: int) -> Fingerprint:
        files = sorted((self._folder / "derived" / str(version) / "compiled").glob("*"))
        # Other keys may vouch for what was refused before.
        return fingerprint(files if self._verify_key is None else [*files, self._verify_key])

    def _ready(self, scorer: Scorer) -> VersionState:
        reason = self._golden_error or scorer.engine_reason
        return VersionState("ready", None if reason is None else self._place_free(reason), scorer.engine)

    def _value_models_for(self, scorer: Scorer) -> ValueModels:
        """The value models to score with. With no version to serve on instead, a bad file is answered by the built-in
        one: a service that starts with a slip in a weights file still answers, and says what it answers with."""
        try:
            return self._read_value_models(scorer)
        except ValueError as error:
            if self.served is not None:
                raise
            self._refuse_value_models(error, "the built-in value model")
            return ValueModels.built_in(scorer.schema)

    def _reload_value_models(self, served: ServedModel) -> None:
        try:
            value_models = self._read_value_models(served.scorer)
        except ValueError as error:
            self._refuse_value_models(error, "the value models before it")
            return
        served.metrics.know_value_models(value_models.names)
        self.served = ServedModel(self.name, served.scorer, value_models, served.metrics)
        _log.info("value models ready", extra={"fields": {"model": self.name, "value_models": value_models.names}})

    def _read_value_models(self, scorer: Scorer) -> ValueModels:
        path = self._folder / FILE_NAME
        if path.exists():
            value_models = ValueModels.from_yaml(path, scorer.schema)
        else:
            value_models = ValueModels.built_in(scorer.schema)
            _log.warning(
                f"no {FILE_NAME}: 'default' is a sum with weight 1 on each binary task",
                extra={"fields": {"model": self.name}},
            )
        self.value_models_error = None
        self._metrics.loads.labels("value_models_ready").inc()
        return value_models

    def _refuse_value_models(self, error: ValueError, instead: str) -> None:
        self.value_models_error = self._place_free(str(error))
        self._metrics.loads.labels("value_models_refused").inc()
        fields = {"model": self.name, "reason": self.value_models_error}
        _log.error(f"value models refused; {instead} serves", extra={"fields": fields})

    def _place_free(self, reason: str) -> str:
        # Where the models folder lies is no business of clients.
        return reason.replace(f"{self._models}/", "")
