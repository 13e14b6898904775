"""The file of a comparison on rolling days: what `python -m training rolling choose FILE` reads.

    name: kuairand_rolling
    config: configs/kuairand.yaml
    days: {column: date, first: 2022-04-25, choose: [2022-05-02, 2022-05-06], test: 2022-05-07}
    metrics: [normalized_entropy, auc]      # the first one chooses
    tasks: [click, long_view]
    methods:
      - {name: adatt_sp, fusion: {kind: adatt_sp, levels: [128, 64]}}
      - {name: lightgbm, lightgbm: {leaves: 15}, space: {leaves: {low: 7, high: 63, log: true}}}
    baseline: lightgbm
    search: {trials: 6, seeds: 1, space: {optimizer.dense.learning_rate: {low: 0.001, high: 0.01, log: true}}}
    output: runs/kuairand_rolling

A day of `choose` is a fold: train on all days from `first` to the day before it, validate on it. The test day has the
same form, and no trial reads it. A method with further inputs names their `features`, which join those of the schema,
or replace those of their names. Its schema is then a file in the output's schemas/. With other tasks it has a training
file of its own (`config`), on the same rows.
"""

import functools
import json
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from model.strict_yaml import StrictModel, read_yaml, unknown_key
from training.compare.experiment import SEARCH_SEED, Cell, Changes, Name, NetworkEntry, Seeds, check_sizes
from training.compare.measures import METRICS, MetricName, measured_tasks
from training.compare.space import Point, Search, Space, flat
from training.compare.tree_config import LightGBMConfig, TreesConfig
from training.config import DataConfig, OutputPath, TrainingConfig
from training.data.moving.windows import resolved
from training.run.run import write_text
from training.split_config import Day, DayCount, MovingWindows, Selection, Zone

# Feed schemas of methods with features of their own, in the output.
SCHEMAS = "schemas"
_DAY = timedelta(days=1)
Json = dict[str, Any]


class Days(StrictModel):
    """Days of a comparison: the first one of every training window, the folds from one day to another, the test day."""

    column: str
    first: Day
    choose: tuple[Day, Day]
    test: Day
    timezone: Zone = "UTC"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        from_day, to_day = self.choose
        if not self.first < from_day <= to_day < self.test:
            raise ValueError(
                f"first ({self.first}), choose ({from_day} to {to_day}) and test ({self.test}) must follow each other"
            )
        if self.test - self.first < 2 * _DAY:
            raise ValueError(f"test ({self.test}): needs a day to validate and one to train on before it")
        return self

    @property
    def folds(self) -> list[date]:
        """Days that are validated on."""
        from_day, to_day = self.choose
        return [from_day + number * _DAY for number in range((to_day - from_day).days + 1)]

    def fold(self, day: date) -> MovingWindows:
        """Windows of a fold: no test split, so that nothing can read one."""
        return self._windows(day, DayCount(days=0), (day - self.first).days)

    @property
    def confirmation(self) -> MovingWindows:
        """Windows of the test day: validated on the day before it, trained on all days before that."""
        return self._windows(self.test, DayCount(days=1), (self.test - self.first).days - 1)

    def _windows(self, end: date, test: DayCount, training_days: int) -> MovingWindows:
        return MovingWindows(
            column=self.column,
            end=end,
            train=DayCount(days=training_days),
            validation=DayCount(days=1),
            test=test,
            timezone=self.timezone,
        )


class Method(NetworkEntry):
    """A network or boosted trees, with what the search may choose. `features` join the schema's, and `config` is a
    training file of its own."""

    config: Path | None = None
    features: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.fusion is None) == (self.lightgbm is None):
            raise ValueError("give either fusion, for a network, or lightgbm, for boosted trees")
        if self.lightgbm is not None and self.tower is not None:
            raise ValueError("tower is for networks; the keys of boosted trees go under lightgbm")
        return self

    def space_in(self, search: Search) -> Space:
        """What the search may choose. Its own keys come before those of all networks, which trees do not have."""
        return dict(self.space) if self.lightgbm is not None else {**search.space, **self.space}

    def trees_at(self, point: Point) -> LightGBMConfig:
        """Settings of boosted trees at a point of their space. Raises ValueError for a key or value of none."""
        assert self.lightgbm is not None, "a network has no trees"
        content = self.lightgbm.model_dump(mode="json")
        for key, value in point.items():
            _set(content, key, value)
        return LightGBMConfig.from_mapping(content, f"method {self.name}, lightgbm")


def _set(content: Json, key: str, value: Any) -> None:
    first, _, rest = key.partition(".")
    if not rest:
        content[first] = value
        return
    inner = content.get(first)
    if not isinstance(inner, dict):
        raise ValueError(f"lightgbm.{key}: there is no '{first}' to change")
    _set(inner, rest, value)


class Slice(StrictModel):
    """A part of the test day's rows: those whose `column` has a value, is in a list, or lies between min and max."""

    name: Name
    column: str
    keep: Selection


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("give each one once")
    return names


