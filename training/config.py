"""The training file: what `python -m training train CONFIG` reads, one screen of keys with their defaults.

Relative paths are relative to the folder the command is run in. `--set optimizer.dense.learning_rate=0.002` changes
one key. Unknown keys are refused with the nearest valid one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from model.ranker import NetworkConfig
from model.schema import FeedSchema
from model.strict_yaml import StrictModel, read_yaml
from model.tasks.binary import LossTerms
from training.files import output_path
from training.split_config import DayCount, MovingWindows, Split, SplitConfig
from training.step.balancing import BalancingConfig, NoBalancingConfig

PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SplitName = Literal["train", "validation", "test"]


def _data_path(value: object) -> Path | str:
    if not isinstance(value, Path | str):
        raise ValueError(f"expected a folder, or the URL of one, got {type(value).__name__}")
    return str(value) if "://" in str(value) else Path(value)


# A folder of this machine, or the URL of one elsewhere (s3://bucket/folder) that fsspec can open.
DataPath = Annotated[Path | str, BeforeValidator(_data_path)]


# A folder of this machine that a job writes into (training/files.py).
OutputPath = Annotated[Path, BeforeValidator(output_path)]


class NegativeSampling(StrictModel):
    """Negatives of a binary task that are trained on: a share of them, drawn by a hash of (seed, row)."""

    task: str
    rate: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class DataConfig(StrictModel):
    """A folder of *.parquet files. `split` says which rows train, validate and test (training/split_config.py).
    `group_by` names the user column of GAUC and of the bootstrap.

    `together` names a column, a request's id for example: rows that share a value are in one batch, so that losses may
    compare them (`jrc` of a task). A batch then has `batch_size` rows but for less than a group (of a stream: of each
    lane). Rows without a value are alone.

    `weight` names a column of row weights >= 0: losses become weighted means over the training rows, and calibration
    counts rows by it. Metrics and the validation objective do not use it.

    `read: stream` trains on a split that is larger than memory (training/data/stream.py). An epoch then runs in
    `lanes` side by side, each of which shuffles its rows within windows of `window` consecutive row groups. `readers`
    threads a process read ahead (0: none, the training loop reads). Rows that break a rule stop the run, or are left
    out and counted while there are `max_bad_rows` of them at most.
    """

    path: DataPath
    split: Split
    group_by: str | None = None
    together: str | None = None
    weight: str | None = None
    read: Literal["memory", "stream"] = "memory"
    lanes: PositiveInt = 8
    window: PositiveInt = 1
    readers: Annotated[int, Field(ge=0, le=64)] = 1
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    # Of the training split alone. Answers stay those of the whole log (training/fit/negative_sampling.py).
    negative_sampling: NegativeSampling | None = None

    @property
    def has_test(self) -> bool:
        """True where there is a test split."""
        test = self.split.test
        is_halved = isinstance(self.split, MovingWindows) and self.split.halve_validation
        return is_halved or (bool(test.days) if isinstance(test, DayCount) else test is not None)

    @property
    def bounds(self) -> SplitConfig:
        """The splits by their values. Windows that move are resolved before (training/data/moving/windows.py)."""
        assert isinstance(self.split, SplitConfig), "windows of days are resolved before anything reads rows"
        return self.split

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        if isinstance(self.split, MovingWindows) and self.split.halve_validation and self.group_by is None:
            raise ValueError("split.halve_validation halves users: name their column as group_by")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.negative_sampling is not None and self.read == "stream":
            raise ValueError("negative_sampling samples a split that is in memory; use read: memory")
        return self


class TablesOptimizer(StrictModel):
    """The embedding tables' optimizer. All but adam run fused, inside backward. adam keeps dense gradients."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    learning_rate: PositiveFinite = 0.02


class DenseOptimizer(StrictModel):
    """The optimizer of everything that is not an embedding table."""

    kind: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFinite = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class OptimizerConfig(StrictModel):
    """Optimizers and the schedule of all: cosine falls from the learning rate to 0 over all epochs. Over
    `warm_up_steps` steps the rates rise linearly to their schedule. `clip_norm` bounds the norm of the dense part's
    gradient, and that of the gradient at the embedding row, from which all tables learn."""

    tables: TablesOptimizer = TablesOptimizer()
    dense: DenseOptimizer = DenseOptimizer()
    schedule: Literal["constant", "cosine"] = "constant"
    warm_up_steps: NonNegativeInt = 0
    clip_norm: PositiveFinite | None = None

    def rate_factor(self, step: int, total_steps: int) -> float:
        """Factor of the learning rates at a step (0-based)."""
        factor = 1.0
        if self.schedule == "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
        return factor * min(1.0, (step + 1) / self.warm_up_steps) if self.warm_up_steps else factor


