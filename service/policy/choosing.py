"""The choice of what answers a request: by the request itself, then by its experiments, then by the canary's share.

In: what a request names, and its sender. Out: `Chosen`. An arm that cannot answer falls back as a whole: the request is
answered as one of no experiment, and counted. So it is where the version is not loaded or has not the arm's value model
or policy, and where the answer has no order that a policy could make. Requests that name a version, value model or
policy leave the experiments that set it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from model.experiments.assignment import Assignment, Member
from model.experiments.experiments_file import Setting
from model.value_models.value_model import DEFAULT
from service.base.clock import Clock
from service.base.errors import Fault, Problem, value_or_kind
from service.base.record import RequestRecord
from service.metrics.metrics import Metrics
from service.models.canary import Sender
from service.models.family import Serving
from service.models.store import ModelStore, found_in
from service.models.version import ServedModel
from service.policy.placing import policy_name
from service.rank.scored_request import NO_ARMS, Arms


class Named(NamedTuple):
    """Names that a request gives itself. `value_model_path` and `policy_path` are where it says so. `has_order` is
    False of a request whose answer has no order, which no policy can decide."""

    model: str | None
    version: str | None
    value_model: str | None
    value_model_path: str
    policy: str | None = None
    policy_path: str = "policy"
    has_order: bool = True

    @property
    def settings(self) -> set[Setting]:
        """Settings of an experiment that the request has itself."""
        given: dict[Setting, str | None] = {
            "version": self.version,
            "value_model": self.value_model,
            "policy": self.policy,
        }
        return {setting for setting, value in given.items() if value is not None}


class Chosen(NamedTuple):
    """The model that answers, the names of its value model and policy (None for descending score), and the arms that
    the request is in."""

    model: ServedModel
    value_model: str
    policy: str | None
    arms: Arms


@dataclass(frozen=True, slots=True)
class Choosing:
    """Choices for the requests of a service."""

    store: ModelStore
    clock: Clock
    metrics: Metrics

    def choose(self, named: Named, sender: Sender, record: RequestRecord) -> Chosen:
        """Choice of what answers a request, noted in its record. Raises Problem: 404, 422, 503."""
        serving = self.store.serving(named.model)
        experiments = serving.default.experiments
        by_arm: dict[Setting, str] = {}
        if experiments is None:
            found, arms = found_in(serving, named.version, sender), NO_ARMS
        else:
            assignment = experiments.assign(sender.user_by, self.clock.now().timestamp(), named.settings)
            # Units of an experiment that names a version are its own: the canary has none of them.
            by_itself = partial(found_in, serving, named.version, None if assignment.skips_canary else sender)
            found, arms, by_arm = self._by_arms(serving, assignment, by_itself, has_order=named.has_order)
        name = value_model_name(found, by_arm.get("value_model") or named.value_model, named.value_model_path)
        policy = policy_name(found, by_arm.get("policy") or named.policy, named.policy_path)
        record.model, record.model_version = found.name, found.scorer.version
        record.value_model, record.value_model_version = name, found.value_models[name].version
        record.experiments, record.fell_back = arms.arms, arms.fell_back
        return Chosen(found, name, policy, arms)

    def _by_arms(
        self, serving: Serving, assignment: Assignment, by_itself: Callable[[], ServedModel], *, has_order: bool
    ) -> tuple[ServedModel, Arms, dict[Setting, str]]:
        """The model that a request's arms set, or the one `by_itself`, the arms, and the value model and policy that
        they set."""
        model, metrics = serving.default.name, self.metrics.experiments
        for experiment, reason in assignment.left_out:
            metrics.count_left_out(model, experiment, reason)
        fell_back: list[Member] = []
        version, found = assignment.setting("version"), None
        if version is not None:
            found = serving.chosen(version[0], None)
            if found is None:
                fell_back.append(version[1])
        set_by: dict[Setting, tuple[str, Member]] = {}
        settings: tuple[Setting, ...] = ("value_model", "policy")
        for setting in settings:
            given = assignment.setting(setting)
            if given is None or given[1] in fell_back:
                continue
            found = found or by_itself()
            if _has(found, setting, given[0]) and (has_order or setting != "policy"):
                set_by[setting] = given
                continue
            fell_back.append(given[1])
            if version is not None and version[1] is given[1]:
                found = None
        for member in fell_back:
            metrics.count_fallback(model, member.experiment, member.arm)
        arms = Arms(
            {member.experiment: member.arm for member in assignment.members},
            {member.experiment: member.epoch for member in assignment.members},
            tuple(member.experiment for member in fell_back),
        )
        by_arm = {setting: name for setting, (name, member) in set_by.items() if member not in fell_back}
        return found or by_itself(), arms, by_arm


def value_model_name(model: ServedModel, given: str | None, place: str) -> str:
    """Name of the value model that a request wants. Raises Problem 422 at `place`."""
    name = given or DEFAULT
    if name not in model.value_models:
        has = ", ".join(model.value_models.names)
        raise Problem.wrong_content(
            [Fault(place, f"no such value model, {value_or_kind(name)}; model '{model.name}' has: {has}")]
        )
    return name


def _has(model: ServedModel, setting: Setting, name: str) -> bool:
    """True for a model with this value model or policy."""
    if setting == "value_model":
        return name in model.value_models
    return model.policies is not None and name in model.policies
