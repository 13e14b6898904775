"""One model's folder, `<models>/<name>/`: its versions, its labels and value models, and which versions are served.

In: the folder, looked at again and again by the store's polling thread. Out: `Serving`, replaced in one assignment.
Where no version is labelled `stable`, the newest one that verifies is served. One that does not verify is quarantined
with its reason and tried again only when its files change; what a label named before stays. A version that no label
needs any more is let go.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.artifact import versions
from model.scorer import Scorer
from model.value_model import FILE_NAME, ValueModels
from service import labels as labels_file
from service.errors import Fault, Problem
from service.labels import CANARY, CANARY_SEED, SHADOW, STABLE, Labels, LabelsFile, falls_within
from service.loaded_version import LoadedVersion, Loading, ServedModel, VersionState, derived_files
from service.metrics import Metrics
from service.model_files import Fingerprint, fingerprint
from service.request_log import LOGGER

_log = logging.getLogger(f"{LOGGER}.models")


@dataclass(frozen=True, slots=True)
class Serving:
    """What requests are answered with at one moment. `default` answers those that ask for no version and are not the
    canary's; `labelled` holds what `labels` name."""

    default: ServedModel
    versions: Mapping[str, ServedModel]
    labels: Labels = field(default_factory=Labels)

    def labelled(self, label: str) -> ServedModel | None:
        """The version of a label, None where it is not set. `stable` is what is served, pinned or not."""
        if label == STABLE:
            return self.default
        version = self.labels.versions().get(label)
        return None if version is None else self.versions[str(version)]

    def chosen(self, version: str | None, request_id: str | None) -> ServedModel | None:
        """The model for a request that asks for a version, a label or (None) neither; None for one that is not here."""
        if version is not None:
            return self.versions.get(version) or self.labelled(version)
        canary = self.labels.canary
        if canary is not None and request_id is not None and falls_within(request_id, canary.share, CANARY_SEED):
            return self.versions[str(canary.version)]
        return self.default


