"""A batch-scoring job: the version that scores, by which value model and policy, cut into parts of files.

In: the command's options. Out: a `Job`, which worker processes are given whole, and its `Part`s: consecutive row groups
of one file, an output file each. A part's `identity` is a hash of all that decides what is in its output: the version,
the value model, the policy, the engine, the columns, and the state of the input file.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.artifact.artifact import Artifact
from model.policies.policies import Policy
from model.recalibration import folder_of as calibrations_of
from model.scorer.newest import take_newest_calibration
from model.scorer.scorer import Engine, EngineChoice, Scorer
from model.value_models.value_model import DEFAULT, FILE_NAME, ValueModel, ValueModels
from training.data.files import LogFile, LogFiles
from training.score.placing import DROPPED, PLACE, PolicyChoice

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
SCORE, ANSWER = "score", "answer_"


@dataclass(frozen=True, slots=True)
class Job:
    """One batch-scoring job. `group_by` names the column of request ids. With None each row is a request of its own.
    `prefix` opens the names of the answers' columns, so that columns of those names can be carried. `calibration` is
    the newest generation of the version's that verifies, which a service answers by. With a `policy` the rows of a
    request are placed."""

    version: Path
    verify_key: Path | None
    engine: Engine
    value_model: str
    columns: tuple[str, ...]
    prefix: str
    group_by: str | None
    source: str
    out: Path
    max_bad_rows: int
    calibration: Path | None
    policy: PolicyChoice | None
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        version: Path,
        source: str,
        out: Path,
        *,
        columns: Sequence[str] = (),
        prefix: str = "",
        group_by: str | None = None,
        value_model: str = DEFAULT,
        policy: str | None = None,
        policies_file: Path | None = None,
        engine: EngineChoice = "auto",
        verify_key: Path | None = None,
        max_bad_rows: int = 0,
    ) -> "Job":
        """The job, its version loaded once and found to answer its golden requests. Raises ValueError, ArtifactError.

        `auto` takes a compiled package only where rows are grouped: it is made for one request of many candidates."""
        scorer = Scorer.load(version, "torchscript" if engine == "auto" and group_by is None else engine, verify_key)
        for reason in take_newest_calibration(scorer):
            log.warning("%s", reason)
        taken_up = scorer.calibration.recalibration
        combined = value_model_of(scorer, value_model)
        chosen = PolicyChoice.of(policy, policies_file, group_by, scorer.artifact.path.parent)
        opened = None if chosen is None else chosen.open_policy(scorer)
        added = answer_columns(scorer.outputs, prefix) + ([] if chosen is None else place_columns(prefix))
        if taken := [name for name in columns if name in added]:
            raise ValueError(f"--columns: '{taken[0]}' is a column of the answers; give those another --prefix")
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"--columns: '{twice[0]}' is named twice; name each column once")
        about = {
            "format_version": FORMAT_VERSION,
            "model": scorer.manifest.name,
            "model_version": scorer.version,
            "artifact": scorer.manifest.checksum,
            "engine": scorer.engine,
            "calibration": scorer.calibration.generation,
            "value_model": value_model,
            "value_model_version": combined.version,
            "policy": policy,
            "policy_version": None if opened is None else opened.version,
            "columns": list(columns),
            "prefix": prefix,
            "group_by": group_by,
        }
        return cls(
            version,
            verify_key,
            scorer.engine,
            value_model,
            tuple(columns),
            prefix,
            group_by,
            source,
            out,
            max_bad_rows,
            None if taken_up is None else calibrations_of(scorer.artifact) / str(taken_up.manifest.generation),
            chosen,
            about,
        )

    def load(self) -> tuple[Scorer, ValueModel, Policy | None]:
        """The scorer, the value model and the policy, as a worker needs them. Raises ValueError where one is another by
        now."""
        scorer = Scorer.load(self.version, self.engine, self.verify_key)
        if self.calibration is not None:
            scorer.take_calibration(scorer.open_calibration(self.calibration))
        value_model = value_model_of(scorer, self.value_model)
        policy = None if self.policy is None else self.policy.open_policy(scorer)
        found = (scorer.manifest.checksum, value_model.version, None if policy is None else policy.version)
        if found != tuple(self.about[key] for key in ("artifact", "value_model_version", "policy_version")):
            rule = "it, its value model or its policy changed after the job began"
            raise ValueError(f"{self.version}: {rule}; run it again")
        return scorer, value_model, policy


@dataclass(frozen=True, slots=True)
class Part:
    """Row groups `first` to `stop` - 1 of a file and the output file of their answers, row by row."""

    file: LogFile
    first: int
    stop: int
    rows: int
    output: str
    identity: str


def answer_columns(outputs: Sequence[str], prefix: str) -> list[str]:
    """The columns that scoring adds: the combined score, then a column for each output."""
    return [f"{prefix}{name}" for name in (SCORE, *(f"{ANSWER}{output}" for output in outputs))]


def place_columns(prefix: str) -> list[str]:
    """The columns that a policy adds: the place of a row within its request, and the stage that dropped it."""
    return [f"{prefix}{name}" for name in (PLACE, DROPPED)]


def value_model_of(scorer: Scorer, name: str) -> ValueModel:
    """A value model of the version's family, as a service reads it. Raises ValueError for one that is not there."""
    family = scorer.artifact.path.parent
    models = ValueModels.of_folder(family, scorer.domain)
    if name not in models:
        raise ValueError(f"--value-model: no '{name}' in {family / FILE_NAME}; there are: {', '.join(models.names)}")
    return models[name]


def parts_of(job: Job, files: LogFiles, artifact: Artifact, rows_per_part: int) -> list[Part]:
    """The parts of all files, in order, each of about `rows_per_part` rows, of a whole file with a policy.

    Raises ValueError for a file that lacks a column or is no Parquet."""
    names = names_read(job, artifact)
    parts: list[Part] = []
    if job.policy is not None:  # a request may stand in two row groups
        rows_per_part = sys.maxsize
    for number, file in enumerate(files.files):
        with files.opened(file) as parquet:
            files.check_names(file, parquet, names)
            metadata = parquet.metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            # Of a file written again in the same second, sizes and offsets of its columns say more than the clock.
            layout = [
                [group.column(column).total_compressed_size for column in range(group.num_columns)]
                for group in map(metadata.row_group, range(metadata.num_row_groups))
            ]
        about = {**job.about, "input": file.name, "state": files.size_and_time(file), "layout": layout}
        for first, stop in _ranges(counts, rows_per_part):
            identity = json.dumps({**about, "row_groups": [first, stop]}, sort_keys=True)
            output = f"part-{number:05d}-{first:05d}.parquet"
            digest = hashlib.sha256(identity.encode()).hexdigest()
            parts.append(Part(file, first, stop, sum(counts[first:stop]), output, digest))
    return parts


def names_read(job: Job, artifact: Artifact) -> list[str]:
    """The columns that are read: a request's, the group, and those that are carried through."""
    schema = artifact.manifest.feed
    asked = [feature.name for feature in (*schema.requested("request"), *schema.requested("candidate"))]
    group = [] if job.group_by is None else [job.group_by]
    return list(dict.fromkeys([*asked, *group, *job.columns]))


def _ranges(counts: Sequence[int], rows_per_part: int) -> list[tuple[int, int]]:
    """Row groups from, to, of at least one row. A part ends with the group that fills it."""
    ranges, first, rows = [], 0, 0
    for group, count in enumerate(counts):
        rows += count
        if rows >= rows_per_part or (group + 1 == len(counts) and rows):
            ranges.append((first, group + 1))
            first, rows = group + 1, 0
    return ranges
