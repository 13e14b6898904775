"""The join as one relational expression (Ibis), which each engine compiles to its own SQL.

In: tables of staged requests, candidates and events (training/join/staging.py): requests and candidates up to the hour
that is joined, `later_requests` and `later_candidates` of the hours after it, and `hour_requests` and
`hour_candidates`, those of the hour itself. Out, in three steps, of which the first is kept
as a table: `resolved` (events with the impression that each belongs to), `rows` (the impressions of the hour with their
labels) and `counts` (events by class and hours). No hour stands in it, so it is compiled once for all.

An event belongs to the latest impression of its request id and candidate id at or before its time + skew. A request id
that comes once, as nearly all do, is joined by equality. Of one that comes again each impression covers the interval up
to the next. Within an impression, events of one identity are one, the last by receipt.
"""

from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import ibis
import pyarrow as pa

from model.join_file import SHOWN, Label
from training.join.plan import HOUR, Plan
from training.join.staging import staged_schemas

Table = Any
# Classes of events that have an impression.
MATCHED, DOUBLED, LATE, OUT_OF_WINDOW, AMBIGUOUS = "matched", "doubled", "late", "out_of_window", "ambiguous"
# Of those that are looked for, and of those that are not.
IN, NO_IDENTITY, OTHER_TYPE, WRONG_VALUE = "in", "no_identity", "other_type", "wrong_value"
ALONE = (IN, NO_IDENTITY, OTHER_TYPE, WRONG_VALUE)
# Of the tables of the hour that is joined, and of those of the hours after it.
HOUR_PREFIX, LATER_PREFIX = "hour_", "later_"
RESOLVED = "resolved"
_IBIS_NAMES = {
    pa.int64(): "int64",
    pa.float64(): "float64",
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.decimal128(38, 9): "decimal(38, 9)",
}


@dataclass(frozen=True)
class Expression:
    """The expression of a plan. Of hours that are joined again, `anew` from first to last, no event is late."""

    plan: Plan
    anew: tuple[int, int] | None = None

    def inputs(self) -> dict[str, Any]:
        """The columns of each table of staged lines that the steps read, as a schema of Ibis."""
        found = {kind: _staged(self.plan, kind).schema() for kind in staged_schemas(self.plan)}
        for prefix in (HOUR_PREFIX, LATER_PREFIX):
            found |= {prefix + kind: _staged(self.plan, kind).schema() for kind in ("requests", "candidates")}
        return found

    def resolved(self) -> Table:
        """Events that can belong to an impression of the hour or one before it, each with its class."""
        plan = self.plan
        candidates = _staged(plan, "candidates").select("_r", "_c", "_candidate_id", "_position", "_repeats")
        events = _staged(plan, "events").rename(_event_hour="_hour", _event_time="_time")
        events = events.filter(events["_type"].isin(sorted(plan.file.event_types)), ~_has_no_identity(plan, events))
        events = events.filter(~events["_is_wrong"])
        events = events.mutate(_latest=events["_event_time"] + plan.skew)
        pairs = _of_single(plan, events).union(_of_repeated(plan, events))
        pairs = pairs.filter(pairs["_event_time"] - pairs["_time"] <= plan.lookback)
        found = pairs.join(
            candidates,
            [pairs["_r"] == candidates["_r"], pairs["_candidate_id"] == candidates["_candidate_id"]],
            rname="{name}_right",
        )
        found = found.filter(~found["_repeats"] | (found["_place"] == found["_position"]))
        repeated = candidates.filter(candidates["_repeats"]).select("_r", "_candidate_id").distinct()
        ambiguous = pairs.semi_join(repeated, ["_r", "_candidate_id"]).anti_join(found, "_e")
        classed = _with_class(plan, found, self.anew)
        kept = [name for name in classed.columns if name in _RESOLVED_COLUMNS]
        return classed.select(kept).union(
            ambiguous.mutate(
                _class=ibis.literal(AMBIGUOUS),
                _c=ibis.null("int64"),
                _number=ibis.null("int64"),
            ).select(kept)
        )

    def rows(self) -> Table:
        """The rows of the hour, in their order, with whether each was shown and named by an event."""
        plan = self.plan
        resolved = self._kept()
        mine = resolved.filter(resolved["_class"] == MATCHED)
        labels = {column: _label(plan, column, label, mine) for column, label in plan.file.labels.items()}
        present = {f"_has_{column}": _is_of(label, mine).any() for column, label in plan.file.labels.items()}
        is_shown = mine["_type"] == SHOWN
        place = mine["_place"].argmin(mine["_number"], where=is_shown & mine["_place"].notnull())
        by_candidate = mine.group_by("_r", "_c").agg(
            _is_shown=is_shown.any(), _is_named=(~is_shown).any(), _shown_place=place, **labels, **present
        )
        candidates = _staged(plan, "candidates", HOUR_PREFIX).drop("_hour")
        requests = _staged(plan, "requests", HOUR_PREFIX)
        how = "inner" if plan.file.rows == "shown" else "left"
        joined = candidates.join(by_candidate, ["_r", "_c"], how=how, rname="{name}_labels")
        joined = joined.join(requests, "_r", rname="{name}_request")
        columns = {name: joined[name] for name in plan.columns.names if name in joined.columns}
        for column, label in plan.file.labels.items():
            if label.missing is not None:
                missing = ibis.literal(label.missing).cast(_ibis_type(plan, column))
                columns[column] = joined[column].fill_null(missing)
        for mask, of_labels in plan.masks.items():
            nullable = [column for column in of_labels if plan.file.labels[column].missing is None]
            is_observed = [joined[f"_has_{column}"].fill_null(False) for column in nullable]
            columns[mask] = reduce(and_, is_observed, ibis.literal(True)).cast("int8")
        for name in plan.file.features:
            shown = joined["_shown_place"].fill_null(joined["_position"])
            columns[name] = shown.cast("float64") if plan.columns.field(name).type == pa.float64() else shown
        flags = {"_is_shown": joined["_is_shown"].fill_null(False), "_is_named": joined["_is_named"].fill_null(False)}
        # The order: by content, so that it does not follow from the order in which lines were read.
        order = [joined["_time"], joined["_request_id"], joined["_tie"], joined["_r"], joined["_c"]]
        return joined.order_by(order).select(**{name: columns[name] for name in plan.columns.names}, **flags)

    def counts(self) -> Table:
        """Events by the last hour in which their impression can lie, by hour of receipt and by class. Every event is in
        a class of ALONE, and in a second one where it has an impression."""
        plan = self.plan
        events = _staged(plan, "events").rename(_event_hour="_hour")
        is_other = ~events["_type"].isin(sorted(plan.file.event_types))
        has_none = _has_no_identity(plan, events)
        alone = ibis.cases(
            (is_other, OTHER_TYPE), (events["_is_wrong"], WRONG_VALUE), (has_none, NO_IDENTITY), else_=IN
        )
        resolved = self._kept()
        return _counted(events, alone).union(_counted(resolved, resolved["_class"]))

    def _kept(self) -> Table:
        """The kept table of the first step."""
        return ibis.table(self.resolved().schema(), name=RESOLVED)


