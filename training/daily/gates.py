"""Gates of a cycle: a new day against the days before it, and a challenger against the versions that were stable.

In: rows of the data, and the versions that answer them as a service would. Out: reasons to refuse, and figures. The
rules are those of training/judge, this module brings them rows and answers.

Shapes: B rows of a day, O outputs.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.rollout.decisions import ACCEPT, SHIFTED, Decisions
from model.scorer.scorer import Scorer
from training.config import DataConfig
from training.daily.cycle_file import Cycle
from training.daily.joining import lost_share
from training.daily.serving import Champion
from training.data.index import index_of
from training.data.kinds.columns import columns_from_arrow
from training.data.moving.days import DAY, days_from
from training.data.moving.windows import resolved
from training.data.reader import LogReader
from training.data.rows import read_splits
from training.fit.partitions import count_log
from training.fit.tally import PartCounts, Tally
from training.judge.answers import Answered, answers_of, sums_of_answers
from training.judge.data_gate import DAYS_BEFORE, faults_of_day, outputs_shifted
from training.judge.day_figures import AnswerFigures, figures_of_answers, read_figures
from training.judge.joined import VERSION
from training.judge.quality_gate import GateVerdict, quality_gate
from training.run.run import Run
from training.split_config import DayCount
from training.tasks.learned import Floats

log = logging.getLogger(__name__)

ANSWERS = "answers"
CHAMPION = "champion"


def day_faults(
    cycle: Cycle, day: date, accepted: Sequence[date], champion: Champion | None, decisions: Decisions
) -> tuple[list[str], dict[str, Any]]:
    """Reasons to leave a day with rows out, and its figures. `accepted` are the days before it that are in windows.
    Rows and answers are compared with those on the days since users began to like what they like now."""
    schema = cycle.training.feed_schema()
    table = _rows_of(cycle, day, _day_columns(cycle, champion))
    answers: AnswerFigures = {}
    before: list[AnswerFigures] = []
    since = decisions.shifted_before(day)
    alike = [past for past in accepted if since is None or past >= since]
    own, window = _counts(cycle, day, alike, table)
    comparable = alike[-DAYS_BEFORE:]
    if champion is not None:
        answers = _figures(cycle, champion, day, table)
        before = [figures_of_day(cycle, champion, past, decisions) for past in comparable]
    lost = lost_share(cycle, day)
    rules = cycle.file.data_gate
    rows_per_user = _rows_per_user(table, cycle.training.data.group_by)
    as_gated = [answered for past in comparable if (answered := _as_gated(past, decisions))]
    faults, figures = faults_of_day(
        schema, own, window, lost, answers, before, rules, as_gated=as_gated, rows_per_user=rows_per_user
    )
    return faults, {**figures, SHIFTED: outputs_shifted(answers, as_gated)}


def versions_of(champion: Champion | None) -> dict[str, str]:
    """Version that answered a day as the journal names it, with its calibration where one was fitted later."""
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


def _figures(cycle: Cycle, champion: Champion, day: date, table: pa.Table) -> AnswerFigures:
    answers_BO = answers_of(champion.scorer, table)
    answered = _sums(cycle, champion.scorer, table, answers_BO)
    if champion.last_trained is not None and day <= champion.last_trained:
        return figures_of_answers(answered.sums, answered.kinds)
    if cycle.join is not None:
        is_own = pc.fill_null(pc.equal(table.column(VERSION), str(champion.version)), False)
        chosen = _sums(cycle, champion.scorer, table.filter(is_own), answers_BO[np.asarray(is_own)])
        return figures_of_answers(answered.sums, answered.kinds, chosen.sums)
    return figures_of_answers(answered.sums, answered.kinds, answered.sums)


def _sums(cycle: Cycle, scorer: Scorer, table: pa.Table, answers_BO: Floats) -> Answered:
    data, scales = cycle.training.data, scorer.encoder.fitted.targets
    return sums_of_answers(scorer.schema, scales, table, answers_BO, group_by=data.group_by, weight=data.weight)


def figures_of_day(cycle: Cycle, champion: Champion, day: date, decisions: Decisions) -> AnswerFigures:
    """Figures of a version's answers on an accepted day: those that the journal has of it, or made now."""
    entry = decisions.gates.get(day)
    if entry is not None and dict(entry.versions) == versions_of(champion) and (known := _as_gated(day, decisions)):
        return known
    return _figures(cycle, champion, day, _rows_of(cycle, day, _day_columns(cycle, champion)))


def _as_gated(day: date, decisions: Decisions) -> AnswerFigures:
    """Figures of an accepted day by the version that served when it was new. None where the journal has none."""
    entry = decisions.gates.get(day)
    answers = entry.figures.get(ANSWERS) if entry is not None and entry.decision == ACCEPT else None
    return read_figures(answers, f"the journal's entry on {day}") if answers else {}


def _day_columns(cycle: Cycle, champion: Champion | None) -> tuple[str, ...]:
    """Columns that a version is measured by on a day: its own, and of joined rows which version chose them."""
    own = _columns([] if champion is None else [champion.scorer])
    return own if cycle.join is None else (*own, VERSION)


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
