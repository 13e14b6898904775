"""The feed schema: which features a feed has, on which side of a request, and which tasks are learned.

In: a YAML file (the contract with ML engineers). Out: a validated, frozen `FeedSchema`. Every fault is a ValueError
that names the place, the rule and what to do.

A feature is on one side: `user` and `context` (once a request), `candidate` (once a candidate), or `training_only`
(read from the log in training and fixed to `serving_value` in scores: position bias stays out of them).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from model.features.kinds import Feature
from model.features.kinds.columns import Dtype
from model.features.kinds.embedded import Attended, AttentionKind, EmbeddedFeature
from model.strict_yaml import Name, StrictModel, unknown_key
from model.tasks import Task
from model.tasks.binary import LossTerms
from model.tasks.given import given_places

Block = Literal["request", "candidate"]


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


@dataclass(frozen=True, slots=True)
class Attention:
    """A list with attention: the candidate's id `query` is compared with its ids, by rows of one table."""

    name: str
    query: str
    table: str
    dim: int
    max_length: int
    kind: AttentionKind


class FeedSchema(StrictModel):
    """One feed: its features and tasks, in the order that tensors and answers keep."""

    name: Name
    features: tuple[Feature, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a schema file. Raises ValueError naming the file, the key and the rule."""
        return super().from_yaml(path)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, names in (("feature", [f.name for f in self.features]), ("task", [t.name for t in self.tasks])):
            (name, times) = Counter(names).most_common(1)[0]
            if times > 1:
                raise ValueError(f"{what} '{name}' is defined {times} times")
        if not any(feature.side == "candidate" for feature in self.features):
            raise ValueError("no feature on side candidate: every candidate would get the same score")
        for name, use in (("score", "the combined score"), ("place", "a candidate's place in the order")):
            if any(task.name == name for task in self.tasks):
                raise ValueError(f"a task cannot be named '{name}': answers use that name for {use}")
        dtypes = {name: table.dtype for table in self.tables for name in table.features}
        for feature in self.features:
            feature.check_serving_value(dtypes.get(feature.name))
        _ = self.attentions  # raises for a list without a query
        labels = {task.label for task in self.tasks} | {task.mask for task in self.tasks}
        leaks = sorted(feature.name for feature in self.features if feature.name in labels)
        if leaks:
            raise ValueError(f"{', '.join(leaks)}: a label or mask column cannot be a feature (it would leak)")
        given_places(self.tasks)
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, task by task: the columns of logits and answers."""
        return tuple(output for task in self.tasks for output in task.outputs)

    @property
    def output_counts(self) -> tuple[int, ...]:
        """Number of outputs by task."""
        return tuple(len(task.outputs) for task in self.tasks)

    @property
    def given(self) -> tuple[int | None, ...]:
        """Place of the task that each task is given, None where it is given none (model/tasks/given.py)."""
        return given_places(self.tasks)

    @property
    def base_logits(self) -> tuple[bool, ...]:
        """By task, whether its tower has a base logit while it is trained."""
        return tuple(task.has_base_logit for task in self.tasks)

    @property
    def output_slices(self) -> dict[str, slice]:
        """Columns among the outputs, by task."""
        slices: dict[str, slice] = {}
        end = 0
        for task in self.tasks:
            start, end = end, end + len(task.outputs)
            slices[task.name] = slice(start, end)
        return slices

    @property
    def tables(self) -> tuple[Table, ...]:
        """The embedding tables, in the order of their owners. Raises ValueError where sharing does not fit."""
        sparse = [feature for feature in self.features if isinstance(feature, EmbeddedFeature)]
        owners = {feature.name: feature for feature in sparse if feature.table is None}
        readers: dict[str, list[EmbeddedFeature]] = {name: [] for name in owners}
        for feature in sparse:
            owner = feature.table or feature.name
            if owner not in owners:
                raise ValueError(
                    f"feature '{feature.name}': table '{owner}' must be an id or id_list feature that has its own table"
                )
            readers[owner].append(feature)
        return tuple(_table(owner, readers[name]) for name, owner in owners.items())

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The lists with attention, in the order of their columns. Raises ValueError where a query does not fit."""
        tables = {name: table for table in self.tables for name in table.features}
        attended = [(one, one.attended) for one in self.features if isinstance(one, EmbeddedFeature)]
        return tuple(
            Attention(
                feature.name,
                self._query(feature.name, how, tables),
                tables[feature.name].name,
                tables[feature.name].dim,
                how.max_length,
                how.kind,
            )
            for feature, how in attended
            if how is not None
        )

    def _query(self, name: str, how: Attended, tables: Mapping[str, Table]) -> str:
        """The candidate's id that a list with attention is compared with."""
        table = tables[name].name
        of_candidate = [one for one in self.features if one.side == "candidate" and not one.is_list]
        readers = [one.name for one in of_candidate if one.has_ids and tables[one.name].name == table]
        if how.query in readers or (how.query is None and len(readers) == 1):
            return how.query or readers[0]
        rule = f"feature '{name}': attention needs an id of the candidate that reads table '{table}'"
        if not readers:
            raise ValueError(f"{rule}, and none does; give such an id `table: {table}`, or the list another table")
        named = f"got query '{how.query}'" if how.query is not None else "several do"
        raise ValueError(f"{rule}; {named}: name one of {', '.join(readers)} as query")

    def with_tasks(self, names: Sequence[str]) -> Self:
        """The same feed with some of its tasks, in the order given. Raises ValueError for one that it does not have."""
        by_name = {task.name: task for task in self.tasks}
        for name in names:
            if name not in by_name:
                raise ValueError(unknown_key(name, list(by_name), "task"))
        if len(set(names)) < len(names):
            raise ValueError("give each task once")
        for task in (by_name[name] for name in names):
            if task.given is not None and task.given not in names:
                raise ValueError(
                    f"'{task.name}' is given '{task.given}', which is not among them; add it, or remove given"
                )
        return self.model_copy(update={"tasks": tuple(by_name[name] for name in names)})

    def with_given(self, given: Mapping[str, str | None]) -> Self:
        """The same feed with other chains: by task the one that it is given, None for none. Raises ValueError."""
        names = [task.name for task in self.tasks]
        for name in given:
            if name not in names:
                raise ValueError(unknown_key(name, names, "task"))
        tasks = tuple(task.model_copy(update={"given": given.get(task.name, task.given)}) for task in self.tasks)
        given_places(tasks)
        return self.model_copy(update={"tasks": tasks})

    def with_losses(self, losses: Mapping[str, LossTerms]) -> Self:
        """The same feed with other terms of tasks' losses. Raises ValueError for a task that has none or is unknown."""
        names = [task.name for task in self.tasks]
        for name in losses:
            if name not in names:
                raise ValueError(unknown_key(name, names, "task"))
        tasks = []
        for task in self.tasks:
            terms = losses.get(task.name, LossTerms())
            changed = task.model_dump() | {name: getattr(terms, name) for name in terms.model_fields_set}
            tasks.append(type(task).from_mapping(changed, task.name) if terms.model_fields_set else task)
        return self.model_copy(update={"tasks": tuple(tasks)})

    def block(self, block: Block) -> tuple[Feature, ...]:
        """The features evaluated once a request (user, context, training_only) or once a candidate."""
        return tuple(f for f in self.features if (f.side == "candidate") == (block == "candidate"))

    def requested(self, block: Block) -> tuple[Feature, ...]:
        """The features of a block that a scoring request carries: all but the training_only ones."""
        return tuple(f for f in self.block(block) if f.side != "training_only")

    def columns(self) -> tuple[str, ...]:
        """Every data column that training reads: features, labels and masks."""
        labels = [column for task in self.tasks for column in (task.label, task.mask) if column is not None]
        return tuple(dict.fromkeys([*(feature.name for feature in self.features), *labels]))


def _table(owner: EmbeddedFeature, readers: list[EmbeddedFeature]) -> Table:
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
