"""The feed schema: which features a feed has, on which side of a request, and which tasks are learned.

In: a YAML file (the contract with ML engineers). Out: a validated, frozen `FeedSchema`. Every fault is a ValueError
that names the place, the rule and what to do.

A feature is on one side: `user` and `context` (once a request), `candidate` (once a candidate), or `training_only`
(read from the log in training and fixed to `serving_value` in scores: position bias stays out of them).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, StrictInt, StrictStr, StringConstraints, field_validator, model_validator

from model.strict_yaml import StrictModel, refuse_unknown_kind, unknown_key

# Names become keys in JSON and YAML, metric labels and tensor names ("<feature>.values"): no dots, blanks or quotes.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
Side = Literal["user", "context", "candidate", "training_only"]
Dtype = Literal["int64", "string"]
NumberTransform = Literal["log1p", "standardise", "quantile"]
Block = Literal["request", "candidate"]
ID_LIMITS = (-(2**63), 2**63 - 1)


# Every kind of feature says of itself whether its values are ids, which a table embeds, and whether a row has a list of
# them. Code that asks only this asks the feature. Code that handles each kind takes features.block.features_by_kind.
class _Table(StrictModel):
    """The keys by which an id or id_list feature describes its embedding table, or names another feature's."""

    has_ids: ClassVar[bool] = True

    name: Name
    dtype: Dtype | None = None
    buckets: int | None = Field(default=None, ge=1, le=2**31 - 2)
    # 2: an id is the sum of two rows, each `buckets` by a hash of its own. Two ids then seldom have both in common.
    hashes: Literal[1, 2] | None = None
    vocabulary: Literal["fitted"] | list[StrictInt] | list[StrictStr] | None = None
    min_count: int | None = Field(default=None, ge=1)
    # Rows that ids take while training runs and lose to others: model/embeddings/id_map.py, training/step/slots.py.
    slots: int | None = Field(default=None, ge=1, le=2**31 - 2)
    table: Name | None = None
    dim: int | None = Field(default=None, ge=4, le=1024)

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _ids_of_one_type(cls, value: object) -> object:
        if value is None or value == "fitted":
            return value
        if not isinstance(value, list | tuple):
            raise ValueError("a vocabulary is a list of ids, or the word fitted")
        if not any(all(isinstance(entry, dtype) for entry in value) for dtype in (int, str)):
            raise ValueError("a vocabulary holds int64 ids alone or strings alone; write quotes around strings")
        return value

    @model_validator(mode="after")
    def _one_source_of_rows(self) -> Self:
        given = [key for key in ("buckets", "vocabulary", "slots", "table") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"feature '{self.name}' needs exactly one of buckets, vocabulary, slots, table; got {given or 'none'}"
            )
        if self.table is not None:
            extra = [key for key in ("dim", "dtype", "min_count", "hashes") if getattr(self, key) is not None]
            if extra:
                raise ValueError(f"feature '{self.name}' takes {', '.join(extra)} from table '{self.table}'; remove it")
            return self
        if self.dim is None:
            raise ValueError(f"feature '{self.name}' needs dim, the width of its embedding")
        if self.dim % 4:
            raise ValueError(f"feature '{self.name}': dim must be a multiple of 4 (fused kernels), got {self.dim}")
        if self.min_count is not None and self.vocabulary != "fitted":
            raise ValueError(f"feature '{self.name}': min_count applies to `vocabulary: fitted` alone")
        if self.hashes is not None and self.buckets is None:
            raise ValueError(
                f"feature '{self.name}': hashes applies to buckets alone; a vocabulary gives ids their own"
            )
        if isinstance(self.vocabulary, list):
            self._check_vocabulary(self.vocabulary)
        return self

    def _check_vocabulary(self, vocabulary: list[int] | list[str]) -> None:
        if not vocabulary:
            raise ValueError(f"feature '{self.name}': vocabulary is empty")
        wanted: type = str if self.dtype == "string" else int
        entry: int | str
        for entry in vocabulary:
            if not isinstance(entry, wanted):
                raise ValueError(f"feature '{self.name}': dtype {self.dtype or 'int64'} does not fit {entry!r}")
            if isinstance(entry, int) and not ID_LIMITS[0] <= entry <= ID_LIMITS[1]:
                raise ValueError(f"feature '{self.name}': {entry} is not an int64")
        (entry, times) = Counter[int | str](vocabulary).most_common(1)[0]
        if times > 1:
            raise ValueError(f"feature '{self.name}': vocabulary holds {entry!r} {times} times")


