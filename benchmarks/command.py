"""The common part of every `make bench-*`: its data set by name, and one line where the user has to do something."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from training.datasets.prepare import prepare

# The folders of FEEDRANK_DATA.
SOURCES = {"kuairand": "kuairand_pure", "census": "census_income_kdd"}


def run_benchmark(main: Callable[[], None]) -> None:
    """Run a benchmark: what the user can fix ends in one line and status 2, Ctrl-C in status 130."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(_said(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_said("interrupted; what was finished is kept", 130))


def data_folder(dataset: str) -> Path:
    """data/<dataset>, prepared from its folder in FEEDRANK_DATA unless it is there. Raises ValueError without
    either."""
    out = Path("data") / dataset
    if not (out / "prepared.json").exists():
        root = os.environ.get("FEEDRANK_DATA")
        if not root:
            raise ValueError(f"FEEDRANK_DATA is not set: it names the folder that holds {SOURCES[dataset]}/")
        source = Path(root) / SOURCES[dataset]
        if not source.is_dir():
            raise ValueError(f"FEEDRANK_DATA: {root} holds no folder {SOURCES[dataset]}")
        prepare(dataset, source, out)
    return out


def _said(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status
