"""`make bench-experiments`: who is in which arm, and how often an analysis of an experiment is wrong.

python -m benchmarks.experiments_simulation

Assignment: a million units, by the functions of the service. Analysis: simulated experiments of two arms, whose users
have uneven values and a past that explains a part of them. The analysis' own functions look a hundred times while users
come. A sequence is wrong where it misses the truth at any look.

Shapes: U users, L looks, R runs.
"""

import argparse
import hashlib
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from model.buckets import bucket_of
from training.experiment.contrasts import ALPHA, RATIO_EVIDENCE, WIDTH, Analysis, analyse
from training.experiment.question import Question
from training.experiment.users import Users
from training.judge.sample_ratio import sample_ratio_evidence
from training.judge.sequences import Floats, Moments, fixed_difference, relative_difference
from training.judge.verdict import MIN_USERS

USERS = 4000
LOOKS = 100
EFFECTS = (0.0, 0.05)
START = datetime(2026, 12, 1, tzinfo=UTC)
_DIGEST = """
import hashlib
from model.buckets import bucket_of
print(hashlib.sha256(b"".join(bucket_of("one", str(unit)).to_bytes(2) for unit in range(100_000))).hexdigest())
"""


def assignment(units: int) -> dict[str, Any]:
    """P-values of evenness and of independence, and whether another process deals alike."""
    salts = ("2026-11", "2026-12", "bold_likes")
    first, second, arm = (np.array([bucket_of(salt, str(unit)) for unit in range(units)]) for salt in salts)
    crossed = [np.histogram2d(first, other, 20, ((0, 10_000), (0, 10_000)))[0] for other in (second, arm)]
    own = hashlib.sha256(b"".join(bucket_of("one", str(unit)).to_bytes(2) for unit in range(100_000))).hexdigest()
    other = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "units": units,
        "buckets": stats.chisquare(np.bincount(first, minlength=10_000)).pvalue,
        "layers": stats.chi2_contingency(crossed[0]).pvalue,
        "layer_and_arm": stats.chi2_contingency(crossed[1]).pvalue,
        "is_alike_elsewhere": own == other,
    }