class IdFeature(_Table):
    """One id per row. A missing or unknown id takes the table's OOV row."""

    is_list: ClassVar[bool] = False

    kind: Literal["id"]
    side: Side
    serving_value: int | str | None = None


class IdListFeature(_Table):
    """A list of ids per row, oldest first: the latest `max_length` are kept and pooled. A missing list is empty."""

    is_list: ClassVar[bool] = True

    kind: Literal["id_list"]
    side: Literal["user", "context", "candidate"]
    max_length: int = Field(ge=1, le=10_000)
    pooling: Literal["mean", "sum"] = "mean"


class NumberFeature(StrictModel):
    """One number per row, transformed in the order given. `missing` is the raw value that a null takes."""

    has_ids: ClassVar[bool] = False
    is_list: ClassVar[bool] = False

    name: Name
    kind: Literal["number"]
    side: Side
    transform: tuple[NumberTransform, ...] = ()
    missing: float = Field(default=0.0, allow_inf_nan=False)
    serving_value: float | None = Field(default=None, allow_inf_nan=False)

    @field_validator("transform", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if value in (None, "none"):
            return ()
        return (value,) if isinstance(value, str) else value


Feature = Annotated[
    IdFeature | IdListFeature | NumberFeature,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, ["id", "id_list", "number"], "feature's type")),
]


class _Task(StrictModel):
    """The keys of every task. `mask` is a 0/1 column that says where the label counts."""

    name: Name
    kind: str
    label: str = Field(min_length=1)
    loss_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    mask: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the numbers that the task's tower gives and that answers show: the task's own where it is one."""
        return (self.name,)


class BinaryTask(_Task):
    """A yes/no outcome. `label` is a 0/1 column.

    `positive_weight` counts the loss of a positive row that many times. Answers stay calibrated for the log as it is.
    """

    kind: Literal["binary"]
    negative_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    positive_weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)


class RegressionTask(_Task):
    """A quantity >= 0: learned on the transformed, standardised scale, answered in the label's own unit."""

    kind: Literal["regression"]
    transform: Literal["none", "log1p"] = "none"