class RollingFile(StrictModel):
    """One comparison on rolling days."""

    name: Name
    config: Path
    days: Days
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1), AfterValidator(_each_once)]
    tasks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]
    methods: tuple[Method, ...] = Field(min_length=2)
    baseline: str
    search: Search
    # Of the test day's reading. Not those of the trials, whose luck the choice would bring along.
    seeds: Seeds
    slices: tuple[Slice, ...] = ()
    changes: Changes
    alpha: float = Field(default=0.05, gt=0, lt=1)
    power: float = Field(default=0.8, gt=0, lt=1)
    replicates: Annotated[int, Field(ge=100)] = 500
    # How far ahead of the baseline a choice is frozen without a search for leaks, in the mean of each metric.
    plausible: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    # The committed list of what has read test days.
    readings: Path
    output: OutputPath
    processes: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = self.method_names
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"method '{min(twice)}' is given twice; give each a name of its own")
        if self.baseline not in names:
            raise ValueError("baseline: " + unknown_key(self.baseline, names, "method"))
        for name in self.metrics:
            if METRICS[name].better is None:
                raise ValueError(f"metrics: '{name}' has no better direction; choose another")
        for method in self.methods:
            if not method.space_in(self.search):
                raise ValueError(f"method '{method.name}' has nothing to choose; every method has the same trials")
        if same := {*self.search_seeds} & {*self.seeds}:
            raise ValueError(f"seeds: {min(same)} is one of the search's ({SEARCH_SEED} and on); choose smaller ones")
        return self

    @property
    def method_names(self) -> list[str]:
        """The methods, in the file's order."""
        return [method.name for method in self.methods]

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """Seeds of every trial."""
        return tuple(range(SEARCH_SEED, SEARCH_SEED + self.search.seeds))

    def method(self, name: str) -> Method:
        """A method of the file."""
        return next(method for method in self.methods if method.name == name)

    def data_paths(self) -> set[Path | str]:
        """Folders that the methods read. Raises ValueError for a training file that is none."""
        paths = set()
        for method in self.methods:
            changes = [
                f"{key}={json.dumps(value, default=str)}" for key, value in {**self.changes, **method.changes}.items()
            ]
            paths.add(TrainingConfig.load(method.config or self.config, changes).data.path)
        return paths

    def trial_config(self, method: Method, day: date, seed: int, trial: int, point: Point) -> TrainingConfig:
        """The training configuration of a trial on a fold. Raises ValueError naming the method."""
        cell = trial_cell(method, day, seed, trial)
        return self._config(method, self.days.fold(day), seed, self.output / str(cell), point)

    def final_config(self, method: Method, seed: int, point: Point) -> TrainingConfig:
        """The training configuration of the test day's reading. Raises ValueError naming the method."""
        folder = self.output / str(final_cell(self, method, seed))
        return self._config(method, self.days.confirmation, seed, folder, point)

    def _config(self, method: Method, windows: MovingWindows, seed: int, output: Path, point: Point) -> TrainingConfig:
        changes: Json = {**self.changes, **method.changes}
        if method.fusion is not None:
            changes["network.fusion"] = method.fusion_for(seed)
            changes |= {} if method.tower is None else {"network.tower": method.tower}
            changes |= flat(point)
        changes |= {"data.split": windows.model_dump(mode="json"), "output": str(output), "seed": seed, "threads": 1}
        written = [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
        try:
            config = TrainingConfig.load(method.config or self.config, written)
            data = DataConfig.model_validate(json.loads(_resolved(config.data.model_dump_json())))
            config = config.model_copy(update={"data": data, "feed": self._schema_of(method, config.feed)})
            return config if method.lightgbm is None else TreesConfig.of(config, method.trees_at(point))
        except ValueError as error:
            raise ValueError(f"comparison {self.name}, method {method.name}: {error}") from None

    def _schema_of(self, method: Method, path: Path) -> Path:
        """The feed schema of a method, written where it has features of its own. Raises ValueError naming the file."""
        if not method.features:
            return path
        content = read_yaml(path)
        if not isinstance(content, dict) or not isinstance(content.get("features"), list):
            raise ValueError(f"{path}: expected a feed schema, with a list of features")
        own = {feature.get("name"): feature for feature in method.features}
        kept = [one for one in content["features"] if not isinstance(one, dict) or one.get("name") not in own]
        text = yaml.safe_dump({**content, "features": [*kept, *own.values()]}, sort_keys=False)
        written = self.output / SCHEMAS / f"{method.name}.yaml"
        if not written.exists() or written.read_text(encoding="utf-8") != text:
            write_text(written, text)
        return written

    def check(self) -> None:
        """Verify tasks and sizes of every method. Raises ValueError naming the method."""
        for method in self.methods:
            config = self.trial_config(method, self.days.folds[0], self.search_seeds[0], 0, {})
            try:
                schema = config.feed_schema()
                for metric in self.metrics:
                    measured_tasks("comparison", metric, self.tasks, schema)
                check_sizes(config, schema)
            except ValueError as error:
                raise ValueError(f"comparison {self.name}, method {method.name}: {error}") from None


def trial_cell(method: Method, day: date, seed: int, trial: int) -> Cell:
    """The run of a trial on a fold, by its place below the output."""
    return Cell(day.isoformat(), method.name, seed, trial)


def final_cell(file: RollingFile, method: Method, seed: int) -> Cell:
    """The run of a method that answers the test day."""
    return Cell(file.days.test.isoformat(), method.name, seed)


@functools.cache
def _resolved(data: str) -> str:
    # By the text of the data's configuration: a log's days are read once for all trials of a fold.
    return resolved(DataConfig.model_validate(json.loads(data)), is_logged=False).model_dump_json()


def load_rolling(path: Path, changes: Mapping[str, Any]) -> RollingFile:
    """Read a file with top-level keys replaced. Raises ValueError naming the file and the key."""
    content = read_yaml(path)
    return RollingFile.from_mapping({**content, **changes} if isinstance(content, dict) else content, str(path))
