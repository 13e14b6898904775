"""The report of a joined folder: figures as JSON, as a page with pictures, and as metrics.

In: the folder, the feed schema, the model's name. Out: observed.json, report.html, results.md with its pictures, and
observed.prom in the output folder.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.schema import FeedSchema
from training.compare.document import Block, Heading, Image, Paragraph, Table, write_document
from training.files import refuse_within
from training.judge.joined import JoinedHours
from training.observed.effects import Effect, Pair, effects_of, outputs_of, pair_of
from training.observed.figures import Interval, Observed, Part, observe_days
from training.observed.plots import plot_days, plot_effects
from training.observed.textfile import MIN_LABELS, NAME, write_observed
from training.run.run import write_json
from training.wording import counted


def report(folder: str, schema: FeedSchema, out: Path, *, model: str, days: int) -> Path:
    """Write the report and return its page's path. Raises ValueError for a folder without joined rows."""
    refuse_within(out, folder, "joined rows")
    observed = observe_days(JoinedHours(folder), schema, days)
    if not observed.parts:
        raise ValueError(f"{folder}: no hour of its last {counted(days, 'day')} has a row")
    if not any(figures.rows for part in observed.parts for figures in part.tasks.values()):
        raise ValueError(
            f"{folder}: no row has an answer and a label of {schema.name}'s tasks ({', '.join(schema.outputs)}); "
            "--schema is the file that join.yaml names"
        )
    pair = pair_of(observed)
    effects = [] if pair is None else effects_of(folder, schema, pair)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "observed.json", _content(observed, pair, effects))
    write_observed(out / NAME, observed, model)
    title = f"What was answered and what users did: {model}"
    return write_document(out, title, list(_blocks(title, schema, observed, pair, effects)))


def _content(observed: Observed, pair: Pair | None, effects: Sequence[Effect]) -> dict[str, Any]:
    return {
        "parts": [{**asdict(part), "day": part.day.isoformat()} for part in observed.parts],
        "hours": {day.isoformat(): hours for day, hours in observed.hours.items()},
        "pair": None if pair is None else {**asdict(pair), "since": pair.since.isoformat()},
        "effects": [asdict(effect) for effect in effects],
    }


def _blocks(
    title: str, schema: FeedSchema, observed: Observed, pair: Pair | None, effects: Sequence[Effect]
) -> list[Block]:
    outputs = {output: task.name for task in schema.tasks for output in task.outputs}
    broken = [f"{day} ({hours} of 24 hours)" for day, hours in observed.hours.items() if hours < 24]
    blocks: list[Block] = [
        Heading(1, title),
        Paragraph(
            "Calibration is the sum of the answers over that of the labels: 1 is right on average. NE is the loss of "
            "the answers over that of the best constant: lower is better, and 1 is no better than a constant. Of a "
            "quantity the loss is the squared error, or a Poisson law's deviance where it is learned by log1p. "
            "Intervals are 95 %, over users. Pictures leave out "
            f"what has fewer than {MIN_LABELS} labels on a day."
        ),
        *([Paragraph(f"Days that are not whole: {', '.join(broken)}.")] if broken else []),
        Heading(2, "Calibration"),
        Image(
            "Calibration by day and version",
            plot_days(observed.parts, list(outputs), lambda part, name: _calibration(part, outputs[name], name)),
        ),
        Heading(2, "NE"),
        Image(
            "NE by day and version",
            plot_days(observed.parts, [task.name for task in schema.tasks], _error),
        ),
    ]
    if effects and pair is not None:
        users = effects[0].users
        blocks += [
            Heading(2, f"Version {pair.newer} against version {pair.older}"),
            Paragraph(
                "Labels a user by days since exposure, which is a user's first impression under one of the two since "
                f"{pair.since:%Y-%m-%d %H:%M} UTC. {users[0]:,} and {users[1]:,} users were seen for a day. Bounds "
                "hold at every look together, for each day and output alone."
            ),
            Image("Effects by days since exposure", plot_effects(effects)),
            _effects_table(effects),
        ]
    blocks.append(Heading(2, "Figures"))
    for output, task in outputs.items():
        blocks += [Heading(3, output), _figures_table(observed.parts, task, output)]
    return blocks


def _figures_table(parts: Sequence[Part], task: str, output: str) -> Table:
    has_arms = any(part.arm for part in parts)
    arm = ["arm"] if has_arms else []
    head = ["day", "version", *arm, "rows", "users", "predicted", "observed", "calibration", "NE"]
    rows = []
    for part in parts:
        figures = part.tasks[task]
        of_output = figures.outputs[output]
        rows.append(
            [
                part.day.isoformat(),
                part.version,
                *([part.arm] if has_arms else []),
                f"{figures.rows:,.0f}",
                f"{figures.users:,}",
                _number(of_output.predicted),
                _number(of_output.observed),
                _said(of_output.calibration),
                _said(figures.ne),
            ]
        )
    return Table(head, rows)


def _effects_table(effects: Sequence[Effect]) -> Table:
    names = outputs_of(effects)
    days = sorted({effect.day for effect in effects})
    found = {(effect.day, effect.output): effect for effect in effects}
    rows = []
    for day in days:
        users = found[day, names[0]].users
        cells = [_percent(found[day, name].difference) for name in names]
        rows.append([str(day), f"{users[0]:,}", f"{users[1]:,}", *cells])
    return Table(["days since exposure", "users, newer", "users, older", *names], rows)


def _calibration(part: Part, task: str, output: str) -> Interval | None:
    figures = part.tasks[task].outputs[output]
    return figures.calibration if figures.labels >= MIN_LABELS else None


def _error(part: Part, task: str) -> Interval | None:
    figures = part.tasks[task]
    return figures.ne if max(output.labels for output in figures.outputs.values()) >= MIN_LABELS else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _said(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _percent(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"