_RESOLVED_COLUMNS = (
    "_r", "_c", "_hour", "_event_hour", "_received", "_type", "_place", "_value", "_amount", "_number", "_class",
)  # fmt: skip


def _counted(events: Table, event_class: Any) -> Table:
    hour = (events["_received"] - events["_received"] % HOUR).cast("int64")
    counted = events.select("_event_hour", _received_hour=hour, _class=event_class)
    return counted.group_by("_event_hour", "_received_hour", "_class").agg(_events=ibis._.count())


def _requests(plan: Plan) -> Table:
    """All requests, with how often their id comes and whether they are of a later hour."""
    columns = ("_r", "_hour", "_time", "_tie", "_request_id")
    due = _staged(plan, "requests").select(*columns, _is_later=False)
    later = _staged(plan, "requests", LATER_PREFIX).select(*columns, _is_later=True)
    return due.union(later).mutate(_times=ibis._.count().over(ibis.window(group_by="_request_id")))


def _of_single(plan: Plan, events: Table) -> Table:
    """Pairs of events with the only request of their id."""
    requests = _requests(plan)
    single = requests.filter(requests["_times"] == 1, ~requests["_is_later"])
    single = single.select("_r", "_hour", "_time", "_request_id")
    pairs = events.join(single, "_request_id", rname="{name}_request")
    return pairs.filter(pairs["_time"] <= pairs["_latest"]).select(_pair_columns(events))


