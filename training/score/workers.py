"""A worker process of batch scoring: one core, one scorer, part after part."""

from typing import Any

import pyarrow as pa
import torch

from training.data.files import LogFiles
from training.distributed.processes import belong_to_parent
from training.score.job import Job, Part
from training.score.part import PartScorer

_scorers: list[PartScorer] = []


def begin(job: Job, files: LogFiles) -> None:
    """Make this process a worker of a job."""
    belong_to_parent()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    _scorers.append(PartScorer(job, files))


def score_part(part: Part) -> dict[str, Any]:
    """Score a part (`PartScorer.score`)."""
    return _scorers[0].score(part)
