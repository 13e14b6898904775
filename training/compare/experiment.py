"""The experiment file: what `python -m training compare EXPERIMENT` reads.

    name: census_table5
    datasets: [{name: census, config: configs/census.yaml, set: {epochs: 2}}]
    networks: [{name: adatt_sp, fusion: {kind: adatt_sp, levels: [128, 64]}}, ...]
    seeds: 10                 # 0 to 9, or a list
    baseline: shared_bottom
    metrics: [auc, normalized_entropy]
    verdict: {metric: auc, tasks: all}
    budget: {ms: 5, candidates: 500}                # optional, see budget.py
    search: {trials: 8, seeds: 3, space: {...}}     # optional, see space.py
    output: runs/census_table5

A cell is one training run: a network on a dataset with a seed. Everything is checked before the first cell runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, PrivateAttr, model_validator

from model.cross_layers import CrossConfig
from model.fusion import AITMConfig, FusionConfig, build_network
from model.schema import FeedSchema
from model.strict_yaml import StrictModel, unknown_key
from training.compare.budget import Budget
from training.compare.contrasts import Contrast
from training.compare.curves import Curve
from training.compare.measures import METRICS, MetricName, TaskNames, measured_tasks
from training.compare.space import Point, Search, Space, flat
from training.compare.tree_config import LightGBMConfig, TreesConfig
from training.config import OutputPath, TrainingConfig
from training.split_config import ResolvedWindows

# Input width with which a network is built to check its sizes against the tasks. Any width would do.
TRIAL_WIDTH = 4


def _as_list(seeds: object) -> object:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"got {seeds}; give the number of seeds (1 or more) or a list of seeds")
        return list(range(seeds))
    return seeds


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError("give each seed once, and at least one")
    return seeds


# Part of a folder's name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_as_list), AfterValidator(_distinct)]
# First seed of a search's trials, the next ones follow.
SEARCH_SEED = 10_000
NOTHING: Mapping[Any, Any] = MappingProxyType({})
# Decided by the experiment itself.
RESERVED = ("network", "output", "seed", "threads", "schema")


def _free_keys(changes: dict[str, Any]) -> dict[str, Any]:
    free = flat(changes)
    for key in free:
        if key.split(".")[0] in RESERVED:
            raise ValueError(f"'{key}' is decided by the experiment; remove it")
    return free


Changes = Annotated[dict[str, Any], Field(alias="set", default_factory=dict), AfterValidator(_free_keys)]


class Dataset(StrictModel):
    """A training file that every network shares, with keys changed by `set`."""

    name: Name
    config: Path
    changes: Changes


class NetworkEntry(StrictModel):
    """A network. `cross` and `tower` are the training file's where they are left out. `set` changes keys for this
    network alone.

    `space` is what a search may choose for it, beside the space of all networks. `lightgbm` in place of `fusion` gives
    boosted trees, one model per task, to compare with."""

    name: Name
    fusion: FusionConfig | None = None
    lightgbm: LightGBMConfig | None = None
    cross: CrossConfig | None = None
    tower: tuple[PositiveInt, ...] | None = None
    changes: Changes
    space: Space = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.fusion is None) == (self.lightgbm is None):
            raise ValueError("give either fusion, for a network, or lightgbm, for boosted trees")
        of_networks = (self.cross, self.tower, self.changes, self.space)
        if self.lightgbm is not None and any(of_networks):
            raise ValueError(
                "cross, tower, set and space are for networks; the keys of boosted trees go under lightgbm"
            )
        return self

    def fusion_for(self, seed: int) -> dict[str, Any]:
        """The fusion configuration of a cell: a network that draws its routes draws others with every seed, unless
        the file fixes its own `seed`."""
        assert self.fusion is not None, "boosted trees have none"
        fusion = self.fusion.model_dump(mode="json")
        if "seed" in fusion and "seed" not in self.fusion.model_fields_set:
            fusion["seed"] = seed
        return fusion


class Verdict(StrictModel):
    """Decision of the comparison: the mean of `metric` over `tasks`, against the baseline, at `level` after Holm."""

    metric: MetricName = "auc"
    tasks: TaskNames = "all"
    min_seeds: int = Field(default=5, ge=2)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    power: float = Field(default=0.8, gt=0, lt=1)
    # The difference that would matter, in the metric's unit. By default it is the one observed.
    difference: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run of an experiment, or of a trial of its search."""

    dataset: str
    network: str
    seed: int
    trial: int | None = None

    def __str__(self) -> str:
        if self.trial is not None:
            return f"search/{self.dataset}/{self.network}/trial-{self.trial}/seed-{self.seed}"
        return f"{self.dataset}/{self.network}/seed-{self.seed}"


