"""Publication of a night's run: calibrated, exported to a hidden folder, gated there, and made visible by one rename.

In: a finished run. Out: the number of its version, or the reason why it is refused. What is gated is what would be
served, so a refused version was never visible.
"""

import logging
from datetime import datetime, timedelta
from pathlib import Path

from model.artifact.artifact import ArtifactError
from model.artifact.signature import SigningKey
from model.rollout.decisions import ACCEPT, DAY, QUALITY_GATE, REFUSE, Decisions
from model.rollout.journal import Entry, Journal
from model.scorer.scorer import Scorer
from training.daily.cycle_file import Cycle
from training.daily.gates import gate_challenger
from training.daily.plan import Plan
from training.daily.serving import WHO, Champion, open_version
from training.evaluate.evaluate import evaluate
from training.judge.quality_gate import GateVerdict
from training.publish.export import export
from training.run.run import Run

log = logging.getLogger(__name__)

# A challenger is compared with every version that was stable so lately, so that small losses do not add up.
STABLE_LATELY = timedelta(days=7)


class _RefusedError(Exception):
    """A challenger that did not pass. Nothing was published."""

    def __init__(self, verdict: GateVerdict) -> None:
        super().__init__("; ".join(verdict.reasons))
        self.verdict = verdict


def publish_if_good(
    cycle: Cycle, journal: Journal, plan: Plan, run: Run, champion: Champion | None, now: datetime
) -> int | str:
    """Publish a run that passes the quality gate."""
    file = cycle.file
    champions = _champions(cycle, journal, champion, now)
    if not (run.path / "evaluation-test.json").exists():
        evaluate(run, "test")

    def gate(folder: Path) -> None:
        verdict = gate_challenger(cycle, run, folder, champions)
        _enter(journal, plan, verdict, champions, now)
        if not verdict.passed:
            raise _RefusedError(verdict)

    try:
        path = export(
            run,
            file.models,
            file.model,
            calibration=file.calibrate,
            items=file.catalogue,
            sign_key=None if file.sign_key is None else SigningKey(file.sign_key),
            accept_worse=True,  # than its parent on the half that chose it: the gate decides on the other half
            vet=gate,
        )
    except _RefusedError as error:
        for reason in error.verdict.reasons:
            log.warning("refused: %s", reason)
        return f"the challenger for {plan.day} was refused: {error}"
    return int(path.name)


def _champions(cycle: Cycle, journal: Journal, champion: Champion | None, now: datetime) -> dict[str, Scorer]:
    """The version that serves and those that were stable in the last seven days, but for any that is gone or broken."""
    champions = {} if champion is None else {str(champion.version): champion.scorer}
    for version in Decisions(journal.read().entries).stable_since(now - STABLE_LATELY):
        if version in champions:
            continue
        try:
            champions[version] = open_version(cycle.folder, int(version)).scorer
        except (ArtifactError, ValueError) as error:
            log.warning("not compared with version %s, which was stable lately: %s", version, error)
    return champions


def _enter(journal: Journal, plan: Plan, verdict: GateVerdict, champions: dict[str, Scorer], now: datetime) -> None:
    last = Decisions(journal.read().entries).last(QUALITY_GATE)
    if last is not None and last.figures.get("run") == plan.run:
        return  # a job that was killed since has gated it
    journal.append(
        Entry(
            time=now,
            step=QUALITY_GATE,
            decision=ACCEPT if verdict.passed else REFUSE,
            reasons=verdict.reasons,
            figures={DAY: plan.day.isoformat(), "run": plan.run, "against": verdict.figures},
            versions={"champions": list(champions)},
            who=WHO,
        )
    )
