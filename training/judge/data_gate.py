"""Data gate of a new day: rows, drift, label rates, lost log lines, and how the version that serves answers the day.

In: counts of the day and of the window before it (training/fit/tally.py), the sums of the serving version's answers,
and what the same were on accepted days before. Out: reasons to leave the day out, and the day's figures, as JSON, which
the next days are compared with. A figure counts as beyond its limit where its 95 % interval is: chance alone refuses no
day.

Shapes: K bins of a feature.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from model.schema import FeedSchema
from training.fit.tally import FeatureCounts, LabelCounts, PartCounts, bins_on_tenths
from training.judge.day_figures import AnswerFigures, OutputFigures, TaskFigures
from training.judge.settings import DataGate
from training.judge.shift import (
    Estimate,
    elasticity_of_labels,
    follows,
    follows_as_much,
    follows_less,
    is_kept,
    is_shifted,
    lift_of_choice,
    usual_of_days,
    would_follow,
)
from training.tasks import learned

# Labels of an output that the window lets expect, from which on its rate is judged.
MIN_LABELS = 100
DAYS_BEFORE = 7
# Of a normal distribution, 95 % on both sides.
SURE = 1.96
# Slope of labels over answers below which they are no taste that changed: that has slopes above 0.
_AGAINST = -0.25
# Users added to each bin, so that an empty one does not make the index infinite.
_HALF = 0.5

Figures = dict[str, Any]


class Drift(NamedTuple):
    """Population stability index, less what chance makes, and its standard error."""

    value: float
    error: float


def faults_of_day(
    schema: FeedSchema,
    day: PartCounts,
    window: PartCounts | None,
    lost: float,
    answers: AnswerFigures,
    before: Sequence[AnswerFigures],
    settings: DataGate,
    *,
    as_gated: Sequence[AnswerFigures] = (),
    rows_per_user: float = 1.0,
) -> tuple[list[str], Figures]:
    """Reasons to leave a day out, none where it is good, and its figures.

    `window` has the counts of the accepted days before it, None where there are none. `lost` is the share of the log's
    lines that were lost. `answers` are the day's `figures_of_answers` of the version that serves, empty where none
    does, and `before` those of accepted days before it, the newest last. `as_gated` are figures of these days by the
    versions of their time, and `rows_per_user` those of the day."""
    correlations = _Correlations.of(answers, as_gated)
    lifts = _lifts_lost(answers, as_gated, correlations)
    faults: list[str] = []
    figures: Figures = {"rows": day.rows, "lost": lost}
    figures["answers"] = {task: of_task.model_dump(mode="json") for task, of_task in answers.items()}
    if day.rows < settings.min_rows:
        faults.append(f"it has {day.rows:,} rows, of {settings.min_rows:,} at least")
    if lost > settings.max_lost:
        faults.append(f"{lost:.2%} of its log lines were lost, and {settings.max_lost:.2%} may be")
    if window is not None and window.rows and day.rows:
        drifts = stability_indexes(schema, day, window, rows_per_user)
        figures["psi"] = {name: drift.value for name, drift in drifts.items()}
        faults += [
            f"feature {name}: its values drifted from the window's, PSI {drift.value:.2f}, at most {settings.max_psi:g}"
            for name, drift in sorted(drifts.items(), key=lambda item: -item[1].value)
            if drift.value - SURE * drift.error > settings.max_psi
        ]
        figures["label_rate_ratio"], of_rates = _rates(schema, day, window, settings.label_rate_ratio, lifts)
        faults += of_rates
    faults += _faults_of_columns(correlations, before[-DAYS_BEFORE:])
    faults += _faults_of_answers(answers, before[-DAYS_BEFORE:], settings, lifts, correlations.shifted)
    return faults, figures


def outputs_shifted(answers: AnswerFigures, as_gated: Sequence[AnswerFigures]) -> list[str]:
    """Outputs whose labels follow a day's answers surely less than on the days before: users like other things, which
    is no fault of the day. `as_gated` are figures of these days by the versions of their time."""
    return _Correlations.of(answers, as_gated).shifted


class _Correlations(NamedTuple):
    """Correlations of answers and labels on a day, and on the days before it, by output, those without left out. `task`
    is the task of each. `shifted` follow surely less than before, `kept` surely as before."""

    of_output: dict[str, tuple[Estimate, Estimate]]
    task: dict[str, str]
    shifted: list[str]
    kept: list[str]

    @classmethod
    def of(cls, answers: AnswerFigures, as_gated: Sequence[AnswerFigures]) -> "_Correlations":
        found, task_of = {}, {}
        for task, of_task in answers.items():
            for output, figures in of_task.outputs.items():
                usual = _usual(as_gated, task, output, lambda before: before.correlation)
                if figures.correlation and usual:
                    found[output], task_of[output] = (figures.correlation, usual), task
        shifted = [output for output, (own, usual) in found.items() if is_shifted(own, usual, len(found))]
        kept = [output for output, (own, usual) in found.items() if is_kept(own, usual, len(found))]
        return cls(found, task_of, shifted, kept)


def _usual(
    days: Sequence[AnswerFigures], task: str, output: str, estimate: Callable[[OutputFigures], Estimate | None]
) -> Estimate | None:
    """An output's usual estimate, by the days that have one."""
    past = [(day[task].rows, day[task].outputs.get(output)) for day in days if task in day]
    return usual_of_days(
        [(rows, found) for rows, figures in past if figures is not None and (found := estimate(figures))]
    )


