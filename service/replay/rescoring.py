"""A logged request under another value model or model version: what it would have scored.

In: a line of the impression log. Out: the answers and combined scores that it has now. The log decides:
answers are computed again only by another version than the logged one, scores only from other answers or by another
value model. So equal ones do not move by rounding.

Shapes: N candidates, O outputs, K places.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.artifact.artifact import Artifact, model_names, versions
from model.schema import Block
from model.scorer.newest import take_newest_calibration
from model.scorer.scorer import Scorer
from model.value_models.answer_domain import AnswerDomain
from model.value_models.value_model import DEFAULT, FILE_NAME, ValueModels, WeightedSum
from service.impressions.reader import entries
from service.impressions.record import Logged
from service.replay.logged_answers import logged_answers, new_answers


class Rescored(NamedTuple):
    """Scores in request order. `answers_N` are by output. `order_K` is a policy's order, None for descending score."""

    score_N: NDArray[np.float64]
    answers_N: dict[str, NDArray[np.float64]]
    order_K: NDArray[np.intp] | None = None


class Rescoring:
    """Version and value model of a replay. `version` None keeps the logged answers. `value_model` None keeps each
    request's own by name. `value_models` alone needs no version that verifies, and no models folder: the log says what
    its tasks are. Raises ValueError where there is no such model, version, file or value model."""

    def __init__(
        self,
        models: Path | None,
        *,
        model: str | None = None,
        version: int | None = None,
        verify_key: Path | None = None,
        value_models: Path | None = None,
        value_model: str | None = None,
        log: Sequence[Path] = (),
    ) -> None:
        # What a reader of the report should know.
        self.notes: list[str] = []
        needs_model = version is not None or value_models is None
        self.model = _model(models, model) if needs_model else _model_or_logged(models, model, log)
        folder = None if models is None else models / self.model
        self._scorer = None if version is None else _scorer(folder, version, verify_key)
        self.notes += [] if self._scorer is None else take_newest_calibration(self._scorer)
        domain = self._domain(folder, verify_key, log) if self._scorer is None else self._scorer.domain
        self._outputs = list(domain.uppers)
        file = value_models
        if file is None:
            assert folder is not None, "checked with the model's name"
            file = folder / FILE_NAME
        if value_models is None and not os.path.lexists(file):  # a link that leads nowhere is no absence
            if domain.schema is None:
                raise ValueError(f"{file}: not there, and no version verifies; give --value-models")
            self._value_models = ValueModels.built_in(domain)
        else:
            self._value_models = ValueModels.from_yaml(file, domain)
        if value_model is not None and value_model not in self._value_models:
            raise ValueError(f"no value model '{value_model}'; {file} has: {', '.join(self._value_models.names)}")
        self._value_model = value_model
        self.version = None if version is None else str(version)
        # Requests by feature: in the schema but not logged, and logged but not in the schema.
        self.missing: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        # Requests by value model: (logged name, logged version, name, version).
        self.value_models: Counter[tuple[str, str, str, str]] = Counter()

    def _domain(self, folder: Path | None, verify_key: Path | None, log: Sequence[Path]) -> AnswerDomain:
        """Range of logged answers: as the newest version that verifies says, otherwise as the log's first request
        was."""
        published = [] if folder is None else versions(folder.parent, folder.name)
        for number in reversed(published):
            assert folder is not None
            try:
                domain = AnswerDomain.read(Artifact.open(folder / str(number), verify_key))
            except (ValueError, OSError) as error:
                self.notes.append(f"version {number} is ignored: {error}")
                continue
            if self.notes:
                self.notes.append(f"value models are checked for the tasks of version {number}")
            return domain
        first = _first_logged(log, self.model)
        if first is None:
            raise ValueError(f"no version of model '{self.model}' verifies, and the log has no request of it")
        self.notes.append("no version to check value models for: their tasks are those of the log's first request")
        return AnswerDomain.of_answers(first.line.tasks)

    def __call__(self, logged: Logged) -> Rescored:
        """The request's scores now. Raises ValueError where it cannot be scored."""
        name = self._value_model or logged.line.value_model
        if name not in self._value_models:
            raise ValueError(f"no value model '{name}'; there are: {', '.join(self._value_models.names)}")
        value_model = self._value_models[name]
        is_logged_version = self.version is None or self.version == logged.line.model_version
        answers_NO = self._logged_answers(logged) if is_logged_version else self._new_answers(logged)
        if is_logged_version and value_model.version == logged.line.value_model_version:
            score_N = np.array(logged.line.score)
        else:
            with np.errstate(all="ignore"):  # the next line is what looks for it
                score_N = value_model.score(answers_NO)
            if not np.isfinite(score_N).all():
                raise ValueError(f"value model '{name}' gives a score that is not finite")
        self.value_models[logged.line.value_model, logged.line.value_model_version, name, value_model.version] += 1
        return Rescored(score_N, dict(zip(self._outputs, answers_NO.T.astype(np.float64), strict=True)))

    def policy_scorer(self, models: Path, verify_key: Path | None) -> Scorer:
        """The version whose features and tables a policy reads: the one that scores, else the newest that verifies.
        Raises ValueError without any."""
        if self._scorer is not None:
            return self._scorer
        for number in reversed(versions(models, self.model)):
            try:
                found = Scorer.load(models / self.model / str(number), verify_key=verify_key)
            except (ValueError, OSError) as error:
                self.notes.append(f"version {number} is ignored: {error}")
                continue
            self.notes.append(f"the policy reads features as version {number} does")
            return found
        raise ValueError(f"{models / self.model}: no version that verifies, which a policy needs")

    def default_worths(self) -> dict[str, float]:
        """Worth of labels by the weights of the default value model. Raises ValueError where it is no sum."""
        definition = self._value_models[DEFAULT].definition
        if not isinstance(definition, WeightedSum):
            raise ValueError(
                f"value model '{DEFAULT}' is no weighted_sum whose weights could say what a label is worth; give "
                "--realised, as --realised click=1"
            )
        return dict(definition.weights)

    def _logged_answers(self, logged: Logged) -> NDArray[np.float32]:
        return logged_answers(logged, self._outputs, "; give --version to score it again")

    def _new_answers(self, logged: Logged) -> NDArray[np.float32]:
        assert self._scorer is not None, "a version was given"
        return new_answers(logged, self._scorer, self._known)

    def _known(self, block: Block, given: Mapping[str, Any]) -> dict[str, Any]:
        """The schema's features. Counts those that are over and those that are missing."""
        assert self._scorer is not None, "a version was given"
        asked = {feature.name for feature in self._scorer.schema.requested(block)}
        self.unknown.update(given.keys() - asked)
        self.missing.update(asked - given.keys())
        return {name: value for name, value in given.items() if name in asked}


