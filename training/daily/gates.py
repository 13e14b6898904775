"""Gates of a cycle: a new day against the days before it, and a challenger against the versions that were stable.

In: rows of the data, and the versions that answer them as a service would. Out: reasons to refuse, and figures. The
rules are those of training/judge, this module brings them rows and answers.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.rollout.decisions import ACCEPT, Decisions
from model.rollout.journal import Entry
from model.scorer.scorer import Scorer
from training.config import DataConfig
from training.daily.cycle_file import Cycle
from training.daily.joining import lost_share
from training.daily.serving import Champion
from training.data.index import index_of
from training.data.moving.days import DAY, days_from
from training.data.moving.windows import resolved
from training.data.reader import LogReader
from training.data.rows import columns_from_arrow, read_splits
from training.fit.partitions import count_log
from training.fit.tally import PartCounts, Tally
from training.judge.answers import Answered, answers_of, sums_of_answers
from training.judge.data_gate import DAYS_BEFORE, AnswerFigures, faults_of_day, figures_of_answers, read_figures
from training.judge.quality_gate import GateVerdict, quality_gate
from training.run.run import Run
from training.split_config import DayCount

log = logging.getLogger(__name__)

ANSWERS = "answers"
CHAMPION = "champion"


def day_faults(
    cycle: Cycle, day: date, accepted: Sequence[date], champion: Champion | None, decisions: Decisions
) -> tuple[list[str], dict[str, Any]]:
    """Reasons to leave a day with rows out, and its figures. `accepted` are the days before it that are in windows."""
    schema = cycle.training.feed_schema()
    table = _rows_of(cycle, day, _columns([] if champion is None else [champion.scorer]))
    own, window = _counts(cycle, day, accepted, table)
    answers: AnswerFigures = {}
    before: list[AnswerFigures] = []
    if champion is not None:
        answers = _figures(cycle, champion, table)
        before = [figures_of_day(cycle, champion, past, decisions) for past in accepted[-DAYS_BEFORE:]]
    lost = lost_share(cycle, day)
    rules = cycle.file.data_gate
    rows_per_user = _rows_per_user(table, cycle.training.data.group_by)
    return faults_of_day(schema, own, window, lost, answers, before, rules, rows_per_user=rows_per_user)


def versions_of(champion: Champion | None) -> dict[str, str]:
    """What answered a day, as the journal names it: the version that serves, and its calibration where one was fitted
    after its export."""
    if champion is None:
        return {}
    generation = champion.scorer.calibration.generation
    return {CHAMPION: str(champion.version)} | ({} if generation is None else {"calibration": generation})


def gate_challenger(cycle: Cycle, run: Run, folder: Path, champions: Mapping[str, Scorer]) -> GateVerdict:
    """The quality gate of a version that is not published yet, in `folder`, on the users who took no part in it."""
    data = run.config.data
    challenger = Scorer.load(folder, "torchscript")
    table = read_splits(data, run.schema, ("test",), _columns(champions.values()))["test"]
    answered = {version: _answered(scorer, run, table) for version, scorer in {"": challenger, **champions}.items()}
    own = answered.pop("")
    return quality_gate(own.sums, {v: a.sums for v, a in answered.items()}, own.kinds, cycle.file.quality_gate)


def _rows_per_user(table: pa.Table, group_by: str | None) -> float:
    if group_by is None or not table.num_rows:
        return 1.0
    users = table.column(group_by)
    distinct = int(pc.count_distinct(users, mode="only_valid").as_py())
    return float(table.num_rows / (distinct + users.null_count))


def _answered(scorer: Scorer, run: Run, table: pa.Table) -> Answered:
    """Answers of a version by the tasks that it shares with the challenger, on the challenger's scales."""
    own = {task.name: task for task in run.schema.tasks}
    shared = [
        task
        for task in scorer.schema.tasks
        if task.name in own and (task.outputs, task.label) == (own[task.name].outputs, own[task.name].label)
    ]
    data = run.config.data
    return sums_of_answers(
        scorer.schema,
        run.fitted.targets,
        table,
        answers_of(scorer, table),
        group_by=data.group_by,
        weight=data.weight,
        tasks=shared,
    )


def _figures(cycle: Cycle, champion: Champion, table: pa.Table) -> AnswerFigures:
    data, scorer = cycle.training.data, champion.scorer
    answered = sums_of_answers(
        scorer.schema,
        scorer.encoder.fitted.targets,
        table,
        answers_of(scorer, table),
        group_by=data.group_by,
        weight=data.weight,
    )
    return figures_of_answers(answered.sums, answered.kinds)


def figures_of_day(cycle: Cycle, champion: Champion, day: date, decisions: Decisions) -> AnswerFigures:
    """Figures of a version's answers on an accepted day: those that the journal has of it, or made now."""
    entry = decisions.gates.get(day)
    if entry is not None and _is_of(entry, champion):
        return read_figures(entry.figures[ANSWERS], f"the journal's entry on {day}")
    return _figures(cycle, champion, _rows_of(cycle, day, _columns([champion.scorer])))


def _is_of(entry: Entry, champion: Champion) -> bool:
    is_own = dict(entry.versions) == versions_of(champion) and entry.decision == ACCEPT
    return is_own and bool(entry.figures.get(ANSWERS))


def _columns(scorers: Iterable[Scorer]) -> tuple[str, ...]:
    """Columns that versions read and labels that they are measured by."""
    return tuple(dict.fromkeys(name for scorer in scorers for name in scorer.schema.columns()))


def _counts(cycle: Cycle, day: date, accepted: Sequence[date], table: pa.Table) -> tuple[PartCounts, PartCounts | None]:
    """Counts of a day's rows, and of the accepted days before it, read row group by row group. None without any."""
    schema = cycle.training.feed_schema()
    if accepted:
        reader = LogReader(_data(cycle, day, accepted), schema)
        splits = count_log(reader, index_of(reader), {}, show=False).splits
        return splits["validation"], splits["train"]
    tally = Tally(schema, {}, 1)
    tally.add(table, columns_from_arrow(schema, table, is_coded=True), np.zeros(table.num_rows, np.int64))
    return tally.counts([[0]])[0], None


def _rows_of(cycle: Cycle, day: date, extra: tuple[str, ...]) -> pa.Table:
    """Rows of a day."""
    return read_splits(_data(cycle, day, []), cycle.training.feed_schema(), ("validation",), extra)["validation"]


def _data(cycle: Cycle, day: date, accepted: Sequence[date]) -> DataConfig:
    """The cycle's data with a day as the validation split, and the accepted days before it as the training split."""
    first = min(accepted, default=day - DAY)
    excluded = tuple(before for before in days_from(first, day - DAY) if accepted and before not in accepted)
    windows = cycle.windows.model_copy(
        update={"end": day, "train": DayCount(days=(day - first).days), "exclude": excluded}
    )
    return resolved(cycle.training.data.model_copy(update={"split": windows}), is_logged=False)