Sharding = Literal["auto", "table_wise", "row_wise", "data_parallel"]


class TableConfig(StrictModel):
    """Settings of one embedding table, by default those of all."""

    sharding: Sharding | None = None
    optimizer: TablesOptimizer | None = None


class SlotsConfig(StrictModel):
    """Assignment of ids to the rows of tables with `slots`, every `interval` steps (training/step/slots.py).

    TorchRec's policies: by how often an id was seen (lfu), how lately (lru), or both (distance_lfu: its count divided
    by the intervals since it was seen)."""

    policy: Literal["distance_lfu", "lfu", "lru"] = "distance_lfu"
    interval: PositiveInt = 100


class EmbeddingsConfig(StrictModel):
    """Engine of the embedding tables, and their sharing by several processes.

    `engine: torch` is plain torch for machines where no build of fbgemm fits (one process). auto takes TorchRec where
    it runs. Tables of fused optimizers are sharded: row_wise, table_wise, or (auto) as TorchRec's planner chooses.
    Those of optimizer adam have dense gradients and a copy in every process, data_parallel. Of sharded tables the next
    batch's ids are exchanged during a step (training/step/lookup.py): `pipeline: false` exchanges a batch's own within
    it, with two batches less in memory."""

    engine: Literal["auto", "torchrec", "torch"] = "auto"
    sharding: Sharding = "auto"
    pipeline: bool = True
    slots: SlotsConfig = SlotsConfig()
    tables: dict[str, TableConfig] = Field(default_factory=dict)


def _check_sharding(whose: str, sharding: Sharding | None, optimizer: TablesOptimizer) -> None:
    if sharding == "data_parallel" and optimizer.kind != "adam":
        raise ValueError(
            f"embeddings: {whose}: data_parallel, a copy in every process, needs the dense gradients of optimizer "
            f"adam (got {optimizer.kind}); use row_wise, table_wise or auto"
        )
    if sharding in ("row_wise", "table_wise") and optimizer.kind == "adam":
        raise ValueError(
            f"embeddings: {whose}: optimizer adam has dense gradients and a copy in every process: use "
            f"data_parallel or auto (got {sharding}), or another optimizer"
        )


class EarlyStopping(StrictModel):
    """Stops after `patience` epochs without a better validation objective at any of their points."""

    patience: PositiveInt = 2


class InitFrom(StrictModel):
    """A published version, or a finished run, whose weights a run starts from (training/start/warm_start.py).

    `tolerance` is by how much an error on the validation split may be larger than the parent's, relatively, before
    export refuses the run. `rate_factor` multiplies every learning rate of the run: a quarter was better than one on
    each of five days with each of three seeds (docs/daily.md)."""

    path: Path
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    rate_factor: PositiveFinite = 0.25


class InitialWeights(StrictModel):
    """A file of weights and the file of names that maps them (training/start/foreign_weights.py)."""

    path: Path
    names: Path


