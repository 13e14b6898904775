"""One model version that is loaded: its scorer, what the files beside it say, what was made from it.

In: a published version's folder. Out: a `ServedModel`, replaced in one assignment: a request that has begun keeps the
one it took. What is made later beside a version (a compiled package, a catalogue) is taken up when it appears.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from model.artifact.artifact import MANIFEST, ArtifactError
from model.artifact.compiled import Acceptance, folder_of
from model.experiments.assignment import Experiments
from model.policies.policies import Policies
from model.scorer.quality import served_fault
from model.scorer.scorer import Engine, EngineChoice, Scorer
from model.scorer.torchscript import Load, load_script
from model.state_file import StateFile
from model.untrusted_files import Fingerprints, fingerprint, fingerprints
from model.value_models.value_model import DEFAULT, ValueModels
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics
from service.metrics.model_metrics import ModelMetrics
from service.models.beside import Beside
from service.models.calibration_watch import CalibrationWatch
from service.models.catalogue_watch import CatalogueWatch

# Loading: being tried. Waiting: newer than what is served, and verified. Retired: older, and not needed.
State = Literal["loading", "waiting", "ready", "quarantined", "retired"]

_log = FieldLogger("models")


@dataclass(frozen=True, slots=True)
class Loading:
    """Loading of versions: `load` makes a module of the bytes of an archive."""

    engine: EngineChoice = "auto"
    verify_key: Path | None = None
    load: Load = load_script

    def scorer(self, path: Path) -> Scorer:
        """The scorer of a version, `<models>/<name>/<version>`. Raises ArtifactError where it does not verify."""
        return Scorer.load(path, self.engine, self.verify_key, self.load, model=path.parent.name)


class StatefulModel(NamedTuple):
    """A model whose users have state: its file, the features of user and context, and those of integer ids."""

    name: str
    file: StateFile
    features: frozenset[str]
    integers: frozenset[str]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model version, and what the files beside it say to it."""

    name: str
    scorer: Scorer
    value_models: ValueModels
    state: StateFile | None
    metrics: ModelMetrics
    policies: Policies | None = None
    experiments: Experiments | None = None

    @property
    def user(self) -> str | None:
        """The feature of a request that names its user, None where none does. It need not be one of the schema."""
        return self.scorer.manifest.user if self.state is None else self.state.key

    @property
    def stateful(self) -> StatefulModel | None:
        """The model's state of users, None where it has none."""
        if self.state is None:
            return None
        requested = self.scorer.schema.requested("request")
        features = frozenset(feature.name for feature in requested)
        return StatefulModel(self.name, self.state, features, features & self.scorer.encoder.integers)

    @property
    def beside(self) -> Beside:
        """Contents of the files beside the version."""
        return Beside(**{key: getattr(self, key) for key in Beside._fields})


@dataclass(frozen=True, slots=True)
class VersionState:
    """State of one published version, as /v1/models has it. Of a ready one, `reason` is why it is not compiled, or that
    it answers its golden requests no more."""

    state: State
    reason: str | None = None
    engine: Engine = "torchscript"
    # The rule that its compiled package was accepted by.
    acceptance: Acceptance | None = None
    # The generation of its calibration, None of its own, and the reason why a newer one does not serve.
    calibration: str | None = None
    calibration_reason: str | None = None


def derived_files(version: Path, verify_key: Path | None) -> Fingerprints:
    """Compiled files of a version, and the keys by which they may be taken up."""
    keys = [] if verify_key is None else [verify_key]
    return fingerprints([*(version.parent / "derived" / version.name / "compiled").glob("*"), *keys])


