"""One model's folder, `<models>/<name>/`: its versions, its labels, what is beside them, and which versions are served.

In: the folder, polled by the store's thread. Out: `Serving`, replaced in one assignment. Where no version is labelled
`stable`, the newest one that verifies is served. One that does not verify is quarantined with its reason, and tried
again only when its files have changed and then stayed as they are for a poll. What a label named before stays. A
version that no label needs any more is released. One that is newer than what is served waits: it is verified, and
freed.

What was loaded serves on when its files go away, and the absence is shown as an error.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from model.artifact.artifact import versions
from model.rollout import labels as labels_file
from model.rollout.journal import Content, Journal
from model.rollout.label_change import UnwritableJournalError, change_labels
from model.rollout.labels import CANARY, SHADOW, STABLE, Labels, LabelsFile
from model.scorer.scorer import Scorer
from model.untrusted_files import Fingerprints, fingerprints
from service.base.errors import Fault, Problem
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics
from service.models.beside import BesideFiles
from service.models.canary import CanaryShare, Sender
from service.models.journal_watch import JournalWatch
from service.models.value_model_save import ValueModelSave
from service.models.version import LoadedVersion, Loading, ServedModel, VersionState, derived_files

# Of labels that others change while their versions are loaded.
_MOST_RACES = 10


class _Files(NamedTuple):
    """Files that a version is tried with. Where one beside it did not fit, another is another try."""

    own: Fingerprints
    derived: Fingerprints
    beside: tuple[bytes | None, ...]


_log = FieldLogger("models")


@dataclass(frozen=True, slots=True)
class Serving:
    """Versions that answer requests at one moment. `default` answers those that name no version and are not the
    canary's. `labelled` are the versions that `labels` name, `canary` the requests that go to one of them."""

    default: ServedModel
    versions: Mapping[str, ServedModel]
    labels: Labels = field(default_factory=Labels)
    canary: CanaryShare | None = None

    def labelled(self, label: str) -> ServedModel | None:
        """The version of a label, None where it is not set. `stable` is what is served, pinned or not."""
        if label == STABLE:
            return self.default
        # The shadow is looked for at every request.
        version = self.labels.shadow if label == SHADOW else self.labels.versions().get(label)
        return None if version is None else self.versions[str(version)]

    def chosen(self, version: str | None, sender: Sender | None) -> ServedModel | None:
        """The model for a request that names a version, a label or (None) neither. None for one that is not here. What
        no one sends, such as metadata, is never the canary's."""
        if version is not None:
            return self.versions.get(version) or self.labelled(version)
        if self.canary is not None and sender is not None and self.canary.takes_request(sender):
            return self.versions[self.canary.version]
        return self.default