class TrainingConfig(StrictModel):
    """One training run."""

    feed: Annotated[Path, Field(alias="schema")]
    # The tasks that are learned, in this order, by default all of the schema's.
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    # Chains that replace the schema's: by task the one that it is given, null for none (model/tasks/given.py).
    given: dict[str, str | None] = Field(default_factory=dict)
    # Terms of binary tasks' losses that replace the schema's: by task {focal: ..., jrc: ...}, null for none.
    losses: dict[str, LossTerms] = Field(default_factory=dict)
    data: DataConfig
    network: NetworkConfig
    output: OutputPath
    # Features fitted beforehand, by `python -m training vocabulary`. By default they are fitted on the training split.
    fitted: Path | None = None
    # Weights of another implementation to start from, mapped by name. By default they are drawn from the seed.
    initial_weights: InitialWeights | None = None
    # A path, or {path, tolerance, rate_factor}: the version of the day before, say.
    init_from: (
        Annotated[InitFrom, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)] | None
    ) = None
    optimizer: OptimizerConfig = OptimizerConfig()
    balancing: BalancingConfig = NoBalancingConfig()
    batch_size: PositiveInt = 1024
    epochs: PositiveInt = 10
    # Points of an epoch, evenly spaced, at which the validation split is answered. Any of them may be the best.
    evaluations_per_epoch: PositiveInt = 1
    early_stopping: EarlyStopping | None = EarlyStopping()
    seed: int = Field(default=0, ge=0, lt=2**32)
    # More threads than idle cores make OpenMP spin and training many times slower: raise it on a machine of your own.
    threads: PositiveInt = 1
    checkpoint_seconds: PositiveFinite = 60.0
    # The newest checkpoints that are kept beside the best one. A damaged one is skipped for the one before it.
    checkpoints_kept: PositiveInt = 2
    device: Literal["cpu", "cuda"] = "cpu"
    # Of the dense part: tf32 (GPU) rounds what is multiplied, bfloat16 computes by autocast. Weights stay float32.
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    embeddings: EmbeddingsConfig = EmbeddingsConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.init_from is not None and self.initial_weights is not None:
            raise ValueError("init_from and initial_weights both say what to start from; give one")
        if self.network.has_own_embeddings and self.balancing.kind not in ("none", "uncertainty", "famo"):
            raise ValueError(
                f"balancing: {self.balancing.kind} compares the tasks' gradients at the embeddings they share, and "
                "network.fusion.own_embeddings shares none; use kind: none, uncertainty or famo, or own_embeddings: "
                "false"
            )
        common = self.embeddings.sharding
        named = {name: table.optimizer or self.optimizer.tables for name, table in self.embeddings.tables.items()}
        if self.optimizer.dense.kind == "sgd" and "adam" in {
            one.kind for one in (self.optimizer.tables, *named.values())
        }:
            raise ValueError(
                "optimizer: tables of optimizer adam step with the dense part, which has sgd; give both one"
            )
        _check_sharding("all tables", common, self.optimizer.tables)
        for name, optimizer in named.items():
            _check_sharding(f"table '{name}'", self.embeddings.tables[name].sharding, optimizer)
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision: tf32 is a format of GPUs; with device: cpu use float32")
        return self

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] = ()) -> "TrainingConfig":
        """Read a training file with `key=value` changes applied. Raises ValueError naming the file and the key."""
        content = read_yaml(path)
        if not isinstance(content, Mapping):
            raise ValueError(f"{path}: expected a mapping of keys to values")
        tree: dict[str, Any] = dict(content)
        for change in changes:
            _apply(tree, change)
        return cls.from_mapping(tree, str(path))

    def feed_schema(self) -> FeedSchema:
        """The feed schema with the tasks that are learned and their chains. Raises ValueError naming the file, or the
        unknown task."""
        schema = FeedSchema.from_yaml(self.feed)
        key = "given"
        try:
            schema = schema.with_given(self.given)
            key = "losses"
            schema = schema.with_losses(self.losses)
            key = "tasks"
            schema = schema if self.tasks is None else schema.with_tasks(self.tasks)
        except ValueError as error:
            raise ValueError(f"{key}: {error} ({self.feed})") from None
        compared = [task.name for task in schema.tasks if task.has_base_logit]
        if compared and self.data.together is None:
            raise ValueError(
                f"{self.feed}: task '{compared[0]}' has jrc, which compares the rows of a request; name their column "
                "as data.together"
            )
        return schema

    def dump(self) -> dict[str, Any]:
        """The whole configuration, defaults included, as plain YAML and JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def _apply(tree: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ValueError(f"--set {change}: expected key=value, for example optimizer.dense.learning_rate=0.002")
    try:
        value = yaml.safe_load(text)
    # Besides its own errors PyYAML lets those of Python's conversions through (`2022-13-45`, `!!bool x`).
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"--set {change}: the value is not valid YAML ({' '.join(str(error).split())})") from None
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if part == "init_from" and isinstance(child, str):
            child = {"path": child}  # the short form: a change of another key keeps the path
        node[part] = dict(child) if isinstance(child, Mapping) else {}
        node = node[part]
    node[parts[-1]] = value
