"""`make bench-routing-learners`: what each learner of routing policies decides on a bandit, with and without a reason.

    python -m benchmarks.routing_learners [--runs N] [--steps N]

A bandit stands for one routed layer whose modules do not change: a row's reward is +1 with its module's probability
and -1 otherwise. In one setting a module of each task has a mean reward of `GAP` above the others, in the other all
are equal. Tasks are independent runs. Regimes are those of the experiments: rows of a task in a batch, and modules.

Shapes: B rows, T tasks (runs), M modules, P points.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks import report
from benchmarks.command import run_benchmark
from model.fusion.policy import Policy, PolicyConfig, perplexities, probabilities
from training.step.policy_updates import UPDATES

GAP = 0.2
# Mean reward of every other module: right answers of 75 %.
MEAN = 0.5


@dataclass(frozen=True)
class Regime:
    """Rows of a task in a batch, modules of a layer, and batches of a training."""

    name: str
    rows: int
    modules: int
    steps: int


REGIMES = (
    Regime("Census-Income, six tasks", 512, 6, 3000),
    Regime("Fashion-MNIST, ten tasks, batches of 128", 13, 10, 3000),
    Regime("CIFAR-100, twenty tasks, batches of 128", 6, 20, 3000),
)
LEARNERS: dict[str, dict[str, Any]] = {
    "action_values, softmax, Adam .02": {},
    "batch_means, softmax, Adam .02": {"learner": "batch_means"},
    "batch_means, clip, SGD .02": {"learner": "batch_means", "policy": "clip", "policy_optimizer": "sgd"},
    "public_code, softmax, Adam .02": {"learner": "public_code"},
    "public_code, as_published, SGD 1.5e-4": {
        "learner": "public_code",
        "policy": "as_published",
        "policy_optimizer": "sgd",
        "policy_learning_rate": 1.5e-4,
    },
    "public_code, clip, SGD 1.5e-4, loss_reduction none": {
        "learner": "public_code",
        "policy": "clip",
        "policy_optimizer": "sgd",
        "policy_learning_rate": 1.5e-4,
        "loss_reduction": "none",
    },
}


@dataclass(frozen=True)
class Outcome:
    """`chosen_T`: each run's most probable module at the end. `perplexity_PT`: that of each run at P points, a hundred
    where there are as many batches."""

    chosen_T: NDArray[np.int64]
    perplexity_PT: NDArray[np.float64]

    def of(self, runs: slice) -> "Outcome":
        """Some of the runs."""
        return Outcome(self.chosen_T[runs], self.perplexity_PT[:, runs])

    @property
    def perplexity(self) -> list[float]:
        """Means over runs, by point."""
        return [float(value) for value in self.perplexity_PT.mean(axis=1)]


def simulate(config: PolicyConfig, regime: Regime, gaps_T: Sequence[float], seed: int = 0) -> Outcome:
    """Policies that learn from `regime.steps` batches. Module 0 is better by its run's gap.

    Rows of a batch that drew the same module and have the same reward are one row that counts for them all."""
    runs = len(gaps_T)
    policy = Policy(runs, regime.modules, config.policy)
    update = UPDATES[config.learner]([policy], config)
    generator = np.random.default_rng(seed)
    right_TM = np.full((runs, regime.modules), (1 + MEAN) / 2)
    right_TM[:, 0] += np.array(gaps_T) / 2
    policy.drawn_BT = torch.arange(regime.modules).repeat_interleave(2).unsqueeze(1).expand(-1, runs)
    rewards_BT = torch.tensor([1.0, -1.0]).repeat(regime.modules).unsqueeze(1).expand(-1, runs)
    curve: list[NDArray[np.float64]] = []
    for step in range(regime.steps):
        chances_TM = probabilities(policy.policy_TM.double(), policy.kind).numpy()
        drawn_TM = generator.multinomial(regime.rows, chances_TM / chances_TM.sum(axis=1, keepdims=True))
        of_right_TM = generator.binomial(drawn_TM, right_TM)
        counts_TB = np.stack([of_right_TM, drawn_TM - of_right_TM], axis=2).reshape(runs, -1)
        update.step(rewards_BT, torch.from_numpy(counts_TB).t())
        if (step + 1) % max(regime.steps // 100, 1) == 0:
            curve.append(perplexities(policy.policy_TM, policy.kind).numpy())
    return Outcome(policy.policy_TM.argmax(dim=1).numpy(), np.stack(curve))


def main() -> None:
    """Simulate and write the results."""
    parser = argparse.ArgumentParser(prog="make bench-routing-learners")
    parser.add_argument("--runs", type=int, default=100, help="independent runs of a row (default 100)")
    parser.add_argument("--steps", type=int, help="batches of a run (default: the regime's)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = {}
    body = [
        f"{options.runs} runs of each row. A reward is +1 or -1, its mean {MEAN} for every module but the best. That",
        f"has {MEAN + GAP}. Found: the share of runs whose most probable module is the best, with its 95 % interval",
        "(Clopper-Pearson). Without a gap all modules are equal, and perplexity falls by commitment without evidence.",
        "Even: the p-value of the modules' shares among those runs (chi-square). Perplexity is 1 where a policy is",
        "decided.",
    ]
    for regime in REGIMES:
        regime = Regime(regime.name, regime.rows, regime.modules, options.steps or regime.steps)
        rows = []
        for name, changes in LEARNERS.items():
            config = PolicyConfig.model_validate(changes)
            found_of = simulate(config, regime, [GAP] * options.runs + [0.0] * options.runs)
            better, equal = found_of.of(slice(options.runs)), found_of.of(slice(options.runs, None))
            found = int((better.chosen_T == 0).sum())
            low, high = stats.binomtest(found, options.runs).proportion_ci(method="exact")
            even = float(stats.chisquare(np.bincount(equal.chosen_T, minlength=regime.modules)).pvalue)
            data.setdefault(regime.name, {})[name] = {
                "found": found,
                "even_p": even,
                "perplexity": better.perplexity,
                "perplexity_without_gap": equal.perplexity,
            }
            rows.append(
                [name, f"{found / options.runs:.0%} ({low:.0%} to {high:.0%})", f"{better.perplexity[-1]:.2f}",
                 f"{equal.perplexity[-1]:.2f}", f"{even:.2f}"]
            )  # fmt: skip
        body += [
            "",
            f"## {regime.name}: {regime.rows} rows of a task, {regime.modules} modules, {regime.steps:,} batches",
            "",
            *report.table(["learner", "found", "perplexity", "perplexity without a gap", "even"], rows),
        ]
    print(report.write("routing_learners", "Learners of routing policies", body, data, "make bench-routing-learners"))


if __name__ == "__main__":
    run_benchmark(main)
