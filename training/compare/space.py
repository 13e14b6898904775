"""Search spaces: the `search` block of an experiment file and the `space` of its networks.

    search:
      trials: 8     # of every network with something to choose, on every dataset
      seeds: 3      # trained in every trial
      space: {optimizer.dense.learning_rate: {low: 0.001, high: 0.01, log: true}}     # of all networks
    networks:
      - name: ple
        fusion: {kind: ple, levels: [128, 64]}
        space: {network.fusion: [{experts_per_task: 1, shared_experts: 3}, {experts_per_task: 2, shared_experts: 0}]}

A space maps keys of the training file to a list of choices or to a range. A point is a value for each key. A mapping as
a value changes the keys that it names. Everything is checked before the first trial.
"""

import itertools
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import AfterValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from model.strict_yaml import StrictModel, unknown_key

# Decided by the experiment itself, or another choice than a better value of the same measurement on the same network.
FIXED = ("output", "seed", "threads", "schema", "data", "network.fusion.kind")

Number = int | Annotated[float, Field(allow_inf_nan=False)]
Point = dict[str, Any]


class Span(StrictModel):
    """Numbers from `low` to `high`, both included: whole ones where both are written so, otherwise any.

    `log` draws evenly on the logarithmic scale, `step` keeps to low, low + step, .... With `times`, low and high
    multiply what the files say."""

    low: Number
    high: Number
    log: bool = False
    step: Annotated[Number, Field(gt=0)] | None = None
    times: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.low <= 0 and (self.log or self.times):
            raise ValueError(f"low ({self.low}) must be above 0 with {'log' if self.log else 'times'}")
        if self.step is not None:
            if self.log or self.times:
                raise ValueError("step goes with neither log nor times; leave one of them out")
            if (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(self.step)):
                raise ValueError(
                    f"high ({self.high}) must be low ({self.low}) and a whole number of steps ({self.step})"
                )
        return self

    @property
    def is_whole(self) -> bool:
        """True where the numbers are whole."""
        return not self.times and all(isinstance(x, int) for x in (self.low, self.high, self.step or 1))

    def scaled_to(self, value: object) -> Self:
        """The range in the key's own unit. Raises ValueError where `times` has nothing to multiply."""
        if not self.times:
            return self
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"times needs a number above 0 to multiply, and the files say {value}; leave times out")
        low, high = self.low * value, self.high * value
        if isinstance(value, int):
            low, high = max(round(low), 1), round(high)
        return type(self)(low=low, high=high, log=self.log)

    def contains(self, value: object) -> bool:
        """True for a value in the range, and on its steps."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        is_on_step = self.step is None or not (Decimal(str(value)) - Decimal(str(self.low))) % Decimal(str(self.step))
        return self.low <= value <= self.high and is_on_step

    def distribution(self) -> BaseDistribution:
        """The range as Optuna has it."""
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def count(self) -> int | None:
        """Count of its numbers. None where that is any number."""
        if not self.is_whole and self.step is None:
            return None
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(self.step or 1))) + 1

    def values(self) -> list[int | float]:
        """The numbers of a range that has a count."""
        number = int if self.is_whole else float
        step = Decimal(str(self.step or 1))
        return [number(Decimal(str(self.low)) + position * step) for position in range(self.count() or 0)]


def _plain(choices: tuple[Any, ...]) -> tuple[Any, ...]:
    # As the training file will read them, dates as text.
    written = [json.dumps(choice, default=str) for choice in choices]
    if len(set(written)) < len(written):
        raise ValueError("give each choice once")
    return tuple(map(json.loads, written))


def _form(value: object) -> str:
    return "range" if isinstance(value, Mapping | Span) else "choices" if isinstance(value, list | tuple) else "value"


Choices = Annotated[tuple[Any, ...], Field(min_length=1), AfterValidator(_plain)]
Dimension = Annotated[
    Annotated[Span, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(
        _form,
        custom_error_type="dimension",
        custom_error_message="expected a list of choices, or a range as {low: 0.001, high: 0.01, log: true}",
    ),
]


def _free(space: dict[str, Any]) -> dict[str, Any]:
    for key, dimension in space.items():
        choices = [{key: choice} for choice in dimension] if isinstance(dimension, tuple) else [{key: 0}]
        for fixed in FIXED:
            if any(name == fixed or name.startswith(f"{fixed}.") for choice in choices for name in flat(choice)):
                raise ValueError(f"'{fixed}' is not the search's to choose; remove it")
    return space


def flat(changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: {a: {b: 1}} -> {a.b: 1}."""
    found: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


Space = Annotated[dict[str, Dimension], AfterValidator(_free)]


class Search(StrictModel):
    """Tuning of networks: a trial trains `seeds` seeds and is worth the mean of the verdict on validation."""

    trials: PositiveInt = 8
    seeds: PositiveInt = 3
    space: Space = Field(default_factory=dict)


# What `--search` tunes where the file has no search block: from a quarter to four times what the files say.
LEARNING_RATES: dict[str, Any] = {
    f"optimizer.{part}.learning_rate": {"low": 0.25, "high": 4, "log": True, "times": True}
    for part in ("tables", "dense")
}


def around(space: Mapping[str, Span | Choices], written: Mapping[str, Any]) -> dict[str, Span | Choices]:
    """The space in the keys' own units. `written` is the training configuration that the files give."""
    found: dict[str, Span | Choices] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Span) and dimension.times:
            try:
                dimension = dimension.scaled_to(look_up(written, key))
            except ValueError as error:
                raise ValueError(f"space.{key}: {error}") from None
        found[key] = dimension
    return found


def look_up(written: Any, key: str) -> Any:
    """The value of a dotted key. Raises ValueError naming the nearest valid one."""
    for part in key.split("."):
        if not isinstance(written, Mapping):
            raise ValueError(f"the files have no '{key}'")
        if part not in written:
            raise ValueError(unknown_key(part, list(written)))
        written = written[part]
    return written


def all_points(space: Mapping[str, Span | Choices], limit: int) -> list[Point] | None:
    """Every point, in the order of the file, where there are at most `limit`, otherwise None."""
    counts = [dimension.count() if isinstance(dimension, Span) else len(dimension) for dimension in space.values()]
    if math.prod(limit + 1 if count is None else count for count in counts) > limit:
        return None
    values = [dimension.values() if isinstance(dimension, Span) else dimension for dimension in space.values()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def probes(dimension: Span | Choices) -> list[Any]:
    """The values by which a key is checked: the ends of a range, every choice."""
    return [dimension.low, dimension.high] if isinstance(dimension, Span) else list(dimension)


def distributions(space: Mapping[str, Span | Choices]) -> dict[str, BaseDistribution]:
    """The space as Optuna has it, choices as JSON text, for Optuna has no lists and mappings."""
    return {
        key: dimension.distribution()
        if isinstance(dimension, Span)
        else CategoricalDistribution([*map(_text, dimension)])
        for key, dimension in space.items()
    }


def encoded(space: Mapping[str, Span | Choices], point: Point) -> Point:
    """A point as Optuna has it."""
    return {key: value if isinstance(space[key], Span) else _text(value) for key, value in point.items()}


def decoded(space: Mapping[str, Span | Choices], parameters: Point) -> Point:
    """A point from Optuna's parameters, in the space's order."""
    return {
        key: parameters[key] if isinstance(dimension, Span) else json.loads(parameters[key])
        for key, dimension in space.items()
    }


def _text(value: Any) -> str:
    return json.dumps(value)
