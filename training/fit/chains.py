"""Chains of tasks in the data: positives of a task without the outcome that it is given, counted and said.

A product P(click) * P(long_view | click) is never above P(click). Long views without a click are then answered too low,
all of them. Few of them are noise of the log. Many say that the one label does not follow from the other.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from model.schema import FeedSchema
from training.fit.tally import ChainCounts, LabelCounts

log = logging.getLogger(__name__)

# Of the positives of a task: more of them without the given outcome, and training refuses the chain.
MOST_WITHOUT = 0.01

# By task that is given another.
Chains = Mapping[str, ChainCounts]


def chain_lines(schema: FeedSchema, chains: Chains, where: str) -> Iterator[str]:
    """A sentence for each chain of the rows that `where` names."""
    for task in schema.tasks:
        if task.given is not None:
            found = chains[task.name]
            without = f"{found.without_given:,} of {found.positives:,} positives ({_share(found):.2%})"
            yield f"task {task.name}, given {task.given}: {without} in {where} are without it"


def check_chains(schema: FeedSchema, chains: Chains) -> None:
    """Log the share of positives in the training split that are without the given outcome. Raises ValueError where it
    is too large, and where a label counts in no row without that outcome."""
    for line in chain_lines(schema, chains, "split train"):
        log.info("%s", line)
    for task in schema.tasks:
        if task.given is None:
            continue
        found = chains[task.name]
        if is_broken(found):
            raise ValueError(
                f"task {task.name}: {_share(found):.1%} of its {found.positives:,} positives in split train are "
                f"without '{task.given}', which it is given; a chain never answers more than '{task.given}', so that "
                f"at most {MOST_WITHOUT:.0%} may be; remove given, or fix the label"
            )
        if not found.rows_without_given:
            raise ValueError(
                f"task {task.name}: its label counts in no row of split train without '{task.given}', which it is "
                f"given; a chain is learned on all rows: let its mask ({task.mask}) count those too, with label 0"
            )


def is_broken(found: ChainCounts) -> bool:
    """True where training refuses the chain."""
    return _share(found) > MOST_WITHOUT


def chains_of_labels(labels: Mapping[str, LabelCounts]) -> Chains:
    """Counts of chains among those of labels."""
    return {name: counts.chain for name, counts in labels.items() if counts.chain is not None}


def chains_of_report(content: Mapping[str, Any]) -> Chains:
    """Counts of the training split, as a data report has them."""
    tasks = content["splits"]["train"]["tasks"]
    return {name: ChainCounts(**about["chain"]) for name, about in tasks.items() if "chain" in about}


def _share(found: ChainCounts) -> float:
    return found.without_given / found.positives if found.positives else 0.0
