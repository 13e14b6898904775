"""A dataset's search -> the blocks "Chosen on validation" of a report."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.compare.document import Block, Heading, Paragraph, Table
from training.compare.measures import METRICS
from training.compare.space import flat

Json = dict[str, Any]


def chosen_on_validation(found: Mapping[str, Json], metric: str) -> Iterator[Block]:
    """One row for every network that had something to choose. Nothing where none had."""
    if not found:
        return
    title, sign = METRICS[metric].title, -1 if METRICS[metric].better == "higher" else 1
    yield Heading(3, "Chosen on validation")
    yield Paragraph(
        f"By the mean {title} over the verdict's tasks and the search's own seeds, on the validation split. The best "
        "of several trials looks better there than it is. The test split had no part in it. Networks without a row had "
        "nothing to choose."
    )
    rows = []
    for network, search in found.items():
        ended = [trial for trial in search["trials"] if trial["value"] is not None]
        ranked = sorted(ended, key=lambda trial: (sign * trial["value"], trial["number"]))
        columns = [word for trial in ranked[:2] for word in (_words(trial["parameters"]), f"{trial['value']:.5f}")]
        columns += ["-"] * (4 - len(columns))
        failed = len(search["trials"]) - len(ended)
        rows.append([network, *columns, f"{len(search['trials'])}{f', {failed} failed' if failed else ''}"])
    yield Table(["network", "chosen", title, "runner-up", f"its {title}", "trials"], rows, is_words=True)


def _words(parameters: Mapping[str, Any]) -> str:
    values = {key.removeprefix("network.fusion."): value for key, value in flat(parameters).items()}
    return ", ".join(f"{key} {f'{x:.4g}' if isinstance(x, float) else x}" for key, x in values.items())
