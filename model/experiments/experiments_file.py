"""The file of experiments, `<models>/<name>/experiments.yaml`: layers, experiments with their arms, and the holdout.

In: YAML. Out: a validated, frozen `ExperimentsFile`. Buckets are of 10,000, from `from` up to `to`, which is not in it.
Times are UTC. Every fault is a ValueError that names the file, the place, the value and the rule.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import combinations
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, StringConstraints, model_validator

from model.buckets import BUCKETS
from model.join_file import Duration
from model.strict_yaml import Name, StrictModel, did_you_mean

FILE_NAME = "experiments.yaml"
CONTROL = "control"
# The name of the holdout beside those of experiments, and its two arms.
HOLDOUT, HELD, REST = "holdout", "held", "rest"
# Each arm of each experiment is a label of a metric.
MAX_EXPERIMENTS, MAX_ARMS = 100, 10
# What an arm may set of a request.
Setting = Literal["version", "value_model", "policy"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

Salt = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")]


def _time(given: object) -> object:
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            raise ValueError("expected a day or a time, as 2026-12-01 or 2026-12-01T09:30:00Z") from None
    if isinstance(given, datetime):
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    return datetime.combine(given, time(), UTC) if isinstance(given, date) else given


Time = Annotated[datetime, BeforeValidator(_time)]


def _version(given: object) -> object:
    return str(given) if type(given) is int else given


# A number, or a label.
Version = Annotated[
    str, BeforeValidator(_version), StringConstraints(pattern=r"^([1-9][0-9]{0,8}|stable|canary|shadow)$")
]
Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Realised = Annotated[dict[str, FiniteFloat], Field(min_length=1)]


class Layer(StrictModel):
    """Users dealt out once: experiments of one layer never share a user, those of two layers do by chance alone.

    `unit` is the feature that says who is asked for."""

    salt: Salt
    unit: Name


class Buckets(StrictModel):
    """A range of buckets, the last one not in it."""

    from_: Annotated[int, Field(alias="from", ge=0, lt=BUCKETS)]
    to: Annotated[int, Field(gt=0, le=BUCKETS)]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.from_ >= self.to:
            raise ValueError(f"from {self.from_} to {self.to} has no bucket: `to` is the first that is not in it")
        return self

    def __contains__(self, bucket: int) -> bool:
        return self.from_ <= bucket < self.to

    def overlaps(self, other: "Buckets") -> bool:
        """True where a bucket is in both."""
        return self.from_ < other.to and other.from_ < self.to


class Arm(StrictModel):
    """Settings of a request by an arm, and its weight in the experiment. One that sets nothing is answered as others
    are."""

    weight: Weight = 1.0
    version: Version | None = None
    value_model: Annotated[str, Field(min_length=1)] | None = None
    policy: Annotated[str, Field(min_length=1)] | None = None

    def sets(self, setting: Setting) -> bool:
        """True where the arm sets this of a request."""
        return getattr(self, setting) is not None


def _check_arms(arms: dict[str, Arm]) -> dict[str, Arm]:
    if len(arms) < 2:
        raise ValueError(f"an experiment has at least 2 arms, to be compared with each other; got {len(arms)}")
    if len(arms) > MAX_ARMS:
        raise ValueError(f"an experiment has at most {MAX_ARMS} arms, got {len(arms)}")
    return arms


class Experiment(StrictModel):
    """Arms over a range of buckets of a layer, from `start` until `end`, if it has one.

    `realised` weighs outputs' observed labels into a user's value within `horizon` of exposure. Name and salt are its
    identity."""

    name: Name
    layer: Name
    buckets: Buckets
    start: Time
    end: Time | None = None
    horizon: Duration
    realised: Realised
    salt: Salt | None = None
    arms: Annotated[dict[Name, Arm], AfterValidator(_check_arms)]

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        if self.name == HOLDOUT:
            raise ValueError(f"'{HOLDOUT}' is the name of the holdout; give the experiment another")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"{self.name}: ends at {self.end:%Y-%m-%dT%H:%MZ}, which is not after its start")
        if self.horizon <= timedelta(0):
            raise ValueError(f"{self.name}: horizon must be longer than 0")
        total = sum(arm.weight for arm in self.arms.values())
        small = [name for name, arm in self.arms.items() if arm.weight * BUCKETS < total]
        if small:
            raise ValueError(f"{self.name}: arm '{small[0]}' has less than one ten-thousandth of the weights")
        return self

    @property
    def arm_salt(self) -> str:
        """The salt by which units are dealt to arms."""
        return self.salt or self.name

    @property
    def control(self) -> str:
        """The arm that others are compared with: `control`, else the first."""
        return CONTROL if CONTROL in self.arms else next(iter(self.arms))

    def sets(self, setting: Setting) -> bool:
        """True where one of the arms sets this of a request."""
        return any(arm.sets(setting) for arm in self.arms.values())

    def is_beside(self, other: "Experiment") -> bool:
        """True where both run at one time."""
        return (self.end is None or other.start < self.end) and (other.end is None or self.start < other.end)


class Holdout(StrictModel):
    """Units that are in no experiment since a time, to see what all experiments together have brought."""

    layer: Name
    buckets: Buckets
    since: Time
    horizon: Duration = timedelta(days=1)
    realised: Realised | None = None


class ExperimentsFile(StrictModel):
    """All experiments of a model."""

    layers: dict[Name, Layer] = Field(default_factory=dict)
    experiments: Annotated[list[Experiment], Field(max_length=MAX_EXPERIMENTS)] = Field(default_factory=list)
    holdout: Holdout | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> Iterator[str]:
        names = [experiment.name for experiment in self.experiments]
        yield from (f"experiment '{name}' is there twice" for name in names if names.count(name) > 1)
        for what, layer in self._layers_named():
            if layer not in self.layers:
                hint = did_you_mean(layer, list(self.layers), f"layers: {', '.join(self.layers) or 'none'}")
                yield f"{what}: no such layer, '{layer}'; {hint}"
        yield from self._salt_faults()
        if self.holdout is not None:
            for one in self.experiments:
                if one.layer == self.holdout.layer and one.buckets.overlaps(self.holdout.buckets):
                    yield _overlap(one.name, one.buckets, HOLDOUT, self.holdout.buckets)
        for one, other in combinations(self.experiments, 2):
            if not one.is_beside(other):
                continue
            if one.layer == other.layer and one.buckets.overlaps(other.buckets):
                yield _overlap(one.name, one.buckets, other.name, other.buckets)
            both = (
                [] if one.layer == other.layer else [each for each in SETTINGS if one.sets(each) and other.sets(each)]
            )
            if both:
                yield (
                    f"experiments '{one.name}' and '{other.name}' both set {both[0]}, and share users as their layers "
                    "differ; put them into one layer"
                )

    def _layers_named(self) -> Iterator[tuple[str, str]]:
        yield from ((f"experiment '{one.name}'", one.layer) for one in self.experiments)
        if self.holdout is not None:
            yield HOLDOUT, self.holdout.layer

    def _salt_faults(self) -> Iterator[str]:
        """Equal salts deal alike: arms would then follow from a layer's buckets, or from another experiment's arms."""
        salts = [(f"layer '{name}'", layer.salt) for name, layer in self.layers.items()]
        salts += [(f"experiment '{one.name}'", one.arm_salt) for one in self.experiments]
        for (one, salt), (other, same) in combinations(salts, 2):
            if salt == same:
                yield f"{one} and {other} have one salt, '{salt}', and would deal users alike; change one of them"


def _overlap(one: str, of_one: Buckets, other: str, of_other: Buckets) -> str:
    first, last = max(of_one.from_, of_other.from_), min(of_one.to, of_other.to)
    return (
        f"'{one}' and '{other}' of one layer both have the buckets {first} to {last}, and no user can be in both; move "
        "one, or let it end before the other starts"
    )


def shares(weights: Sequence[float]) -> list[int]:
    """First bucket of 10,000 that is no longer an arm's, by arm: cumulative weights, rounded."""
    total, upto, ends = sum(weights), 0.0, []
    for weight in weights:
        upto += weight
        ends.append(round(upto / total * BUCKETS))
    return ends
