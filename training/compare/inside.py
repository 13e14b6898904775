"""Looking inside a comparison's networks: what `inspect` measures on the first seed of each, in the report.

In: the finished runs of a dataset. Out: `results["datasets"][dataset]["inside"]`:

    networks   {network: {seed, folder, and inspect's numbers}}. Pictures are in OUTPUT/<folder>/*.png
    policies   {network: {seed: [layers]}} of learned routing, all seeds: how alike the tasks' policies are
    failures   {network: reason}: nothing that fails here costs the report

What `inspect` wrote into a run folder is kept there: a second report reads it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from training.compare.document import Block, Heading, Image, Paragraph, Table
from training.compare.experiment import Cell
from training.compare.inside_plots import plot_inside_over_training, plot_policy_likeness
from training.compare.predictions import rows_of
from training.inspect.inspect import inspect
from training.inspect.policies import layer_policies
from training.run.run import BEST, INSIDE, Run, read_json

log = logging.getLogger(__name__)

PICTURES = {
    "expert_weights": "expert weights",
    "policies": "routing policies",
    "policy_perplexity": "policy perplexity over training",
    "gradient_conflicts": "cosines of task gradients",
}

Json = dict[str, Any]


def inspect_networks(output: Path, runs: Mapping[Cell, Run]) -> Json:
    """The section of a dataset, measured on the validation split. `output` is the experiment's folder."""
    found: Json = {"networks": {}, "policies": {}, "failures": {}}
    by_network: dict[str, dict[int, Run]] = {}
    for cell, run in runs.items():
        if (run.path / BEST).exists():  # cells without a ranker have nothing inside
            by_network.setdefault(cell.network, {})[cell.seed] = run
    for network, by_seed in by_network.items():
        seed, run = min(by_seed.items())
        try:
            folder = str((run.path / INSIDE).relative_to(output))
            found["networks"][network] = {"seed": seed, "folder": folder, **_inspected(run, f"{network}, seed {seed}")}
            if run.config.network.fusion.kind == "learned_routing":
                found["policies"][network] = {str(seed): _policies(run) for seed, run in sorted(by_seed.items())}
        # Any fault: tables that took hours stay, without the pictures beside them.
        except Exception as error:
            found["failures"][network] = f"{type(error).__name__}: {error}"
            log.warning("looking inside %s failed: %s", run.path, error)
    return found


def _inspected(run: Run, name: str) -> Json:
    file = run.path / INSIDE / "inside.json"
    if file.exists():
        kept: Json = read_json(file)
        if kept.get("split") == "validation":
            return kept
    log.info("looking inside %s", run.path)
    return inspect(run, "validation", name=name, rows=rows_of(run, "validation"))


def _policies(run: Run) -> list[Json]:
    tasks = [task.name for task in run.schema.tasks]
    return [layer.as_json() for layer in layer_policies(run.best_ranker().network.fusion, tasks)]


def blocks(dataset: Json, folder: Path) -> Iterator[Block]:
    """The section of a report, pictures read from the run folders below `folder`. Nothing where no network was
    inspected."""
    inside = dataset.get("inside")
    if inside is None:
        return
    yield Heading(3, "Inside the networks")
    yield Paragraph(
        "Of the first seed of each network, at its best point, on the validation split. Gate entropy is in nats (0: "
        "each row takes one expert). The cosine is the mean over pairs of tasks, of their losses' gradients at the "
        "shared representation: below 0 tasks conflict. A policy's perplexity, at the end of training, is "
        "1 where it is decided. Beside it is that of a placebo, which learns from the same rewards dealt to modules by "
        "chance. Only below its placebo's a policy's perplexity shows learning."
    )
    for network, reason in inside["failures"].items():
        yield Paragraph(f"Looking inside {network} failed: {reason}")
    rows = [[name, *_summary(found)] for name, found in inside["networks"].items()]
    if rows:
        columns = ("gate entropy by level", "cosine of gradients", "policy perplexity by layer", "of placebos")
        yield Table(["network", *columns], rows)
    during = dataset.get("during_training")
    if during is not None:
        yield from _picture(
            "gates, policies and balancing weights during training", lambda: plot_inside_over_training(during)
        )
    for name, found in inside["networks"].items():
        for stem, what in PICTURES.items():
            file = folder / found["folder"] / f"{stem}.png"
            if file.is_file():
                yield from _picture(f"{name}: {what}", file.read_bytes)
    for name, by_seed in inside["policies"].items():
        if all(by_seed.values()):
            title = f"{name}: cosine between the tasks' policies, seed by seed"
            yield from _picture(title, partial(plot_policy_likeness, by_seed, title))


def _picture(text: str, draw: Callable[[], bytes | None]) -> Iterator[Block]:
    try:
        png = draw()
    except Exception as error:  # as above: a picture is not worth the report
        yield Paragraph(f"No picture of {text}: {type(error).__name__}: {error}")
        return
    if png is not None:
        yield Image(text, png)


def _summary(found: Json) -> list[str]:
    levels = found["expert_weights"] or []
    entropies = [sum(level["gate_entropy"]) / len(level["gate_entropy"]) for level in levels]
    # Null where no representation is shared: a network with embeddings of each task's own.
    matrix = (found["gradient_conflicts"] or {"at_shared_representation": []})["at_shared_representation"]
    pairs = [value for i, row in enumerate(matrix) for value in row[:i] if value is not None]
    policies = found["policies"] or {}
    at_the_end = [
        [values[-1] for values in policies.get(key, {}).values()]
        for key in ("perplexity_over_training", "placebo_perplexity_over_training")
    ]
    return [
        ", ".join(f"{value:.3f}" for value in entropies) or "-",
        f"{sum(pairs) / len(pairs):+.3f}" if pairs else "-",
        *(", ".join(f"{value:.2f}" for value in values) or "-" for values in at_the_end),
    ]