class Experiment(StrictModel):
    """One comparison."""

    name: Name
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    networks: tuple[NetworkEntry, ...] = Field(min_length=1)
    seeds: Seeds
    baseline: str
    metrics: tuple[MetricName, ...] = ("auc", "normalized_entropy", "gauc", "calibration_ratio", "mse")
    verdict: Verdict = Verdict()
    budget: Budget | None = None
    contrasts: tuple[Contrast, ...] = ()
    curves: tuple[Curve, ...] = ()
    search: Search | None = None
    changes: Changes
    output: OutputPath
    processes: PositiveInt = 1
    replicates: Annotated[int, Field(ge=100)] = 500
    # Whether the report looks inside the first seed of every network (seconds each, kept in its run folder).
    inside: bool = True
    # By dataset its windows of days as they were resolved (windows.py): every cell has the same.
    _windows: dict[str, ResolvedWindows] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, names in (("dataset", [d.name for d in self.datasets]), ("network", self.network_names)):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{what} '{min(twice)}' is given twice; give each a name of its own")
        if self.baseline not in self.network_names:
            raise ValueError("baseline: " + unknown_key(self.baseline, self.network_names, "network"))
        if METRICS[self.verdict.metric].better is None:
            raise ValueError(f"verdict.metric: '{self.verdict.metric}' has no better direction; choose another")
        if self.verdict.metric not in self.metrics:
            raise ValueError(f"verdict.metric: '{self.verdict.metric}' is not among metrics; add it there")
        for question in self.questions:
            question.check(self.network_names, self.metrics)
        self._check_search()
        return self

    def _check_search(self) -> None:
        with_space = [network.name for network in self.networks if network.space]
        if self.search is None and with_space:
            raise ValueError(f"network '{with_space[0]}' has a space; add `search: {{trials: 8, seeds: 3}}`")
        if self.search is not None and not self.search.space and not with_space:
            raise ValueError("search: there is nothing to choose; give it a space, or one to a network")
        if self.search is not None and any(dataset.name == "search" for dataset in self.datasets):
            raise ValueError("dataset 'search' has the name of the search's folder; choose another")
        if self.search is not None and (same := {*self.search_seeds} & {*self.seeds}):
            raise ValueError(f"seeds: {min(same)} is one of the search's ({SEARCH_SEED} and on); choose smaller ones")

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """The seeds of every trial. Not those of the table: a point chosen for its luck with some seeds would bring
        that luck into the table with the same seeds."""
        return () if self.search is None else tuple(range(SEARCH_SEED, SEARCH_SEED + self.search.seeds))

    def space_of(self, network: NetworkEntry) -> Space:
        """Search space of a network. Its own space comes before the shared one."""
        if self.search is None or network.fusion is None:
            return {}
        return {**self.search.space, **network.space}

    @property
    def questions(self) -> tuple[Contrast | Curve, ...]:
        """Questions beside the verdict."""
        return (*self.contrasts, *self.curves)

    @property
    def network_names(self) -> list[str]:
        """The networks, in the file's order."""
        return [network.name for network in self.networks]

    def cells(self) -> list[Cell]:
        """All cells, seed by seed: an unfinished comparison has every network with the same seeds."""
        return [
            Cell(dataset.name, network.name, seed)
            for seed in self.seeds
            for dataset in self.datasets
            for network in self.networks
        ]

    def with_windows(self, windows: Mapping[str, ResolvedWindows]) -> "Experiment":
        """The experiment with windows of days resolved, by dataset."""
        copied = self.model_copy()
        copied._windows = dict(windows)
        return copied

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.output / str(cell)

    def config(self, cell: Cell, chosen: Mapping[str, Any] = NOTHING) -> TrainingConfig:
        """The training configuration of a cell. `chosen` is a point of the network's space. Raises ValueError naming
        the cell."""
        dataset = next(entry for entry in self.datasets if entry.name == cell.dataset)
        network = next(entry for entry in self.networks if entry.name == cell.network)
        changes: dict[str, Any] = {**self.changes, **dataset.changes, **network.changes}
        changes |= {"output": str(self.folder(cell))}
        if network.fusion is not None:
            changes["network.fusion"] = network.fusion_for(cell.seed)
        if "cross" in network.model_fields_set:
            changes["network.cross"] = None if network.cross is None else network.cross.model_dump()
        if network.tower is not None:
            changes["network.tower"] = network.tower
        changes |= flat(chosen)
        # One thread a cell: cells are what runs in parallel.
        changes |= {"seed": cell.seed, "threads": 1}
        written = [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
        try:
            config = TrainingConfig.load(dataset.config, written)
            config = self._with_windows_of(cell.dataset, config)
            return config if network.lightgbm is None else TreesConfig.of(config, network.lightgbm)
        except ValueError as error:
            raise ValueError(f"experiment {self.name}, {cell}: {error}") from None

    def _with_windows_of(self, dataset: str, config: TrainingConfig) -> TrainingConfig:
        windows = self._windows.get(dataset)
        if windows is None:
            return config
        if config.data.split != windows.windows:
            raise ValueError(
                "data.split: windows of days are the same for all cells of a dataset; change the dataset's"
            )
        return config.model_copy(update={"data": config.data.model_copy(update={"split": windows})})

    def configs(self, choices: Mapping[tuple[str, str], Point] = NOTHING) -> dict[Cell, TrainingConfig]:
        """Every cell's configuration, checked against its feed: tasks, splits, sizes. Raises ValueError.

        `choices` is (dataset, network) -> what the search chose."""
        configs = {cell: self.config(cell, choices.get((cell.dataset, cell.network), NOTHING)) for cell in self.cells()}
        for dataset in self.datasets:
            place = f"experiment {self.name}, dataset {dataset.name}"
            of_dataset = {cell: config for cell, config in configs.items() if cell.dataset == dataset.name}
            first = next(iter(of_dataset.values()))
            if not first.data.has_test:
                raise ValueError(f"{place}: data.split.test is not given; the final table is measured there")
            schema = first.feed_schema()
            try:
                self.verdict_tasks(schema)
                for question in self.questions:
                    question.check_tasks(schema)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            for cell, config in of_dataset.items():
                try:
                    check_sizes(config, schema)
                except ValueError as error:
                    raise ValueError(f"experiment {self.name}, {cell}: {error}") from None
        return configs

    def verdict_tasks(self, schema: FeedSchema) -> list[str]:
        """The tasks of the verdict. `all` are those that the metric measures. Raises ValueError for any other."""
        return measured_tasks("verdict", self.verdict.metric, self.verdict.tasks, schema)


def check_sizes(config: TrainingConfig, schema: FeedSchema) -> None:
    """Raise ValueError where the network's sizes or chains, or the keys of boosted trees, do not fit the feed. `schema`
    is another network's on the same feed: chains may differ."""
    if isinstance(config, TreesConfig):
        config.check(schema)
        return
    if config.given or isinstance(config.network.fusion, AITMConfig):
        schema = config.feed_schema()
    build_network(config.network.fusion, TRIAL_WIDTH * len(schema.tasks), len(schema.tasks), schema.given)