Task = Annotated[
    BinaryTask | RegressionTask,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, ["binary", "regression"], "task's type")),
]


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table and the features that read it. Row 0 is the OOV row. `buckets` and `slots` do not count it.

    With two `hashes` the table is two halves of `half_rows` rows, each with an OOV row of its own."""

    name: str
    dim: int
    dtype: Dtype
    buckets: int | None
    vocabulary: tuple[int, ...] | tuple[str, ...] | Literal["fitted"] | None
    min_count: int
    features: tuple[str, ...]
    hashes: int = 1
    slots: int | None = None

    @property
    def half_rows(self) -> int | None:
        """Rows of each half of a table with two hashes, None for any other."""
        return self.buckets + 1 if self.hashes == 2 and self.buckets is not None else None


class FeedSchema(StrictModel):
    """One feed: its features and tasks, in the order that tensors and answers keep."""

    name: Name
    features: tuple[Feature, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Reads a schema file. Raises ValueError naming the file, the key and the rule."""
        return super().from_yaml(path)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, names in (("feature", [f.name for f in self.features]), ("task", [t.name for t in self.tasks])):
            (name, times) = Counter(names).most_common(1)[0]
            if times > 1:
                raise ValueError(f"{what} '{name}' is defined {times} times")
        if not any(feature.side == "candidate" for feature in self.features):
            raise ValueError("no feature on side candidate: every candidate would get the same score")
        if any(task.name == "score" for task in self.tasks):
            raise ValueError("a task cannot be named 'score': answers use that name for the combined score")
        dtypes = {name: table.dtype for table in self.tables for name in table.features}
        for feature in self.features:
            _check_serving_value(feature, dtypes.get(feature.name))
        labels = {task.label for task in self.tasks} | {task.mask for task in self.tasks}
        leaks = sorted(feature.name for feature in self.features if feature.name in labels)
        if leaks:
            raise ValueError(f"{', '.join(leaks)}: a label or mask column cannot be a feature (it would leak)")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, task by task: the columns of logits and answers."""
        return tuple(output for task in self.tasks for output in task.outputs)

    @property
    def output_slices(self) -> dict[str, slice]:
        """By task, its columns among the outputs."""
        slices: dict[str, slice] = {}
        end = 0
        for task in self.tasks:
            start, end = end, end + len(task.outputs)
            slices[task.name] = slice(start, end)
        return slices

    @property
    def tables(self) -> tuple[Table, ...]:
        """The embedding tables, in the order of their owners. Raises ValueError where sharing does not fit."""
        sparse = [feature for feature in self.features if not isinstance(feature, NumberFeature)]
        owners = {feature.name: feature for feature in sparse if feature.table is None}
        readers: dict[str, list[IdFeature | IdListFeature]] = {name: [] for name in owners}
        for feature in sparse:
            owner = feature.table or feature.name
            if owner not in owners:
                raise ValueError(
                    f"feature '{feature.name}': table '{owner}' must be an id or id_list feature that has its own table"
                )
            readers[owner].append(feature)
        return tuple(_table(owner, readers[name]) for name, owner in owners.items())

    def with_tasks(self, names: Sequence[str]) -> Self:
        """The same feed with some of its tasks, in the order given. Raises ValueError for one that it does not have."""
        by_name = {task.name: task for task in self.tasks}
        for name in names:
            if name not in by_name:
                raise ValueError(unknown_key(name, list(by_name), "task"))
        if len(set(names)) < len(names):
            raise ValueError("give each task once")
        return self.model_copy(update={"tasks": tuple(by_name[name] for name in names)})

    def block(self, block: Block) -> tuple[Feature, ...]:
        """The features evaluated once a request (user, context, training_only) or once a candidate."""
        return tuple(f for f in self.features if (f.side == "candidate") == (block == "candidate"))

    def asked(self, block: Block) -> tuple[Feature, ...]:
        """The features of a block that a scoring request carries: all but the training_only ones."""
        return tuple(f for f in self.block(block) if f.side != "training_only")

    def columns(self) -> tuple[str, ...]:
        """Every data column that training reads: features, labels and masks."""
        labels = [column for task in self.tasks for column in (task.label, task.mask) if column is not None]
        return tuple(dict.fromkeys([*(feature.name for feature in self.features), *labels]))


def _table(owner: IdFeature | IdListFeature, readers: list[IdFeature | IdListFeature]) -> Table:
    assert owner.dim is not None
    vocabulary = owner.vocabulary
    return Table(
        name=owner.name,
        dim=owner.dim,
        dtype=owner.dtype or "int64",
        buckets=owner.buckets,
        vocabulary=tuple(vocabulary) if isinstance(vocabulary, list) else vocabulary,  # type: ignore[arg-type]
        min_count=owner.min_count or 1,
        features=tuple(feature.name for feature in readers),
        hashes=owner.hashes or 1,
        slots=owner.slots,
    )


def _check_serving_value(feature: Feature, dtype: Dtype | None) -> None:
    if isinstance(feature, IdListFeature):
        return
    value = feature.serving_value
    if feature.side == "training_only" and value is None:
        raise ValueError(f"feature '{feature.name}' is training_only and needs serving_value, its value in all scores")
    if feature.side != "training_only" and value is not None:
        raise ValueError(f"feature '{feature.name}': serving_value applies to side training_only alone")
    if isinstance(feature, IdFeature) and value is not None:
        if not isinstance(value, str if dtype == "string" else int):
            raise ValueError(f"feature '{feature.name}': serving_value must be of dtype {dtype}, got {value!r}")
        if isinstance(value, int) and not ID_LIMITS[0] <= value <= ID_LIMITS[1]:
            raise ValueError(f"feature '{feature.name}': serving_value {value} is not an int64")
