"""A training file's data as training takes it: in memory (data.read: memory) or read as a stream (stream).

In: the training file and its feed schema. Out: what was fitted on the training split, a source of training rows, and
the validation split, which is in memory either way. Of several processes one does what all need first.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pyarrow as pa

from model.features.encoder import FeatureEncoder, FittedFeatures
from model.schema import FeedSchema
from training.config import TrainingConfig
from training.data.found import Found
from training.data.index import INDEX, index_of
from training.data.kinds.columns import columns_from_arrow
from training.data.reader import LogReader
from training.data.rows import Rows, fit_features, read_log
from training.data.source import MemorySource, Source, WholeGroups
from training.data.stream import SplitReader, StreamSource
from training.fit.chains import chains_of_labels, chains_of_report, check_chains
from training.fit.fitted_file import read_fitted
from training.fit.id_report import reports_of_columns, write_id_report
from training.fit.leaks import Times, Twins
from training.fit.negative_sampling import weigh_kept_negatives, without_dropped_negatives
from training.fit.report import data_report, refuse_constant_labels
from training.fit.tally import LabelCounts, LabelTally
from training.fit.vocabulary import fitted_of_file
from training.run.run import REPORT_JSON, Run, read_json

log = logging.getLogger(__name__)


class Splits(Protocol):
    """The data of a training file."""

    found: Found
    """Rows of the log, and those that are left out."""

    def fitted(self) -> FittedFeatures:
        """Fitted features: of the training split, or those that the training file names."""
        ...

    def report(self, run: Run) -> None:
        """Write a record of the data into a run's folder. Raises ValueError for labels without information."""
        ...

    def encoded(self, encoder: FeatureEncoder, rank: int = 0, world: int = 1) -> tuple[Source, Rows]:
        """The training split as a source for a process, and the validation split."""
        ...


def open_splits(
    config: TrainingConfig,
    schema: FeedSchema,
    first_does: Callable[[Callable[[], object]], object] = lambda what: what(),
    *,
    show: bool,
) -> Splits:
    """Open the data. Of several processes, `first_does` runs on one what the others wait for. Raises ValueError for
    faults."""
    if config.data.read == "memory":
        held = _InMemory(config, schema)
        first_does(held.found.log_counts)
        return held

    def prepare() -> None:
        streamed = _Streamed(config, schema, show=show)
        streamed.found.log_counts()
        streamed.fitted()

    first_does(prepare)
    return _Streamed(config, schema, show=show)


class _InMemory:
    def __init__(self, config: TrainingConfig, schema: FeedSchema) -> None:
        self._config, self._schema = config, schema
        self._tables, self.found = read_log(config.data, schema, ("train", "validation"))
        self._sampling = config.data.negative_sampling
        labels = _label_counts(schema, self._tables["train"])
        check_chains(schema, chains_of_labels(labels))
        if self._sampling is not None:
            self._tables["train"] = without_dropped_negatives(self._tables["train"], schema, self._sampling)
            labels = _label_counts(schema, self._tables["train"])
        refuse_constant_labels(schema, labels)
        self._columns = {split: columns_from_arrow(schema, table) for split, table in self._tables.items()}

    def fitted(self) -> FittedFeatures:
        if self._config.fitted is not None:
            return read_fitted(self._config.fitted, self._schema)
        return fit_features(self._schema, self._tables["train"], self._columns["train"])

    def report(self, run: Run) -> None:
        train, validation = self._columns["train"], self._columns["validation"]
        for warning in self._leaks():
            log.warning("%s", warning)
        write_id_report(run.path, reports_of_columns(self._schema, run.fitted, train, validation))

    def _leaks(self) -> list[str]:
        column = self._config.data.bounds.column
        times, twins = Times(column), Twins(self._schema)
        for split, table in self._tables.items():
            times.add(split, table.column(column))
        twins.add(self._tables["train"], self._columns["train"])
        return [*times.warnings(), *twins.warnings()]

    def encoded(self, encoder: FeatureEncoder, rank: int = 0, world: int = 1) -> tuple[Source, Rows]:
        config = self._config
        rows = {
            split: Rows.encode(
                self._schema,
                encoder,
                table,
                self._columns[split],
                as_served=False,
                weight=config.data.weight if split == "train" else None,
                together=config.data.together if split == "train" else None,
            )
            for split, table in self._tables.items()
        }
        if self._sampling is not None:
            weigh_kept_negatives(rows["train"], self._schema, self._sampling)
        kind = MemorySource if config.data.together is None else WholeGroups
        source = kind(rows["train"], config.batch_size, config.seed, rank=rank, world=world)
        if isinstance(source, WholeGroups) and rank == 0:
            log.info("data.together: %s", source.described())
        return source, rows["validation"]


def _label_counts(schema: FeedSchema, table: pa.Table) -> dict[str, LabelCounts]:
    labels = LabelTally(schema)
    labels.add(table, np.zeros(table.num_rows, np.int64))
    return labels.counts([0])


class _Streamed:
    def __init__(self, config: TrainingConfig, schema: FeedSchema, *, show: bool) -> None:
        self._config, self._schema, self._show = config, schema, show
        self._reader = LogReader(config.data, schema)
        self._index = index_of(self._reader, config.output / INDEX)
        self.found = self._index.found(self._reader.files, config.data.group_by)

    def fitted(self) -> FittedFeatures:
        return fitted_of_file(self._config, self._schema, self._index.content(), show=self._show)

    def report(self, run: Run) -> None:
        kept = run.path / REPORT_JSON
        content = read_json(kept) if kept.exists() else {}
        given = {task.name: task.given for task in self._schema.tasks}
        if (content.get("content"), content.get("given")) != (self._index.content(), given):
            report = data_report(self._reader, self._index, run.fitted, show=self._show)
            report.log_warnings()
            log.info("%s", report.write(run.path))
            content = report.content
        check_chains(self._schema, chains_of_report(content))

    def encoded(self, encoder: FeatureEncoder, rank: int = 0, world: int = 1) -> tuple[Source, Rows]:
        config = self._config
        source = StreamSource(
            self._reader, self._index, encoder, config.batch_size, config.seed, rank=rank, world=world
        )
        validation = SplitReader(self._reader, self._index, encoder, "validation").whole()
        log.info("validation: %s rows, %.0f MiB in memory", f"{len(validation):,}", validation.num_bytes / 2**20)
        return source, validation