def _of_repeated(plan: Plan, events: Table) -> Table:
    """Pairs of events with the latest request, of those of one id, that has their candidate."""
    due, later = (_staged(plan, "candidates", prefix).select("_r", "_candidate_id") for prefix in ("", LATER_PREFIX))
    requests = _requests(plan)
    repeated = requests.filter(requests["_times"] > 1)
    covering = due.union(later).join(repeated, "_r", rname="{name}_request")
    covering = covering.select("_r", "_hour", "_time", "_tie", "_request_id", "_candidate_id", "_is_later").distinct()
    window = ibis.window(group_by=["_request_id", "_candidate_id"], order_by=["_time", "_tie", "_r"])
    covering = covering.mutate(_next=covering["_time"].lead().over(window))
    covering = covering.filter(~covering["_is_later"])
    pairs = events.join(covering, ["_request_id", "_candidate_id"], rname="{name}_request")
    is_covered = (pairs["_time"] <= pairs["_latest"]) & (pairs["_next"].isnull() | (pairs["_latest"] < pairs["_next"]))
    return pairs.filter(is_covered).select(_pair_columns(events))


def _pair_columns(events: Table) -> list[str]:
    return [*events.columns, "_r", "_hour", "_time"]


def _with_class(plan: Plan, found: Table, anew: tuple[int, int] | None) -> Table:
    """Each event's class. `_number` orders the matched events of an impression by time, receipt and event id."""
    closes_at = found["_hour"] + plan.closes_at(0)
    is_late = (found["_received"] >= closes_at) | (found["_hour"] <= found["_joined"])
    if anew is not None:
        is_late &= ~found["_hour"].between(*anew)
    found = found.mutate(
        _class=ibis.cases(
            (found["_event_time"] - found["_time"] > plan.window, OUT_OF_WINDOW),
            (is_late, LATE),
            else_=MATCHED,
        )
    )
    has_id = found["_event_id"].notnull()
    same = ibis.window(
        group_by=[
            found["_class"],
            found["_r"],
            found["_c"],
            found["_event_id"].fill_null(""),
            ibis.ifelse(has_id, "", found["_type"]),
            ibis.ifelse(has_id, 0, found["_given"]),
        ],
        order_by=[
            found["_received"].desc(),
            found["_event_time"].desc(),
            found["_type"].desc(),
            found["_value"].desc(),
            found["_place"].fill_null(-1).desc(),
        ],
    )
    found = found.mutate(_repeat=ibis.row_number().over(same))
    found = found.mutate(
        _class=ibis.ifelse((found["_class"] == MATCHED) & (found["_repeat"] > 0), DOUBLED, found["_class"]),
    )
    in_order = ibis.window(
        group_by=[found["_class"], found["_r"], found["_c"]],
        order_by=[
            found["_event_time"],
            found["_received"],
            found["_event_id"].fill_null(""),
            found["_type"],
            found["_value"],
            found["_place"].fill_null(-1),
        ],
    )
    return found.mutate(_number=ibis.row_number().over(in_order).cast("int64"))


def _has_no_identity(plan: Plan, events: Table) -> Any:
    return events["_type"].isin(sorted(plan.file.adding_types)) & events["_event_id"].isnull()


def _is_of(label: Label, events: Table) -> Any:
    """The events that decide a label."""
    is_mine = events["_type"] == label.event
    return is_mine if label.undone_by is None else is_mine | (events["_type"] == label.undone_by)


def _label(plan: Plan, column: str, label: Label, events: Table) -> Any:
    """The aggregate of an impression's events that is its label, null where there is none of them."""
    is_mine = _is_of(label, events)
    if label.undone_by is not None:
        last = events["_type"].argmax(events["_number"], where=is_mine)
        return (last == label.event).cast("int64")
    if label.value is None:
        return ibis.ifelse(is_mine.any(), 1, ibis.null("int64"))
    if label.value == "count":
        return events.count(where=is_mine).nullif(0)
    if label.value == "sum":  # decimals, so that their order changes nothing
        return events["_amount"].sum(where=is_mine)
    if label.value == "max":
        return events["_value"].max(where=is_mine).cast(_ibis_type(plan, column))
    pick = events["_value"].argmin if label.value == "first" else events["_value"].argmax
    return pick(events["_number"], where=is_mine).cast(_ibis_type(plan, column))


def _ibis_type(plan: Plan, column: str) -> str:
    if plan.file.labels[column].value == "sum":
        return "decimal(38, 9)"
    return "int64" if plan.label_type(column) == pa.int64() else "float64"


def _staged(plan: Plan, kind: str, prefix: str = "") -> Table:
    columns = {field.name: _ibis_name(field.type) for field in staged_schemas(plan)[kind]}
    return ibis.table(columns, name=prefix + kind)


def _ibis_name(kind: pa.DataType) -> str:
    """Ibis' name of a staged column's type."""
    if pa.types.is_list(kind):
        return f"array<{_ibis_name(kind.value_type)}>"
    return _IBIS_NAMES[kind]