class LoadedVersion:
    """A version in memory. `refresh` is called by one thread. `served` is read by all. `shown` makes a reason fit for
    clients. The constructor loads: it raises ArtifactError for a version that does not verify, and what
    `beside_of` raises."""

    def __init__(
        self,
        name: str,
        path: Path,
        metrics: Metrics,
        loading: Loading,
        beside_of: Callable[[Scorer], Beside],
        shown: Callable[[str], str],
    ) -> None:
        self.name = name
        self._path = path
        self._metrics = metrics
        self._loading = loading
        self._shown = shown
        self._derived = derived_files(path, loading.verify_key)
        self._doubted: Scorer | None = None
        self._golden_error: str | None = None
        # The scorer whose compiled package was compared with TorchScript on kept rows.
        self._judged: Scorer | None = None
        # Why it could not be loaded again, as its folder is gone.
        self.missing: str | None = None
        self.catalogue = CatalogueWatch(name, metrics, shown)
        self.calibration = CalibrationWatch(name, metrics, shown)
        scorer = loading.scorer(path)
        beside = beside_of(scorer)
        self.calibration.refresh(scorer)  # before it is served: no answer goes back to an older one
        self.catalogue.refresh(scorer)  # so too: requests by ids alone find a catalogue
        self.served = self._taken(scorer, beside)

    @property
    def state(self) -> VersionState:
        """Ready, and what there is to say about that."""
        scorer = self.served.scorer
        reason = self.missing or self._golden_error or scorer.engine_reason
        shown = None if reason is None else self._shown(reason)
        calibration = scorer.calibration.generation
        acceptance, of_calibration = scorer.acceptance, self.calibration.reason(scorer)
        return VersionState("ready", shown, scorer.engine, acceptance, calibration, of_calibration)

    def refresh(self) -> None:
        """Load what has appeared beside the version, and run its golden requests where they may fail."""
        self._recheck_golden()
        self._check_folder()
        if self.missing is None and derived_files(self._path, self._loading.verify_key) != self._derived:
            self._reload_engine()
        self._check_quality()
        self.catalogue.refresh(self.served.scorer)
        self._refresh_calibration(self.served.scorer)

    def take_beside(self, beside: Beside) -> None:
        """Answer by what the files beside it say now, from the next request on."""
        before = self.served
        if beside != before.beside:
            self.served = self._with_beside(before.scorer, beside, before.metrics)

    def recheck(self, scorer: Scorer) -> None:
        """Check at the next refresh that a version whose score was not finite still answers its golden
        requests."""
        self._doubted = scorer

    def retire(self) -> None:
        """Mark the version as loaded no more. It is freed when the last request that uses it ends."""
        self.served.metrics.retire()

    def _refresh_calibration(self, scorer: Scorer) -> None:
        taken = scorer.calibration.recalibration if self.calibration.refresh(scorer) else None
        if taken is not None:
            self.served.metrics.take_calibration(taken, scorer.engine)

    def _with_beside(self, scorer: Scorer, beside: Beside, metrics: ModelMetrics) -> ServedModel:
        metrics.add_value_models(beside.value_models.names)
        if beside.state is not None:
            self._metrics.state.add_model(self.name, beside.state.names)
        if beside.experiments is not None:
            self._metrics.experiments.add_arms(self.name, beside.experiments.arms)
        if beside.policies is not None:
            self._metrics.policies.add_policies(self.name, beside.policies)
            self._name_unkept_histories(beside.policies, beside.state)
        return ServedModel(self.name, scorer, metrics=metrics, **beside._asdict())

    def _name_unkept_histories(self, policies: Policies, state: StateFile | None) -> None:
        """Log which histories policies read that nobody appends to: they drop nothing."""
        kept = {} if state is None else state.append
        for name in policies.names:
            seen = policies[name].definition.seen
            if seen is not None and seen.field not in kept:
                reason = f"seen.field: '{seen.field}' is no append field of state.yaml, so nothing is dropped as seen"
                _log.warning("a policy reads a history that is not kept", model=self.name, policy=name, reason=reason)

    def _taken(self, scorer: Scorer, beside: Beside) -> ServedModel:
        served = self._with_beside(scorer, beside, ModelMetrics(self._metrics, self.name, scorer))
        self._metrics.loads.labels("ready").inc()
        if scorer.engine_reason is not None:
            self._metrics.loads.labels("compiled_refused").inc()
            _log.warning(
                "compiled package refused; TorchScript serves",
                **self._fields(scorer),
                reason=self._shown(scorer.engine_reason),
            )
        names = beside.value_models.names
        _log.info("model version ready", **self._fields(scorer), engine=scorer.engine, value_models=names)
        return served

    def _check_folder(self) -> None:
        was_missing, fields = self.missing is not None, self._fields(self.served.scorer)
        is_missing = fingerprint(self._path / MANIFEST) is None
        place = f"{self._path.parent.name}/{self._path.name}"
        self.missing = f"{place}: missing; it serves on from memory" if is_missing else None
        if is_missing and not was_missing:
            _log.error("model version is missing; it serves on from memory", **fields)
        elif was_missing and not is_missing:
            _log.info("model version is back", **fields)

    def _reload_engine(self) -> None:
        """Load the version once more, as something beside it has changed. Until then, and where that fails, it serves
        as it is."""
        self._derived = derived_files(self._path, self._loading.verify_key)
        if self._loading.engine == "torchscript":
            return
        before = self.served
        try:
            scorer = self._loading.scorer(self._path)
        except Exception as error:  # a bad published folder never stops what is loaded
            message = "model version serves as it was loaded before; what was made from it cannot be loaded"
            _log.fault(message, error, **self._fields(before.scorer), reason=self._shown(str(error) or repr(error)))
            return
        scorer.catalogue, scorer.calibration = before.scorer.catalogue, before.scorer.calibration
        if before.scorer.engine != scorer.engine:
            before.metrics.retire()
        self.served = self._taken(scorer, before.beside)
        self._golden_error = None

    def _check_quality(self) -> None:
        """Compare a package that was accepted by quality with TorchScript on this host, once. It serves meanwhile.
        Where a bound is broken, TorchScript takes over."""
        before = self.served
        scorer = before.scorer
        if scorer.acceptance != "quality" or self._judged is scorer:
            return
        self._judged = scorer
        try:
            fault = served_fault(scorer, before.value_models[DEFAULT].score)
        except (ArtifactError, RuntimeError, IndexError) as error:
            fault = str(error)
        if fault is None:
            _log.info("compiled package verified by quality", **self._fields(scorer))
            return
        before.metrics.retire()
        reason = f"{folder_of(scorer.artifact)}: accepted by quality, and on this host {fault}"
        self.served = self._taken(scorer.by_torchscript(reason), before.beside)

    def _recheck_golden(self) -> None:
        doubted, self._doubted = self._doubted, None
        scorer = self.served.scorer
        if doubted is not scorer:
            return
        fields = self._fields(scorer)
        try:
            scorer.check_golden_requests()
        except ArtifactError as error:
            self._golden_error = self._shown(str(error))
            self._metrics.loads.labels("golden_failed").inc()
            _log.error(
                "model version answers its golden requests no more, yet serves; publish another",
                **fields,
                reason=self._golden_error,
            )
        else:
            self._golden_error = None
            _log.warning("golden requests verify after a score that was not finite", **fields)

    def _fields(self, scorer: Scorer) -> dict[str, str]:
        return {"model": self.name, "model_version": scorer.version}