def _faults_of_columns(correlations: _Correlations, before: Sequence[AnswerFigures]) -> list[str]:
    """Outputs whose labels no longer follow the answers, while those of others surely do as before.

    Users who like other things leave a trace of the old taste in labels that depend on it. Where any follow less, and
    follow still, tastes have changed. Labels that followed the answers of earlier versions alone say nothing: the one
    that serves may have learned less of them."""
    asked = len(correlations.of_output)
    shifted = {output: correlations.of_output[output] for output in correlations.shifted}
    if not correlations.kept or any(follows(own, asked) for own, _ in shifted.values()):
        return []
    faults = []
    for output, (own, usual) in shifted.items():
        by_it = _usual(before, correlations.task[output], output, lambda figures: figures.slope)
        if by_it and follows(by_it, asked) and would_follow(own, usual, asked):
            faults.append(
                f"{output}: its labels no longer follow the serving version's answers (correlation {own[0]:.2f}, and "
                f"{usual[0]:.2f} on the days before), while those of {', '.join(correlations.kept)} do; are some "
                "inverted, or another row's?"
            )
    return faults


def _lifts_lost(
    answers: AnswerFigures, as_gated: Sequence[AnswerFigures], correlations: _Correlations
) -> dict[str, float]:
    """Factors by which labels may have fallen on a shifted day, since the version no longer finds what users like.

    An output whose labels may have been lost on the way has none. The day is asked as a whole: a rare output, of too
    few labels to tell that they follow as before or less, is taken for one of those that surely follow less. So is one
    that follows less, where its elasticity may be that of lost labels and another output's surely is not."""
    if not correlations.shifted:
        return {}
    elasticities = {
        output: (today, usual)
        for output, task in correlations.task.items()
        if (usual := _usual(as_gated, task, output, _elasticity))
        and (today := _elasticity(answers[task].outputs[output]))
    }
    less = {output for output, (own, usual) in elasticities.items() if follows_less(own, usual)}
    untold = {output for output, (own, usual) in elasticities.items() if not follows_as_much(own, usual)} - less
    lifted = less | untold if less else less
    return {
        output: lift_of_choice(answers[task].outputs[output].variation)
        for output, task in correlations.task.items()
        if (output in lifted if output in correlations.shifted else output not in correlations.kept)
    }


def _elasticity(figures: OutputFigures) -> Estimate | None:
    if figures.slope is None or not (figures.answers > 0 and figures.labels > 0):
        return None
    return elasticity_of_labels(figures.slope, figures.answers, figures.labels, figures.error)


def stability_indexes(
    schema: FeedSchema, day: PartCounts, window: PartCounts, rows_per_user: float = 1.0
) -> dict[str, Drift]:
    """Population stability index of every feature's values, missing ones being one of them, less what chance makes of
    so many users. Over tenths of the window for a number, over hash bins for ids.

    Rows of one user may be all alike, so they count as one: few active users make no drift."""
    return {
        feature.name: _index(
            day.features[feature.name],
            window.features[feature.name],
            is_number=not feature.has_ids,
            rows_per_user=rows_per_user,
        )
        for feature in schema.features
    }


def _faults_of_answers(
    answers: AnswerFigures,
    before: Sequence[AnswerFigures],
    settings: DataGate,
    lifts: Mapping[str, float],
    shifted: Sequence[str],
) -> list[str]:
    faults: list[str] = []
    following = _tasks_that_follow(answers, shifted)
    for task, own in answers.items():
        past = [day[task] for day in before if task in day]
        constant, loss = sum(day.constant_loss for day in past), sum(day.loss for day in past)
        if constant > 0 and loss > 0 and own.constant_loss > 0 and own.loss > 0:
            error, usual = own.loss / own.constant_loss, loss / constant
            limit = _error_limit(own, past, settings.champion_ne_ratio, is_followed=task in following)
            if math.log(error / limit) - SURE * own.error > 0:
                faults.append(
                    f"task {task}: the serving version's NE is {error:.3f}, and {usual:.3f} on the days before; "
                    f"at most {limit:.3f} may be"
                )
        for output, of_output in own.outputs.items():
            days = [day.outputs[output] for day in past if output in day.outputs]
            low, high = settings.champion_calibration
            faults += _faults_of_output(output, of_output, days, (low, high * lifts.get(output, 1.0)))
    return faults


