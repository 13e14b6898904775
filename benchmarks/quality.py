"""Test quality over seeds, for a training file: trains (or resumes) each seed, evaluates on the test split.

A finished seed is kept in its run folder and not trained again. Everything was chosen on the validation split.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.evaluate.evaluate import evaluate
from training.run.run import SUMMARY
from training.train import train


def evaluations(
    config: Path, changes: Sequence[str], seeds: Sequence[int], folder: Path, *, replicates: int
) -> list[dict[str, Any]]:
    """The test evaluation of every seed, in order."""
    results = []
    for seed in seeds:
        output = folder / f"seed-{seed}"
        run = train(TrainingConfig.load(config, [*changes, f"seed={seed}", f"output={output}"]))
        evaluation = evaluate(run, "test", replicates=replicates)
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
        results.append({"seed": seed, "best_epoch": summary["best_epoch"], "evaluation": evaluation})
    return results


def metric(results: Sequence[dict[str, Any]], task: str, name: str, scale: str | None = None) -> list[float]:
    """One metric of one task, seed by seed."""
    tasks = [result["evaluation"]["tasks"][task] for result in results]
    return [float((task if scale is None else task[scale])[name]["value"]) for task in tasks]
