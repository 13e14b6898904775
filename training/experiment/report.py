"""The report of an experiment: what to read first, the differences, and how many users a question takes.

In: the users and their analysis. Out: lines for a terminal, and in a folder experiment.json, report.html and results.md
with its pictures. Its metrics are in textfile.py.

Shapes: U users.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.compare.document import Block, Heading, Image, Paragraph, Table, write_document
from training.experiment.contrasts import RATIO_EVIDENCE, Analysis, Contrast, Interval
from training.experiment.plots import plot_contrasts, plot_days
from training.experiment.question import Question
from training.experiment.users import REQUEST_CAP, Users
from training.run.run import write_json
from training.wording import counted

_METHODS = {
    "sequence": "It has no end in its file, so that sequences call it, at any look.",
    "fixed": "Its end has passed, so that the fixed intervals call it, this once.",
    "none": "It has not ended yet. Nothing is called before; sequences show what to expect.",
}


def said(users: Users, analysis: Analysis, question: Question) -> Iterator[str]:
    """Lines of a terminal, what is most important first."""
    exposed = ", ".join(f"{arm} {count:,}" for arm, count in users.exposed.items())
    yield f"{question.name}, epoch {question.epoch}: users exposed {exposed}"
    yield from analysis.faults
    yield from (f"{name}: {count:,}" for name, count in users.left_out.items() if count)
    yield from _notes(users)
    if analysis.too_few is not None:
        yield analysis.too_few
        return
    yield _METHODS[analysis.method]
    for contrast in analysis.contrasts:
        call = _call(contrast, analysis)
        yield (
            f"{contrast.metric}, {contrast.arm}: {percent(contrast.fixed)} once, {percent(contrast.sequence)} at any "
            f"look: {call}"
        )


def _call(contrast: Contrast, analysis: Analysis) -> str:
    if contrast.called is not None:
        return contrast.called
    if contrast.doubt is not None:
        return f"not called, {contrast.doubt}"
    if analysis.faults:
        return "not called"
    return "not called before the end" if analysis.method == "none" else "no difference is sure"


def write_report(out: Path, users: Users, analysis: Analysis, question: Question) -> Path:
    """Write the files and return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "experiment.json", _content(users, analysis, question))
    title = f"Experiment {question.name}"
    return write_document(out, title, list(_blocks(title, users, analysis, question)))


def percent(interval: Interval | None) -> str:
    """A relative difference in percent, with its bounds."""
    if interval is None:
        return "undefined"
    return f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def _content(users: Users, analysis: Analysis, question: Question) -> dict[str, Any]:
    return {
        "experiment": question.name,
        "epoch": question.epoch,
        "shares": dict(question.shares),
        "exposed": users.exposed,
        "fell_back": users.fell_back,
        "answered_by_several": users.mixed,
        "capped": users.capped,
        "left_out": users.left_out,
        "notes": list(users.notes),
        "sample_ratio_evidence": analysis.ratio_evidence,
        "faults": analysis.faults,
        "too_few": analysis.too_few,
        "method": analysis.method,
        "contrasts": [_finite(asdict(contrast)) for contrast in analysis.contrasts],
        "days": [_finite(effect._asdict()) for effect in analysis.days],
    }


def _finite(value: Any) -> Any:
    """JSON, which has no infinity: a bound that is none is null."""
    if isinstance(value, Interval):
        return {name: _finite(number) for name, number in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _notes(users: Users) -> Iterator[str]:
    yield from users.notes
    if any(users.fell_back.values()):
        shown = ", ".join(f"{arm} {count:,}" for arm, count in users.fell_back.items() if count)
        yield f"users whom their arm could not answer at least once, so that they saw no difference: {shown}"
    if users.mixed:
        yield f"{counted(users.mixed, 'user')} had several arms, and count in the first"
    if users.capped:
        yield f"{counted(users.capped, 'user')} sent more than {REQUEST_CAP:,} requests, of which the first ones count"


def _blocks(title: str, users: Users, analysis: Analysis, question: Question) -> Iterator[Block]:
    yield Heading(1, title)
    end = "" if question.end is None else f" to {question.end:%Y-%m-%d %H:%M}"
    yield Paragraph(
        f"Users exposed from {question.start:%Y-%m-%d %H:%M}{end} UTC under epoch {question.epoch}. Each counts once, "
        f"by what the user did within {question.horizon} of the first impression under an arm. "
        f"{_METHODS[analysis.method]}"
    )
    for fault in analysis.faults:
        yield Paragraph(f"Nothing is called: {fault}.")
    if analysis.too_few is not None:
        yield Paragraph(f"Too few users: {analysis.too_few}.")
    yield Heading(2, "Users")
    yield _users_table(users, question)
    yield Paragraph(
        f"Evidence against the shares: {analysis.ratio_evidence:.3g}. By chance it passes {RATIO_EVIDENCE:g} in one of "
        f"{RATIO_EVIDENCE:g} experiments, at any look together."
    )
    for note in _notes(users):
        yield Paragraph(f"{note[0].upper()}{note[1:]}.")
    left_out = [[name, f"{count:,}"] for name, count in users.left_out.items()]
    yield Table(["left out", "number"], left_out)
    if analysis.too_few is not None:
        return
    yield Heading(2, "Differences")
    yield Paragraph(
        "Relative to the control arm. Thick: the fixed interval, which holds at one look. Thin: the sequence, which "
        "holds at every look together. Both are 95 % for each line alone. Calls are for all lines together (Holm)."
    )
    yield Image("Differences by metric", plot_contrasts(analysis.contrasts))
    yield _contrasts_table(analysis.contrasts)
    if analysis.days:
        yield Heading(2, "By days since exposure")
        yield Paragraph("The value of each day alone. Bounds hold at every look, for each day alone.")
        yield Image("Differences by days since exposure", plot_days(analysis.days))
    yield Heading(2, "How many users a difference takes")
    yield Paragraph(
        "Users of the arm at which the fixed interval reaches so far to each side, with arms of these sizes. A "
        "sequence excludes 0 in half of all cases at 2.4 times as many, where the difference is so large."
    )
    yield _needed_table(analysis.contrasts)


def _users_table(users: Users, question: Question) -> Table:
    rows = [
        [arm, f"{question.shares[arm]:.1%}", f"{users.exposed[arm]:,}", f"{int((users.arm_U == place).sum()):,}"]
        for place, arm in enumerate(question.arms)
    ]
    return Table(["arm", "share", "exposed", "horizon is over"], rows)


def _contrasts_table(contrasts: Sequence[Contrast]) -> Table:
    head = [
        "metric",
        "arm",
        "mean of control",
        "mean of the arm",
        "once",
        "at any look",
        "variance by the past",
        "call",
    ]
    rows = [
        [
            one.metric,
            one.arm,
            f"{one.means[0]:.4g}",
            f"{one.means[1]:.4g}",
            percent(one.fixed),
            percent(one.sequence),
            "" if one.narrowing is None else f"-{one.narrowing:.0%}",
            one.called or one.doubt or "",
        ]
        for one in contrasts
    ]
    return Table(head, rows)


def _needed_table(contrasts: Sequence[Contrast]) -> Table:
    widths = list(dict.fromkeys(width for one in contrasts for width in one.needed))
    rows = [
        [one.metric, one.arm, *(f"{one.needed.get(width, 0):,}" for width in widths)] for one in contrasts if one.needed
    ]
    return Table(["metric", "arm", *(f"+-{float(width):.0%}" for width in widths)], rows)