def _scorer(folder: Path | None, version: int, verify_key: Path | None) -> Scorer:
    assert folder is not None, "a version was given"
    published = versions(folder.parent, folder.name)
    if version not in published:
        raise ValueError(f"{folder}: no version {version}; published: {', '.join(map(str, published))}")
    return Scorer.load(folder / str(version), verify_key=verify_key)


def _model_or_logged(models: Path | None, name: str | None, log: Sequence[Path]) -> str:
    """The given name, or that of the one model of the folder, or that of the log's first request."""
    if name is not None:
        return name
    if models is not None and models.is_dir() and model_names(models):
        return _model(models, None)
    first = _first_logged(log, None)
    if first is None:
        raise ValueError("the log has no request that can be read")
    return first.line.model


def _first_logged(log: Sequence[Path], model: str | None) -> Logged | None:
    """The first request of the log, of a model where one is named."""
    found = (entry.logged for entry in chain.from_iterable(map(entries, log)))
    return next((one for one in found if isinstance(one, Logged) and model in (None, one.line.model)), None)


def _model(models: Path | None, name: str | None) -> str:
    assert models is not None, "the command line asks for it"
    try:
        names = model_names(models)
    except OSError as error:
        raise ValueError(f"{models}: cannot be read ({error.strerror})") from None
    if not names:
        raise ValueError(f"{models}: no published version of any model")
    if name is None and len(names) > 1:
        raise ValueError(f"{models}: several models, give --model: {', '.join(names)}")
    if name is not None and name not in names:
        raise ValueError(f"{models}: no model '{name}'; there are: {', '.join(names)}")
    return name or names[0]