class ModelFamily:
    """The versions of one model. One thread calls `refresh` and `set_labels`; the attributes are read by all."""

    def __init__(
        self,
        models: Path,
        name: str,
        metrics: Metrics,
        loading: Loading,
    ) -> None:
        self.name = name
        self.serving: Serving | None = None
        self.states: dict[int, VersionState] = {}
        self.labels_error: str | None = None
        self.value_models_error: str | None = None
        self._models = models
        self._folder = models / name
        self._metrics = metrics
        self._loading = loading
        self._labels_file = LabelsFile(self._folder / labels_file.FILE_NAME)
        self._loaded: dict[int, LoadedVersion] = {}
        self._let_go: list[LoadedVersion] = []
        self._tried: dict[int, Fingerprint] = {}
        self._value_file_tried: Fingerprint | None = None

    @property
    def served(self) -> ServedModel | None:
        """What is served where nothing else is asked for, None while no version could be loaded."""
        return None if self.serving is None else self.serving.default

    def refresh(self) -> None:
        """Takes up what has changed on disk: newer versions, labels, value models, what lies beside a version."""
        self._let_go.clear()
        value_file = fingerprint([self._folder / FILE_NAME])
        if self._loaded and value_file != self._value_file_tried:
            self._reload_value_models()
        self._value_file_tried = value_file
        for loaded in self._loaded.values():
            loaded.refresh()
        published = versions(self._models, self.name)
        # A folder that is gone for a while (a volume being mounted anew) has not lost its pin.
        has_changed = bool(published) and self._labels_file.look()
        default = self._default(published)
        if default is not None:
            self._settle(default, self._in_force(published, default, has_changed))
            self._loaded[default].catalogue.measure(self._loaded[default].served.scorer)
        known = {version: self.states.get(version, VersionState("retired")) for version in published}
        known |= {version: VersionState("retired") for version in published if known[version].state == "ready"}
        # What is loaded serves on from memory, even where its folder is gone.
        self.states = known | {version: loaded.state for version, loaded in self._loaded.items()}

    def set_labels(self, labels: Labels) -> None:
        """Writes the labels and takes them up. Raises Problem, with nothing changed: 404 for a version that is not
        published, 409 for one that does not hold, 500 where the file cannot be written."""
        published = versions(self._models, self.name)
        for label, version in labels.versions().items():
            if not self._try_version(version, published):
                reason = self._unloaded_reason(version)
                rule = f"version {version} of model '{self.name}' {reason}"
                self.refresh()  # lets go of what was loaded for labels that are not to be
                raise Problem(404 if version not in published else 409, f"{label}: {rule}", faults=[Fault(label, rule)])
        try:
            self._labels_file.write(labels)
        except OSError as error:
            self.refresh()
            raise Problem(500, f"{labels_file.FILE_NAME} cannot be written ({error.strerror})") from None
        self.refresh()

    def entry(self) -> dict[str, Any]:
        """This model as /v1/models shows it."""
        serving = self.serving
        value_models = None if serving is None else serving.default.value_models
        return {
            "name": self.name,
            "default_version": None if serving is None else serving.default.scorer.version,
            "labels": {} if serving is None else serving.labels.document(),
            "labels_error": self.labels_error,
            "versions": [
                {"version": str(version), "state": state.state, "engine": state.engine, "reason": state.reason}
                for version, state in sorted(self.states.items(), reverse=True)
            ],
            "value_models": []
            if value_models is None
            else [{"name": name, "version": value_models[name].version} for name in value_models.names],
            "value_models_error": self.value_models_error,
            "catalogue": None if serving is None else self._catalogue_entry(serving.default.scorer),
        }

    def doubt(self, scorer: Scorer) -> None:
        """Has the next refresh run the golden requests of a version that gave a score which is not finite."""
        loaded = self._loaded.get(scorer.manifest.version)
        if loaded is not None:
            loaded.doubt(scorer)

    def _default(self, published: list[int]) -> int | None:
        """The version to serve where nothing else is asked for, loaded; None where none can be."""
        before = None if self.serving is None else self.serving.default.scorer.manifest.version
        pinned = self._labels_file.asked.stable
        if pinned is not None and before is not None:
            return pinned if self._try_version(pinned, published) else before
        # A service that starts with a pin which does not hold goes back before it, rather than on to what may be worse.
        newer = [version for version in published if pinned is not None and version > pinned]
        for version in [*(version for version in reversed(published) if version not in newer), *newer]:
            if before is not None and version <= before:
                break
            if self._try_version(version, published):
                return version
        return before

    def _in_force(self, published: list[int], default: int, has_changed: bool) -> Labels:
        """The labels that the file asks for; of one whose version cannot be loaded, what it was before."""
        asked = self._labels_file.asked
        before = Labels() if self.serving is None else self.serving.labels
        stable = before.stable if asked.stable not in (None, default) else asked.stable
        refused = {}
        for label, version in asked.versions().items():
            if label == CANARY and stable is None:
                refused[label] = f"{label}: is one only beside what is pinned"
            elif version != default if label == STABLE else not self._try_version(version, published):
                refused[label] = f"{label}: version {version} {self._unloaded_reason(version)}"
        error = self._labels_file.error or "; ".join(refused.values()) or None
        shown = None if error is None else self._place_free(error)
        if has_changed or shown != self.labels_error:
            self.labels_error = shown
            self._tell_labels(asked)
        canary = before.canary if CANARY in refused else asked.canary
        shadow = before.shadow if SHADOW in refused else asked.shadow
        return Labels(stable=stable, canary=None if stable is None else canary, shadow=shadow)

    def _settle(self, default: int, labels: Labels) -> None:
        """Serves these from now on, and lets go of every other version."""
        needed = {default, *labels.versions().values()}
        kept = {version: loaded for version, loaded in self._loaded.items() if version in needed}
        served = {str(version): loaded.served for version, loaded in kept.items()}
        self.serving = Serving(served[str(default)], served, labels)
        if labels.shadow is not None:
            scorer = served[str(labels.shadow)].scorer
            self._metrics.shadow.know(self.name, scorer.version, scorer.tasks)
        for version in self._loaded.keys() - needed:
            self._loaded[version].retire()
            # Until the next look, so that it is freed in this thread and not where the last request that used it ends.
            self._let_go.append(self._loaded[version])
        self._loaded = kept

    def _try_version(self, version: int, published: list[int]) -> bool:
        """Whether a version is loaded, which is tried where it is not, but not twice with the same files."""
        if version in self._loaded:
            return True
        if version not in published:
            return False
        # The value models belong to the fingerprint: where they did not fit a version, a new file is a new try.
        path = self._folder / str(version)
        files = fingerprint(sorted(path.glob("*")))
        tried = (*files, *fingerprint([self._folder / FILE_NAME]), *derived_files(path, self._loading.verify_key))
        state = self.states.get(version)
        if state is not None and state.state == "quarantined" and self._tried.get(version) == tried:
            return False
        self._tried[version] = tried
        self.states = {**self.states, version: VersionState("loading")}
        try:
            loaded = LoadedVersion(
                self.name,
                path,
                self._metrics,
                self._loading,
                self._value_models_for,
                self._place_free,
            )
        except Exception as error:  # whatever a published folder holds, the version before it serves on
            reason = self._place_free(str(error) or repr(error))
            self.states = {**self.states, version: VersionState("quarantined", reason)}
            self._metrics.loads.labels("quarantined").inc()
            _log.error(
                "model version quarantined",
                extra={"fields": {"model": self.name, "model_version": str(version), "reason": reason}},
                exc_info=None if isinstance(error, ValueError) else error,
            )
            return False
        self._loaded = {**self._loaded, version: loaded}
        self.states = {**self.states, version: loaded.state}
        return True

    def _unloaded_reason(self, version: int) -> str:
        state = self.states.get(version)
        if state is None or state.state != "quarantined":
            return "is not published"
        return f"is quarantined: {state.reason}"

    def _tell_labels(self, asked: Labels) -> None:
        self._metrics.loads.labels("labels_ready" if self.labels_error is None else "labels_refused").inc()
        fields = {"model": self.name, "labels": asked.document()}
        if self.labels_error is None:
            _log.info("labels ready", extra={"fields": fields})
        else:
            message = "labels refused; what they named before stays"
            _log.error(message, extra={"fields": {**fields, "reason": self.labels_error}})

    def _catalogue_entry(self, scorer: Scorer) -> dict[str, Any] | None:
        loaded = self._loaded.get(scorer.manifest.version)
        return None if loaded is None else loaded.catalogue.entry(scorer)

    def _value_models_for(self, scorer: Scorer) -> ValueModels:
        """The value models to score with. With no version to serve on instead, a bad file is answered by the built-in
        one: a service that starts with a slip in a weights file still answers, and says what it answers with."""
        try:
            value_models = self._read_value_models(scorer)
        except ValueError as error:
            if self._loaded:
                raise
            self._refuse_value_models(error, "the built-in value model")
            return ValueModels.built_in(scorer.domain)
        self._took_value_models()
        return value_models

    def _reload_value_models(self) -> None:
        """Takes up the file where it fits every version that is loaded, else leaves them all as they are."""
        try:
            read = [(loaded, self._read_value_models(loaded.served.scorer)) for loaded in self._loaded.values()]
        except ValueError as error:
            self._refuse_value_models(error, "the value models before it")
            return
        for loaded, value_models in read:
            loaded.take_value_models(value_models)
        self._took_value_models()
        _log.info("value models ready", extra={"fields": {"model": self.name, "value_models": read[0][1].names}})

    def _read_value_models(self, scorer: Scorer) -> ValueModels:
        path = self._folder / FILE_NAME
        if path.exists():
            return ValueModels.from_yaml(path, scorer.domain)
        fields = {"model": self.name}
        _log.warning(f"no {FILE_NAME}: 'default' is a sum with weight 1 on each binary task", extra={"fields": fields})
        return ValueModels.built_in(scorer.domain)

    def _took_value_models(self) -> None:
        self.value_models_error = None
        self._metrics.loads.labels("value_models_ready").inc()

    def _refuse_value_models(self, error: ValueError, instead: str) -> None:
        self.value_models_error = self._place_free(str(error))
        self._metrics.loads.labels("value_models_refused").inc()
        fields = {"model": self.name, "reason": self.value_models_error}
        _log.error(f"value models refused; {instead} serves", extra={"fields": fields})

    def _place_free(self, reason: str) -> str:
        # Where the models folder lies is no business of clients.
        return reason.replace(f"{self._models}/", "")
