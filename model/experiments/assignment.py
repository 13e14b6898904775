"""Assignment of units to arms: the same unit has the same arm in every worker, host and run.

In: experiments.yaml and the units of a request, by feature. Out: arms by experiment, and what they set of the request.
A unit's bucket in a layer is XXH3-64 of the layer's salt, a zero byte and the unit, modulo 10,000. Its arm is found
so by the experiment's own salt, over the cumulative weights of the arms in the order of their names. To add, end or
reorder experiments, and to reorder arms, moves nobody.
docs/experiments.md has the rule for others, with test vectors.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from model.buckets import BUCKETS, bucket_of
from model.experiments.experiments_file import (
    HELD,
    HOLDOUT,
    REST,
    SETTINGS,
    Arm,
    Experiment,
    ExperimentsFile,
    Holdout,
    Layer,
    Setting,
    shares,
)
from model.schema import FeedSchema
from model.strict_yaml import did_you_mean

# Why a request is in none of an experiment's arms: it has no unit, or names itself what the experiment sets.
Reason = Literal["no_unit", "named"]
REASONS: tuple[Reason, ...] = ("no_unit", "named")


class Member(NamedTuple):
    """An experiment that a unit is in, the epoch, its arm, and what that sets."""

    experiment: str
    epoch: str
    arm: str
    sets: Arm


class Assignment(NamedTuple):
    """Experiments that a request's units are in. `left_out` says of others why they are not.

    `skips_canary` is true for units of an experiment that names a version: the label's canary is no part of it."""

    members: tuple[Member, ...] = ()
    left_out: tuple[tuple[str, Reason], ...] = ()
    skips_canary: bool = False

    def setting(self, name: Setting) -> tuple[str, Member] | None:
        """Value that one of the arms sets, and the member. Only one can: two that may meet are refused in the file."""
        for member in self.members:
            value = getattr(member.sets, name)
            if value is not None:
                return value, member
        return None


class Dealt:
    """An experiment with its arms' buckets. `shares` are the arms' parts of its units, by name."""

    def __init__(self, experiment: Experiment, layer: Layer) -> None:
        self.experiment = experiment
        self.epoch = epoch_of(experiment, layer)
        self.sets = frozenset(setting for setting in SETTINGS if experiment.sets(setting))
        self._start = experiment.start.timestamp()
        self._end = None if experiment.end is None else experiment.end.timestamp()
        self._salt = experiment.arm_salt
        arms = sorted(experiment.arms.items())
        ends = shares([arm.weight for _, arm in arms])
        self._arms = [
            (end, Member(experiment.name, self.epoch, name, arm)) for end, (name, arm) in zip(ends, arms, strict=True)
        ]
        self.shares = {
            member.arm: (end - before) / BUCKETS for before, (end, member) in zip([0, *ends], self._arms, strict=False)
        }

    def runs(self, now: float) -> bool:
        """True from the experiment's start until its end. `now` is in Unix time."""
        return self._start <= now and (self._end is None or now < self._end)

    def member(self, unit: str) -> Member:
        """The arm of a unit that the experiment has."""
        bucket = bucket_of(self._salt, unit)
        return next(member for end, member in self._arms if bucket < end)


