"""Plans: an experiment's search, one for every dataset and network that has something to choose, checked beforehand.

In: an experiment. Out: plans. What a plan's trials depend on is its record: trials are never continued under another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.compare.experiment import Cell, Experiment, check_sizes
from training.compare.space import Choices, Point, Span, all_points, around, flat, probes
from training.config import TrainingConfig

# Where a run is or reads from, and how it is carried out, change no result. The run's folder checks its own data.
WHERE = ("output", "schema", "seed", "threads", "checkpoint_seconds", "checkpoints_kept")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """The search for one network on one dataset.

    `points` come first, in their order: all of a space that has no more points than there are trials (`trials` is then
    their number), otherwise the files' own, where it is in the space."""

    dataset: str
    network: str
    space: Mapping[str, Span | Choices]
    points: tuple[Point, ...]
    trials: int
    seeds: tuple[int, ...]
    record: Json

    def __str__(self) -> str:
        return f"search/{self.dataset}/{self.network}"

    @property
    def key(self) -> tuple[str, str]:
        """(dataset, network)."""
        return self.dataset, self.network

    def cell(self, seed: int, trial: int) -> Cell:
        """One training run of a trial."""
        return Cell(self.dataset, self.network, seed, trial)

    def refuse_other(self, record: Mapping[str, Any], remedy: str) -> None:
        """Refuse trials that were made for another plan. Raises ValueError naming what differs."""
        now, then = flat(self.record), flat(record)
        for key in [*now, *then]:
            if now.get(key) != then.get(key):
                raise ValueError(
                    f"{self}: was begun with {key} {then.get(key)}, and the experiment now has {now.get(key)}; {remedy}"
                )


def plans(experiment: Experiment) -> list[Plan]:
    """Every plan of an experiment. Raises ValueError for a space that does not fit its network."""
    if experiment.search is None:
        return []
    return [
        _plan(experiment, dataset.name, network.name, experiment.space_of(network))
        for dataset in experiment.datasets
        for network in experiment.networks
        if experiment.space_of(network)
    ]


def _plan(experiment: Experiment, dataset: str, network: str, space: Mapping[str, Span | Choices]) -> Plan:
    assert experiment.search is not None, "an experiment without a search has no plans"
    search, cell = experiment.search, Cell(dataset, network, experiment.search_seeds[0], trial=0)
    base = experiment.config(cell)
    schema = base.feed_schema()
    try:
        space = around(space, base.dump())
        for key, dimension in space.items():
            for value in probes(dimension):
                check_sizes(experiment.config(cell, {key: value}), schema)
        points = all_points(space, search.trials)
        for point in points or ():
            check_sizes(experiment.config(cell, point), schema)
    except ValueError as error:
        raise ValueError(f"experiment {experiment.name}, space of network {network}: {error}") from None
    written = base.dump()
    training = {key: value for key, value in written.items() if key not in WHERE}
    training["data"] = {key: value for key, value in written["data"].items() if key != "path"}
    record = {
        "trials": search.trials,
        "seeds": list(experiment.search_seeds),
        "space": {key: x.model_dump() if isinstance(x, Span) else list(x) for key, x in space.items()},
        "metric": experiment.verdict.metric,
        "tasks": experiment.verdict_tasks(schema),
        "training": training,
    }
    if points is not None:
        return Plan(dataset, network, space, tuple(points), len(points), experiment.search_seeds, record)
    own = _written_point(experiment, cell, base, space)
    given = () if own is None else (own,)
    return Plan(dataset, network, space, given, search.trials, experiment.search_seeds, record)


def _written_point(
    experiment: Experiment, cell: Cell, base: TrainingConfig, space: Mapping[str, Span | Choices]
) -> Point | None:
    """The point that the files describe, so that a search never does without it. None where the space lacks it."""
    point: Point = {}
    written = base.dump()
    for key, dimension in space.items():
        if isinstance(dimension, Span):
            value: Any = written
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if not dimension.contains(value):
                return None
            point[key] = value
        else:
            same = [choice for choice in dimension if experiment.config(cell, {key: choice}) == base]
            if not same:
                return None
            point[key] = same[0]
    return point