class ModelFamily:
    """The versions of one model. One thread calls `refresh` and `set_labels`. The attributes are read by all."""

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
        self._models = models
        self._folder = models / name
        self._metrics = metrics
        self._loading = loading
        self._labels_file = LabelsFile(self._folder / labels_file.FILE_NAME)
        self._journal = Journal(self._folder)
        self._loaded: dict[int, LoadedVersion] = {}
        self._let_go: list[LoadedVersion] = []
        self.journal_watch = JournalWatch(name, self._folder, metrics.loop)
        self._beside_files = BesideFiles(name, self._folder, metrics, self._place_free)
        # The files of versions: as they were tried last, and at this poll and the one before.
        self._tried: dict[int, _Files] = {}
        self._files: dict[int, _Files] = {}
        self._files_before: dict[int, _Files] = {}
        self._folder_error: str | None = None

    @property
    def served(self) -> ServedModel | None:
        """The version that is served by default, None while no version could be loaded."""
        return None if self.serving is None else self.serving.default

    def refresh(self) -> None:
        """Load what has changed on disk: newer versions, labels, files beside them, what was made from a version."""
        self._let_go.clear()
        self.journal_watch.poll()
        every = list(self._loaded.values())
        said = self._beside_files.poll([(loaded.served.scorer, loaded.served.beside) for loaded in every])
        for loaded, beside in zip(every, said, strict=True):
            loaded.take_beside(beside)
            loaded.refresh()
        published = self._published()
        # A version that was gone and is there again is tried again, also with unchanged files.
        self._tried = {v: files for v, files in self._tried.items() if v in published or v in self._loaded}
        self._files_before, self._files = (
            self._files,
            {version: self._files_of(version) for version in published if version in self._tried},
        )
        has_changed = self._labels_file.poll()
        default = self._default(published)
        if default is not None:
            self._serve_only(default, self._in_force(published, default, has_changed))
            self._loaded[default].catalogue.measure(self._loaded[default].served.scorer)
            self._verify_newer(default, published)
        known = {version: self._unloaded_state(version, default) for version in published}
        # What is loaded serves on from memory, even where its folder is gone.
        self.states = known | {version: loaded.state for version, loaded in self._loaded.items()}
        self._measure(default)

    @property
    def errors(self) -> dict[str, str | None]:
        """Reason by file of the models folder why it is not in force. What was loaded serves on."""
        gone = [loaded.missing for loaded in self._loaded.values() if loaded.missing is not None]
        reasons = (loaded.calibration.reason(loaded.served.scorer) for loaded in self._loaded.values())
        refused = [reason for reason in reasons if reason is not None]
        catalogue = None if self.served is None else self._catalogue_entry(self.served.scorer)
        return {
            "version": self._folder_error or "; ".join(gone) or None,
            "labels": self.labels_error,
            **self._beside_files.errors,
            "catalogue": None if catalogue is None else catalogue["reason"],
            "journal": self.journal_watch.error,
            "calibration": "; ".join(refused) or None,
        }

    def set_labels(self, change: Callable[[Labels], Labels], time: datetime, who: str) -> None:
        """Write what `change` makes of the labels, with the journal's entry of who did it, and take them up. Raises
        Problem, with nothing changed: what `change` raises, 404 for a version that is not published, 409 for one that
        does not verify, 500 where labels or journal cannot be written."""
        try:
            for _ in range(_MOST_RACES):
                self._labels_file.poll()
                labels = change(self._labels_file.last_valid)
                self._require_versions(labels)
                with self._labels_file.locked():
                    if not self._labels_file.poll():  # otherwise others have changed it meanwhile
                        change_labels(self._labels_file, self._journal, labels, time, who)
                        return
            raise Problem(409, f"{labels_file.FILE_NAME} is changed by others all the time; nothing was changed")
        except UnwritableJournalError as error:
            raise Problem(500, str(error)) from None
        except OSError as error:
            raise Problem(500, f"{labels_file.FILE_NAME} cannot be written ({error.strerror})") from None
        finally:
            self.refresh()  # takes them up, or lets go of what was loaded for labels that are not to be

    def save_value_model(self, save: ValueModelSave) -> None:
        """Save a value model and take it up. Raises Problem as `save` does."""
        served = [] if self.serving is None else self.serving.versions.values()
        save.write(self._folder, self._journal, [model.scorer for model in served])
        self.refresh()

    def _require_versions(self, labels: Labels) -> None:
        published = self._published()
        for label, version in labels.versions().items():
            if not self._try_version(version, published, at_once=True):
                rule = f"version {version} of model '{self.name}' {self._unloaded_reason(version)}"
                raise Problem(404 if version not in published else 409, f"{label}: {rule}", faults=[Fault(label, rule)])

    def journal(self, most: int) -> Content:
        """The last entries of the journal, read now. Raises ValueError where it cannot be read."""
        return self._journal.tail(most)

    def entry(self) -> dict[str, Any]:
        """This model as /v1/models shows it."""
        serving = self.serving
        return {
            "name": self.name,
            "default_version": None if serving is None else serving.default.scorer.version,
            "labels": {} if serving is None else serving.labels.document(),
            "labels_error": self.labels_error,
            "versions": [
                {
                    "version": str(version),
                    "state": state.state,
                    "engine": state.engine,
                    "acceptance": state.acceptance,
                    "reason": state.reason,
                    "calibration": state.calibration,
                    "calibration_reason": state.calibration_reason,
                }
                for version, state in sorted(self.states.items(), reverse=True)
            ],
            **self._beside_files.entry(None if serving is None else serving.default.beside),
            "catalogue": None if serving is None else self._catalogue_entry(serving.default.scorer),
        }

    def recheck(self, scorer: Scorer) -> None:
        """Run the golden requests of a version at the next refresh: it gave a score that is not finite."""
        loaded = self._loaded.get(scorer.manifest.version)
        if loaded is not None:
            loaded.recheck(scorer)

    def _default(self, published: list[int]) -> int | None:
        """The version to serve where a request names none, loaded. None where none can be."""
        before = None if self.serving is None else self.serving.default.scorer.manifest.version
        pinned = self._labels_file.last_valid.stable
        if pinned is not None and before is not None:
            return pinned if self._try_version(pinned, published) else before
        # A service that starts with a pin which does not verify goes back before it, rather than on to what may be
        # worse.
        newer = [version for version in published if pinned is not None and version > pinned]
        for version in [*(version for version in reversed(published) if version not in newer), *newer]:
            if before is not None and version <= before:
                break
            if self._try_version(version, published):
                return version
        return before

    def _in_force(self, published: list[int], default: int, has_changed: bool) -> Labels:
        """The labels that the file sets. One whose version cannot be loaded keeps its value."""
        asked = self._labels_file.last_valid
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
            self._log_labels(asked)
        canary = before.canary if CANARY in refused else asked.canary
        shadow = before.shadow if SHADOW in refused else asked.shadow
        return Labels(stable=stable, canary=None if stable is None else canary, shadow=shadow)

    def _serve_only(self, default: int, labels: Labels) -> None:
        """Serve these from now on, and let go of every other version."""
        needed = {default, *labels.versions().values(), *self._versions_of_arms(default)}
        kept = {version: loaded for version, loaded in self._loaded.items() if version in needed}
        served = {str(version): loaded.served for version, loaded in kept.items()}
        stable, canary = served[str(default)], None
        if labels.canary is not None:
            canary = CanaryShare(self.name, labels.canary, stable.user, self._metrics)
        self.serving = Serving(stable, served, labels, canary)
        if labels.shadow is not None:
            scorer = served[str(labels.shadow)].scorer
            self._metrics.shadow.add_version(self.name, scorer.version, scorer.outputs)
        for version in self._loaded.keys() - needed:
            self._loaded[version].retire()
            self._set_state(version, VersionState("waiting" if version > default else "retired"))
            # Until the next poll, so that it is freed in this thread and not where the last request that used it ends.
            self._let_go.append(self._loaded[version])
        self._loaded = kept

    def _versions_of_arms(self, default: int) -> Iterator[int]:
        """Versions that arms of experiments name by their numbers, as far as they verify."""
        experiments, published = self._loaded[default].served.experiments, self._published()
        for name in () if experiments is None else experiments.versions:
            if name.isdecimal() and self._try_version(int(name), published):
                yield int(name)

    def _verify_newer(self, default: int, published: list[int]) -> None:
        """Verify one version that is newer than what is served, once for each state of its files, and free it. So its
        faults are shown before it is needed."""
        for version in reversed(published):
            if version > default and version not in self._loaded and self._is_due(version, at_once=False):
                with self._quarantined_on_fault(version):
                    scorer = self._loading.scorer(self._folder / str(version))
                    self._beside_files.read_for(scorer)
                    self._set_state(version, VersionState("waiting", scorer.engine_reason, scorer.engine))
                return

    def _try_version(self, version: int, published: list[int], *, at_once: bool = False) -> bool:
        """True for a loaded version. One that is not is tried, but not twice with the same files."""
        if version in self._loaded:
            return True
        state = self.states.get(version)
        is_waiting = state is not None and state.state == "waiting"
        if version not in published or not (is_waiting or self._is_due(version, at_once)):
            return False
        with self._quarantined_on_fault(version):
            loaded = LoadedVersion(
                self.name,
                self._folder / str(version),
                self._metrics,
                self._loading,
                self._beside_files.begin_serving if self._loaded else self._beside_files.begin_first,
                self._place_free,
            )
            self._loaded = {**self._loaded, version: loaded}
            self._set_state(version, loaded.state)
        return version in self._loaded

    def _is_due(self, version: int, at_once: bool) -> bool:
        """True for a version that was never tried, or with other files.

        A slow copy changes them at every poll: it is tried again when it is over, or at an admin's request."""
        state = self.states.get(version)
        if version not in self._tried or (state is not None and state.state not in ("waiting", "quarantined")):
            return True
        files, before = self._files_of(version), self._files_before.get(version)
        is_still = at_once or (before is not None and files.own == before.own)
        return is_still and files != self._tried[version]

    @contextmanager
    def _quarantined_on_fault(self, version: int) -> Iterator[None]:
        """Quarantine a version that fails within the block: with any content of a published folder, the version
        before it serves on."""
        self._tried[version] = self._files[version] = self._files_of(version)
        self._set_state(version, VersionState("loading"))
        try:
            yield
        except Exception as error:
            reason = self._place_free(str(error) or repr(error))
            self._set_state(version, VersionState("quarantined", reason))
            self._metrics.loads.labels("quarantined").inc()
            fields = {"model": self.name, "model_version": str(version), "reason": reason}
            _log.fault("model version quarantined", error, **fields)

    def _files_of(self, version: int) -> _Files:
        path = self._folder / str(version)
        derived = derived_files(path, self._loading.verify_key)
        return _Files(fingerprints(path.glob("*")), derived, self._beside_files.contents)

    def _set_state(self, version: int, state: VersionState) -> None:
        self.states = {**self.states, version: state}

    def _unloaded_state(self, version: int, default: int | None) -> VersionState:
        """The state of a published version at the end of a poll, if it is not loaded."""
        state = self.states.get(version, VersionState("retired"))
        if state.state == "quarantined" or default is None:
            return state
        if version < default or version not in self._tried:
            return VersionState("retired" if version < default else "loading")
        return VersionState("waiting", state.reason, state.engine)

    def _published(self) -> list[int]:
        """The versions of the folder, none while it cannot be listed."""
        try:
            published, self._folder_error = versions(self._models, self.name), None
        except OSError as error:
            published, self._folder_error = [], f"{self.name}: cannot be listed ({error.strerror})"
        return published

    def _measure(self, default: int | None) -> None:
        for file, error in self.errors.items():
            self._metrics.file_errors.labels(self.name, file).set(error is not None)
        newer = [state for version, state in self.states.items() if default is not None and version > default]
        bad = sum(state.state == "quarantined" for state in newer)
        self._metrics.newer_quarantined.labels(self.name).set(bad)

    def _unloaded_reason(self, version: int) -> str:
        state = self.states.get(version)
        if state is None or state.state != "quarantined":
            return "is not published"
        return f"is quarantined: {state.reason}"

    def _log_labels(self, asked: Labels) -> None:
        self._metrics.loads.labels("labels_ready" if self.labels_error is None else "labels_refused").inc()
        fields = {"model": self.name, "labels": asked.document()}
        if self.labels_error is None:
            _log.info("labels ready", **fields)
        else:
            message = "labels refused; what they named before stays"
            _log.error(message, **fields, reason=self.labels_error)

    def _catalogue_entry(self, scorer: Scorer) -> dict[str, Any] | None:
        loaded = self._loaded.get(scorer.manifest.version)
        return None if loaded is None else loaded.catalogue.entry(scorer)

    def _place_free(self, reason: str) -> str:
        # Clients need not know the path of the models folder.
        return reason.replace(f"{self._models}/", "")