class Experiments:
    """The experiments of a file. `version` is a hash of its content."""

    def __init__(self, file: ExperimentsFile) -> None:
        self.file = file
        self.version = hashed(file.model_dump(mode="json", by_alias=True))
        self._held_since = 0.0 if file.holdout is None else file.holdout.since.timestamp()
        self.all = [Dealt(one, file.layers[one.layer]) for one in file.experiments]
        self._by_layer = [
            (layer, [one for one in self.all if one.experiment.layer == name]) for name, layer in file.layers.items()
        ]

    @classmethod
    def from_bytes(cls, content: bytes, path: str) -> "Experiments":
        """The experiments of a file's content. Raises ValueError naming the file, the place and the rule."""
        return cls(ExperimentsFile.from_bytes(content, path))

    def __getitem__(self, name: str) -> Dealt:
        return next(one for one in self.all if one.experiment.name == name)

    @property
    def names(self) -> list[str]:
        """Names of all experiments, in file order."""
        return [one.experiment.name for one in self.all]

    @property
    def arms(self) -> dict[str, Sequence[str]]:
        """The arms of each experiment, the holdout's too."""
        arms: dict[str, Sequence[str]] = {one.experiment.name: list(one.experiment.arms) for one in self.all}
        return arms if self.file.holdout is None else {**arms, HOLDOUT: (HELD, REST)}

    @property
    def epochs(self) -> dict[str, str]:
        """The epoch of each experiment."""
        return {one.experiment.name: one.epoch for one in self.all}

    @property
    def versions(self) -> list[str]:
        """Numbers and labels of model versions that arms set."""
        arms = [arm for one in self.all for arm in one.experiment.arms.values()]
        return list(dict.fromkeys(arm.version for arm in arms if arm.version is not None))

    def check(self, schema: FeedSchema, user: str | None, names: Mapping[Setting, Collection[str]], path: str) -> None:
        """Raise ValueError where the file does not fit a model: units, labels, and of what arms set the `names` that
        are known. `user` is the feature that names users."""
        features = [feature.name for feature in schema.requested("request") if feature.has_ids and not feature.is_list]
        units = list(dict.fromkeys([*features, *([] if user is None else [user])]))
        for name, layer in self.file.layers.items():
            if layer.unit not in units:
                hint = did_you_mean(layer.unit, units, f"such are: {', '.join(units) or 'none'}")
                raise ValueError(f"{path}: layers.{name}.unit: '{layer.unit}' is no id of the user; {hint}")
        valued = [(one.experiment.name, one.experiment.realised) for one in self.all]
        if self.file.holdout is not None and self.file.holdout.realised is not None:
            valued.append((HOLDOUT, self.file.holdout.realised))
        for name, realised in valued:
            for output in realised:
                if output not in schema.outputs:
                    hint = did_you_mean(output, schema.outputs, f"outputs: {', '.join(schema.outputs)}")
                    raise ValueError(f"{path}: {name}.realised: '{output}' is no output of the model; {hint}")
        for one in self.all:
            for arm_name, arm in one.experiment.arms.items():
                for setting, known in names.items():
                    value = getattr(arm, setting)
                    if value is not None and value not in known:
                        what = setting.replace("_", " ")
                        hint = did_you_mean(value, list(known), f"there are: {', '.join(known) or 'none'}")
                        raise ValueError(f"{path}: {one.experiment.name}.arms.{arm_name}: no {what} '{value}'; {hint}")

    def assign(
        self, unit_by: Callable[[str], str | None], now: float, named: Collection[Setting] = frozenset()
    ) -> Assignment:
        """The arms of a request at a time (Unix). `unit_by` gives the unit that a feature has, `named` is what the
        request names itself."""
        members: list[Member] = []
        left_out: list[tuple[str, Reason]] = []
        skips_canary = False
        holdout = self.file.holdout
        if holdout is not None and self._held_since <= now:
            unit = unit_by(self.file.layers[holdout.layer].unit)
            if unit is None:
                left_out.append((HOLDOUT, "no_unit"))
            else:
                member = self._of_holdout(holdout, unit)
                if member.arm == HELD:
                    return Assignment((member,))
                members.append(member)
        for layer, dealt in self._by_layer:
            running = [one for one in dealt if one.runs(now)]
            if not running:
                continue
            unit = unit_by(layer.unit)
            if unit is None:
                left_out += [(one.experiment.name, "no_unit") for one in running]
                continue
            bucket = bucket_of(layer.salt, unit)
            for one in running:
                if bucket in one.experiment.buckets:
                    skips_canary |= "version" in one.sets
                    if one.sets.isdisjoint(named):
                        members.append(one.member(unit))
                    else:
                        left_out.append((one.experiment.name, "named"))
                    break
        return Assignment(tuple(members), tuple(left_out), skips_canary)

    def _of_holdout(self, holdout: Holdout, unit: str) -> Member:
        layer = self.file.layers[holdout.layer]
        arm = HELD if bucket_of(layer.salt, unit) in holdout.buckets else REST
        return Member(HOLDOUT, holdout_epoch(holdout, layer), arm, Arm())


def epoch_of(experiment: Experiment, layer: Layer) -> str:
    """Name of what decides an experiment's arms: layer, salts, buckets, weights, and what arms set. A change of any of
    them begins another epoch."""
    arms = [[name, arm.model_dump(mode="json", exclude_none=True)] for name, arm in sorted(experiment.arms.items())]
    buckets = [experiment.buckets.from_, experiment.buckets.to]
    return hashed([layer.salt, layer.unit, experiment.arm_salt, buckets, arms])


def holdout_epoch(holdout: Holdout, layer: Layer) -> str:
    """Name of what decides who is held out."""
    return hashed([layer.salt, layer.unit, holdout.buckets.from_, holdout.buckets.to])


def hashed(content: object) -> str:
    """Eight hexadecimal digits of a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
