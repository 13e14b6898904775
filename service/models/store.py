"""The models that are served: a polling thread keeps them up to date, requests look them up.

In: the models folder. Out: `ServedModel`s. Nothing a request does waits for a load. A new version is verified and
loaded in the polling thread while the old one serves. After its first poll that thread has the lowest priority: what it
computes takes what is left of the cores. Compiling keeps the interpreter's lock meanwhile, so all others would wait for
a thread that is not let run. Another thread, of the usual priority, does this.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from model.artifact import prehash
from model.artifact.artifact import model_names
from model.rollout.journal import Content
from model.rollout.labels import SHADOW, Labels
from model.scorer.scorer import EngineChoice
from model.scorer.torchscript import ScriptLoader, load_script
from service.base.background import nice, short_intervals
from service.base.errors import Fault, Problem
from service.base.log import FieldLogger
from service.metrics.metrics import Metrics
from service.models.canary import Sender
from service.models.family import ModelFamily, Serving
from service.models.value_model_save import ValueModelSave
from service.models.version import Loading, ServedModel, StatefulModel

_LOAD_SECONDS = 10.0
_NICENESS = 19

_log = FieldLogger("models")


class ModelStore:
    """Every model of a folder, by name."""

    def __init__(
        self,
        models: Path,
        metrics: Metrics,
        *,
        poll_seconds: float,
        torch_threads: int,
        engine: EngineChoice = "auto",
        verify_key: Path | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self.poll_seconds = poll_seconds
        self._torch_threads = torch_threads
        self._compiling = ThreadPoolExecutor(1, "compiling")
        self._loading = Loading(
            engine, verify_key, ScriptLoader(lambda content: self._compiling.submit(load_script, content).result())
        )
        self._families: dict[str, ModelFamily] = {}
        # Of those that are served, None for the only one.
        self._stateful: dict[str | None, StatefulModel] = {}
        self._folder_error: str | None = None
        self._has_looked = threading.Event()
        self._stop = threading.Event()
        self._asking = threading.Lock()
        self._asked: SimpleQueue[tuple[Callable[[], dict[str, Any]], Future[dict[str, Any]]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._poll, name="models", daemon=True)

    def start(self) -> None:
        """Starts polling. The first poll begins at once."""
        self._compiling.submit(int).result()  # its thread has the priority of the one that starts it
        self._thread.start()

    @property
    def folder_error(self) -> str | None:
        """Reason why the models folder cannot be polled, None where it can. Loaded versions serve on."""
        return self._folder_error

    @property
    def has_looked(self) -> bool:
        """True once every model of the folder has been tried."""
        return self._has_looked.is_set()

    def stop(self) -> None:
        """Ends polling. It waits for a load that has begun, but not for long."""
        self._stop.set()
        self._asked.put(None)
        self._thread.join(_LOAD_SECONDS)
        self._compiling.shutdown(wait=False)

    def poll_soon(self) -> None:
        """Poll the folder before its time."""
        self._asked.put(None)

    def refresh(self) -> None:
        """One poll of the folder: new models, newer versions, changed labels and value models."""
        try:
            names = model_names(self._models)
            self._log_folder(None)
        except OSError as error:
            names = []
            self._log_folder(f"the models folder cannot be read ({error.strerror})")
        for name in dict.fromkeys([*self._families, *names]):
            if name not in self._families:
                family = ModelFamily(self._models, name, self._metrics, self._loading)
                self._families = {**self._families, name: family}
            self._families[name].refresh()
            self._find_stateful()
        prehash.forget_hashes()
        self._metrics.polled_at.set_to_current_time()
        self._has_looked.set()

    def _find_stateful(self) -> None:
        served = self.served()
        found = {name: model.stateful for name, model in served.items()}
        stateful: dict[str | None, StatefulModel] = {name: one for name, one in found.items() if one is not None}
        if len(served) == 1 and stateful:
            stateful[None] = next(iter(stateful.values()))
        self._stateful = stateful

    def _log_folder(self, error: str | None) -> None:
        if error not in (None, self._folder_error):
            _log.error("models folder refused; what was loaded serves on", reason=error)
        self._folder_error = error
        self._metrics.file_errors.labels("", "models").set(error is not None)

    def find(self, name: str | None, version: str | None, sender: Sender | None = None) -> ServedModel:
        """The model to answer with, as `found_in` what is served of it. Raises Problem: 404, 422, 503."""
        return found_in(self.serving(name), version, sender)

    def serving(self, name: str | None) -> Serving:
        """Versions that are served of a model. Raises Problem: 404 unknown, 422 which one is meant, 503 none loaded."""
        served = {name: family.serving for name, family in self._families.items() if family.serving is not None}
        if name is None:
            if not served:
                raise not_ready(self.unready_reason or "no model is loaded")
            if len(served) > 1:
                rule = f"needed, as several models are served: {', '.join(sorted(served))}"
                raise Problem.wrong_content([Fault("model", rule)])
            (name,) = served
        elif name not in served:
            if name in self._families:
                raise not_ready(f"no version of model '{name}' could be loaded; see /v1/models")
            known = f"models served: {', '.join(sorted(served)) or 'none'}"
            raise Problem(404, f"no such model; {known}", faults=[Fault("model", f"no such model; {known}")])
        return served[name]

    def served(self) -> dict[str, ServedModel]:
        """Default version of each model that is served."""
        families = [self._families[name] for name in sorted(self._families)]
        return {family.name: family.served for family in families if family.served is not None}

    @property
    def has_state(self) -> bool:
        """True where a model that is served has state of users."""
        return bool(self._stateful)

    def stateful_model(self, name: str | None) -> StatefulModel | None:
        """The model of a name, of None the only one, if it is served and has state of users."""
        return self._stateful.get(name)

    def shadow_of(self, model: ServedModel) -> ServedModel | None:
        """The shadow version beside a model, None where there is none or the model is not what is served by default."""
        serving = self._families[model.name].serving
        return None if serving is None or serving.default is not model else serving.labelled(SHADOW)

    def set_labels(self, name: str, change: Callable[[Labels], Labels], time: datetime, who: str) -> dict[str, Any]:
        """Write what `change` makes of the labels of a model, apply them and return its entry. The journal has the time
        and who it was. The work is done by the polling thread, which alone loads. Raises Problem: what `change` raises,
        404 or 409 for versions that cannot be served, 503 at the end."""
        return self._in_polling_thread(partial(self._set_labels, name, change, time, who))

    def save_value_model(self, name: str, save: ValueModelSave) -> dict[str, Any]:
        """Save a value model of a model, and return the model's entry. The work is done by the polling thread. Raises
        Problem as `save` does, 404 for no such model, 503 at the end."""
        return self._in_polling_thread(partial(self._save_value_model, name, save))

    def _save_value_model(self, name: str, save: ValueModelSave) -> dict[str, Any]:
        family = self._family(name)
        family.save_value_model(save)
        return family.entry()

    def _in_polling_thread(self, job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._asking:
            if self._stop.is_set():
                raise not_ready("the service is shutting down")
            done: Future[dict[str, Any]] = Future()
            self._asked.put((job, done))
        return done.result()

    def _set_labels(self, name: str, change: Callable[[Labels], Labels], time: datetime, who: str) -> dict[str, Any]:
        family = self._family(name)
        family.set_labels(change, time, who)
        return family.entry()

    def recheck(self, model: ServedModel) -> None:
        """Run the golden requests of a model again at the next poll: it gave a score that is not finite."""
        self._families[model.name].recheck(model.scorer)

    @property
    def unready_reason(self) -> str | None:
        """Reason why no request can be scored, None if one can."""
        if not self.has_looked:
            return "the models are being loaded"
        families = list(self._families.values())
        if any(family.served is not None for family in families):
            return None
        reasons = [
            f"{family.name} {version}: {state.reason}"
            for family in families
            for version, state in sorted(family.states.items(), reverse=True)
            if state.state == "quarantined"
        ]
        return "; ".join(reasons) or self._folder_error or "the models folder has no published version"

    def entries(self) -> list[dict[str, Any]]:
        """All models as /v1/models shows them."""
        return [self._families[name].entry() for name in sorted(self._families)]

    def journal(self, name: str, most: int) -> Content:
        """The last entries of a model's journal, read now. Raises ValueError where it cannot be read."""
        return self._families[name].journal(most)

    def entry(self, name: str) -> dict[str, Any]:
        """One model with its schema and metrics. Raises Problem 404."""
        family = self._family(name)
        entry = family.entry()
        if family.served is not None:
            manifest = family.served.scorer.manifest
            entry["schema"] = manifest.feed.model_dump(mode="json", exclude_none=True)
            entry["metrics"] = manifest.metrics
        return entry

    def _family(self, name: str) -> ModelFamily:
        family = self._families.get(name)
        if family is None:
            raise Problem(404, f"no such model; see /v1/models for all {len(self._families)}")
        return family

    def _poll(self) -> None:
        torch.set_num_threads(self._torch_threads)  # golden requests run in this thread
        while not self._stop.is_set():
            try:
                with short_intervals():
                    self.refresh()
            except Exception:  # the thread must outlive any surprise on disk: without it no new model would ever load
                _log.exception("polling the models folder failed; trying again")
                self._log_folder("polling the models folder failed; the log says more")
                self._has_looked.set()
            nice(_NICENESS)
            self._do_what_is_asked(time.monotonic() + self.poll_seconds)
        with self._asking, suppress(Empty):
            while True:
                asked = self._asked.get_nowait()
                if asked is not None:
                    asked[1].set_exception(not_ready("the service is shutting down"))

    def _do_what_is_asked(self, until: float) -> None:
        """Wait for the next poll of the folder, and do meanwhile what only this thread may do."""
        with suppress(Empty):
            while (asked := self._asked.get(timeout=max(0.0, until - time.monotonic()))) is not None:
                job, done = asked
                try:
                    with short_intervals():
                        result = job()
                    done.set_result(result)
                except Exception as error:  # its caller gets it
                    done.set_exception(error)


def found_in(serving: Serving, version: str | None, sender: Sender | None) -> ServedModel:
    """The model to answer with. It is of the version or label that is named, then the canary for senders who fall to
    it, then what is served. Raises Problem 404 for a version that is not loaded."""
    model = serving.chosen(version, sender)
    if model is None:
        loaded = ", ".join(sorted(serving.versions, key=int, reverse=True))
        rule = f"this version of model '{serving.default.name}' is not loaded; loaded: {loaded}"
        raise Problem(404, rule, faults=[Fault("version", rule)])
    return model


def not_ready(detail: str) -> Problem:
    """503: nothing can be scored now. Another replica may."""
    return Problem(503, detail, reason="not_ready", retry_after=1)