def drawn(effect: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Arms, values and past of users in the order in which they come. Means of the arms are 4 and 4 (1 + effect)."""
    arm_U = rng.integers(0, 2, 2 * USERS)
    taste_U = rng.gamma(1.5, 1.0, 2 * USERS) / 1.5
    before_U = rng.poisson(4 * taste_U).astype(np.float64)
    return arm_U, rng.poisson(4 * taste_U * (1 + effect * arm_U)).astype(np.float64), before_U


def looks_of(arm_U: NDArray[np.int64], values_U: Floats, arm: int) -> Moments:
    """Moments of an arm at every look."""
    ends_L = np.linspace(len(arm_U) / LOOKS, len(arm_U), LOOKS).astype(int) - 1
    is_in_U = arm_U == arm
    sums = [np.cumsum(is_in_U * values_U**power)[ends_L].astype(np.float64) for power in range(4)]
    return Moments.of_sums(*sums)


def one_run(effect: float, rng: np.random.Generator) -> dict[str, bool]:
    """Mistakes of one experiment."""
    arm_U, values_U, _ = drawn(effect, rng)
    control, arm = (looks_of(arm_U, values_U, place) for place in (0, 1))
    half = ALPHA / 2
    sequence = relative_difference(arm, control, alpha=(half, half), width=(WIDTH, WIDTH))
    fixed = fixed_difference(arm, control, ALPHA)
    is_read_L = np.minimum(arm.users, control.users) >= MIN_USERS
    is_off_L = (sequence.lower > effect) | (sequence.upper < effect)
    counts_L = zip(control.users.tolist(), arm.users.tolist(), strict=True)
    evidence = max(sample_ratio_evidence(counts, (0.5, 0.5)) for counts in counts_L)
    return {
        "sequence missed": bool((is_off_L & is_read_L).any()),
        "fixed missed": bool(fixed.lower[-1] > effect or fixed.upper[-1] < effect),
        "fixed missed at any look": bool((((fixed.lower > effect) | (fixed.upper < effect)) & is_read_L).any()),
        "sample ratio": evidence > RATIO_EVIDENCE,
    }


class Drawn(NamedTuple):
    """Users of an experiment in the order in which they come: arms, values of three metrics, and the same before."""

    arm_U: NDArray[np.int64]
    labels: dict[str, Floats]
    past: dict[str, Floats]

    @classmethod
    def of_seed(cls, seed: int, effect: float) -> "Drawn":
        """The users of a seed."""
        rng = np.random.default_rng(seed)
        arm_U, values_U, before_U = drawn(effect, rng)
        other_U = rng.poisson(0.3 * values_U + 0.2).astype(np.float64)
        labels = {"value": values_U, "click": other_U, "like": rng.poisson(0.5, len(arm_U)).astype(np.float64)}
        return cls(arm_U, labels, dict.fromkeys(labels, before_U))

    def analysed(self, count: int, *, has_end: bool, has_past: bool = True) -> Analysis:
        """The analysis of the first users."""
        arm_U = self.arm_U[:count]
        exposed = {"control": int((arm_U == 0).sum()), "treatment": int((arm_U == 1).sum())}
        shares = dict.fromkeys(exposed, 0.5)
        end = START + timedelta(days=7) if has_end else None
        question = Question("same", "0", shares, START, end, timedelta(days=1), {"click": 1.0})
        labels, past = ({name: of[:count] for name, of in each.items()} for each in (self.labels, self.past))
        was_there_U = np.full(count, has_past)
        no_falls = dict.fromkeys(shares, 0)
        before = past if has_past else None
        users = Users(arm_U, labels, before, was_there_U, [], exposed, no_falls, 0, 0, {}, has_end)
        return analyse(users, question)


def is_called(analysis: Analysis) -> bool:
    """True where any metric is called."""
    return any(contrast.called is not None for contrast in analysis.contrasts)


def looked_at(seed: int, effect: float) -> list[bool]:
    """Calls of an experiment without an end, at each of its looks."""
    users = Drawn.of_seed(seed, effect)
    ends_L = np.linspace(2 * USERS / LOOKS, 2 * USERS, LOOKS).astype(int)
    return [is_called(users.analysed(count, has_end=False)) for count in ends_L.tolist()]


def ended(seed: int, effect: float) -> tuple[bool, float, float]:
    """Verdict of an experiment at its end, the variance that the past takes out, and how much intervals narrow."""
    users = Drawn.of_seed(seed, effect)
    analyses = [users.analysed(2 * USERS, has_end=True, has_past=has_past) for has_past in (True, False)]
    narrowings, widths = [], []
    for analysis in analyses:
        value = analysis.contrasts[0]
        assert value.fixed is not None, "means are above 0"
        narrowings.append(value.narrowing or 0.0)
        widths.append(value.fixed.high - value.fixed.low)
    return is_called(analyses[0]), narrowings[0], 1 - widths[0] / widths[1]


def main() -> None:
    """Simulate and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-experiments")
    parser.add_argument("--runs", type=int, default=1000, help="simulated experiments of each kind (default 1000)")
    parser.add_argument("--units", type=int, default=1_000_000)
    options = parser.parse_args()
    dealt = assignment(options.units)
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for effect in EFFECTS:
        runs = [one_run(effect, rng) for _ in range(options.runs)]
        found[f"{effect:+.0%}"] = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    calls = {
        f"{effect:+.0%}": np.array([looked_at(seed, effect) for seed in range(options.runs)]) for effect in EFFECTS
    }
    ends = [ended(seed, 0.0) for seed in range(options.runs)]
    called = {
        "by sequences, at any look": {effect: float(of_RL.any(axis=1).mean()) for effect, of_RL in calls.items()},
        "by sequences, at the last look": {effect: float(of_RL[:, -1].mean()) for effect, of_RL in calls.items()},
        "by fixed intervals, at the end": {"+0%": float(np.mean([one[0] for one in ends]))},
    }
    narrowing, width = (float(np.mean([one[place] for one in ends])) for place in (1, 2))
    noise = 1.96 * math.sqrt(0.05 * 0.95 / options.runs)
    rows = [
        [effect, *(f"{1 - one[name]:.1%}" for name in ("sequence missed", "fixed missed", "fixed missed at any look")),
         f"{one['sample ratio']:.1%}"]
        for effect, one in found.items()
    ]  # fmt: skip
    head = ["true difference", "sequences cover at all looks", "fixed intervals cover at the end",
            "fixed intervals would cover at all looks", "sample-ratio alarms"]  # fmt: skip
    body = [
        f"{options.runs:,} simulated experiments for each row, about {USERS:,} users an arm, {LOOKS} looks. A share of",
        f"5 % is known to {noise * 100:.1f} points. Intervals are 95 %.",
        "",
        *report.table(head, rows),
        "",
        f"Called, of {options.runs:,} experiments of three metrics each, users' past taken out, {LOOKS} looks of the",
        "whole analysis (Holm at 5 %):",
        "",
        *report.table(
            ["called", "two equal arms", "5 % of difference"],
            [
                [how, *(f"{shares[effect]:.1%}" if effect in shares else "" for effect in calls)]
                for how, shares in called.items()
            ],
        ),
        "",
        f"Users' past takes out {narrowing:.0%} of the variance here, and narrows intervals by {width:.0%}.",
        "",
        f"Assignment of {options.units:,} units: p-value {dealt['buckets']:.2f} of even buckets,",
        f"{dealt['layers']:.2f} of two independent layers, {dealt['layer_and_arm']:.2f} of arms that are independent",
        "of buckets (chi-square).",
        f"Another process deals {'alike' if dealt['is_alike_elsewhere'] else 'otherwise'}.",
    ]
    data = {"assignment": dealt, "coverage": found, "called": called, "narrowing": narrowing, "narrower_by": width}
    print(report.write("experiments", "Experiments, simulated", body, data, "make bench-experiments"))


if __name__ == "__main__":
    run_benchmark(main)