def _error_limit(own: TaskFigures, past: Sequence[TaskFigures], ratio: float, *, is_followed: bool) -> float:
    """Largest NE that a day may have.

    Answers that explain a part of the constant's loss cost as much again once labels say nothing of them: their own
    spread is added to the labels'. Users who like other things make no larger loss. It is let through where labels
    follow the answers still, for the next version has to learn it."""
    loss, constant = sum(day.loss for day in past), sum(day.constant_loss for day in past)
    usual = loss / constant
    if not is_followed:
        return ratio * usual
    explained = max(0.0, constant - loss) / sum(day.rows for day in past)
    return ratio * max(usual * ratio, 1 + explained / (own.constant_loss / own.rows))


def _tasks_that_follow(answers: AnswerFigures, shifted: Sequence[str]) -> list[str]:
    """Tasks whose labels rise with the answers still: what users like has changed, and not what labels are.

    The day is asked as a whole, for labels of other rows rise with no answer. Those of a rare task are too few to tell
    alone. Where it is shifted, others that surely rise say that answers and labels are of the same rows."""
    slopes = {
        task: [output.slope for output in own.outputs.values() if output.slope is not None]
        for task, own in answers.items()
    }
    asked = sum(len(of_task) for of_task in slopes.values())
    if not any(follows(slope, asked) for of_task in slopes.values() for slope in of_task):
        return []
    return [
        task
        for task, of_task in slopes.items()
        if any(slope - SURE * error > 0 for slope, error in of_task)
        or any(output in shifted for output in answers[task].outputs)
    ]


def _faults_of_output(
    output: str, own: OutputFigures, past: Sequence[OutputFigures], bounds: tuple[float, float]
) -> list[str]:
    if own.slope is not None and own.slope[0] + SURE * own.slope[1] < _AGAINST:
        return [
            f"{output}: labels go against the serving version's answers (slope {own.slope[0]:.2f}); are they inverted, "
            "or another column's?"
        ]
    labels, answers = sum(day.labels for day in past), sum(day.answers for day in past)
    if not (labels > 0 and answers > 0 and own.labels > 0 and own.answers > 0):
        return []
    ratio, usual, margin = own.answers / own.labels, answers / labels, math.exp(SURE * own.error)
    if bounds[0] <= ratio / usual * margin and ratio / usual / margin <= bounds[1]:
        return []
    return [
        f"{output}: the serving version's calibration is {ratio:.2f}, and {usual:.2f} on the days before; between "
        f"{bounds[0]:g} and {bounds[1]:.3g} times as much may be"
    ]


def _rates(
    schema: FeedSchema,
    day: PartCounts,
    window: PartCounts,
    bounds: tuple[float, float],
    lifts: Mapping[str, float],
) -> tuple[dict[str, float | None], list[str]]:
    ratios: dict[str, float | None] = {}
    faults: list[str] = []
    for task in schema.tasks:
        own, reference = day.labels[task.name], window.labels[task.name]
        is_quantity = learned(task).num_classes is None
        for output, total, before in zip(task.outputs, own.totals, reference.totals, strict=True):
            ratio = ratios[output] = _rate_ratio(own, total, reference, before, is_quantity=is_quantity)
            low, high = bounds[0] / lifts.get(output, 1.0), bounds[1]
            if ratio is not None and not low <= ratio <= high:
                faults.append(
                    f"{output}: its labels' mean is {ratio:.2f} times the window's, between {low:.2g} and "
                    f"{high:g} may be"
                )
    return ratios, faults


def _rate_ratio(
    own: LabelCounts, total: float, reference: LabelCounts, before: float, *, is_quantity: bool
) -> float | None:
    """Rate of a day over the window's. None where the window has none, or lets expect too few labels to tell."""
    if not (own.observed and reference.observed and before > 0):
        return None
    rate = before / reference.observed
    if not is_quantity and rate * own.observed < MIN_LABELS:
        return None
    return total / own.observed / rate


def _index(day: FeatureCounts, window: FeatureCounts, *, is_number: bool, rows_per_user: float) -> Drift:
    pairs = bins_on_tenths(day, window) if is_number else (day.bins_K.astype(float), window.bins_K.astype(float))
    own, reference = (np.append(bins_K, of_part.missing) for bins_K, of_part in zip(pairs, (day, window), strict=True))
    is_used = (own + reference) > 0
    own, reference = own[is_used], reference[is_used]
    if not own.sum() or not reference.sum():
        return Drift(0.0, 0.0)
    half = _HALF * rows_per_user
    p, q = ((bins + half) / (bins + half).sum() for bins in (own, reference))
    # Over what is drawn independently the index is a chi-squared variable, not central where distributions differ.
    freedom, scale = len(own) - 1, rows_per_user * (1 / own.sum() + 1 / reference.sum())
    index = max(0.0, float(np.sum((p - q) * np.log(p / q)) - freedom * scale))
    return Drift(index, float(scale * np.sqrt(2 * (freedom + 2 * index / scale))))
