"""Batch scoring, `python -m training score VERSION INPUT --out DIR`: logs in, combined scores and answers out.

In: a published version and Parquet files on any fsspec path whose columns are its features. Out: a folder of Parquet
files, one for each range of row groups of the input, and `_scored.json`, which is there when all of them are. They are
scored by what a service scores by (model.scorer.scorer), so they are what it would answer. Killed at any moment and
started again, the job keeps the files that are whole and were made of the same input by the same version.
"""

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import torch
from rich.progress import TextColumn

from model.artifact.artifact import Artifact, file_entry
from training.data.files import LogFiles
from training.data.found import Found
from training.files import is_json_with, refuse_foreign, refuse_within
from training.progress_bar import progress_bar
from training.run.run import library_versions, locked, write_json
from training.score.job import Job, Part, parts_of
from training.score.part import FAULTS_SHOWN, PartScorer, beyond_budget, found
from training.score.workers import begin, score_part
from training.wording import counted

log = logging.getLogger(__name__)

# Underscored: readers of the folder as a dataset ignore it.
SCORED = "_scored.json"
ROWS_PER_PART = 200_000

Done = tuple[Part, dict[str, Any]]


def score(job: Job, *, processes: int = 1, rows_per_part: int = ROWS_PER_PART, show: bool = True) -> dict[str, Any]:
    """Score what of the job is not scored yet and return the content of _scored.json. Raises ValueError naming the
    file, row group, row and column of bad rows beyond --max-bad-rows. What is finished by then is kept."""
    started = time.monotonic()
    _refuse_foreign(job)
    files = LogFiles(job.source)
    parts = parts_of(job, files, Artifact.open(job.version, job.verify_key), rows_per_part)
    Found(files, sum(part.rows for part in parts)).log_counts()
    with locked(job.out):
        kept = _keep_finished(job, parts)
        finished = {part.output for part, _ in kept}
        left = [part for part in parts if part.output not in finished]
        if left:
            (job.out / SCORED).unlink(missing_ok=True)
        done = list(kept)
        bad_rows = sum(about["bad_rows"] for _, about in kept)
        with progress_bar(TextColumn("rows"), show=show, transient=True) as progress:
            bar = progress.add_task("scoring", total=sum(part.rows for part in parts))
            progress.advance(bar, sum(part.rows for part, _ in kept))
            for part, about in _scored(job, files, left, processes):
                done.append((part, about))
                bad_rows += about["bad_rows"]
                progress.advance(bar, part.rows)
                if bad_rows > job.max_bad_rows:
                    fault = next(about["faults"][0] for _, about in reversed(done) if about["faults"])
                    raise ValueError(beyond_budget(fault, job.max_bad_rows))
        manifest = _manifest(job, sorted(done, key=lambda one: one[0].output), time.monotonic() - started)
        write_json(job.out / SCORED, manifest)
    log.info(
        "%s: %s in %s (%d from before), %s, %.1f s",
        job.out, counted(manifest["rows"], "row"), counted(len(parts), "file"), len(kept), counted(bad_rows, "bad row"),
        manifest["seconds"],
    )  # fmt: skip
    return manifest


def _keep_finished(job: Job, parts: Sequence[Part]) -> list[Done]:
    """The parts that are finished in the output folder. Removes what a job of another input or version left there.

    Raises ValueError for Parquet files that no batch scoring wrote."""
    wanted = {part.output: part for part in parts}
    kept: list[Done] = []
    for path in sorted(job.out.glob("*.parquet")):
        about = found(path)
        if about is None:
            raise ValueError(f"{path}: not written by batch scoring; --out names a folder of its own")
        part = wanted.get(path.name)
        if part is not None and about["identity"] == part.identity:
            kept.append((part, about))
        else:
            log.warning("%s: scored by another version or from another input; it is replaced", path)
            path.unlink()
    for partial in job.out.glob(".part-*.partial"):
        partial.unlink()
    return kept


def _refuse_foreign(job: Job) -> None:
    """Raise ValueError for an output folder that is the input's, or is neither empty nor scores."""
    refuse_within(job.out, job.source, "input")

    def is_own() -> bool:
        is_done = is_json_with(job.out / SCORED, "model_version", "parts")
        return is_done or any(found(path) is not None for path in job.out.glob("part-*.parquet"))

    refuse_foreign(job.out, "folder of scores", is_own=is_own)


def _scored(job: Job, files: LogFiles, parts: Sequence[Part], processes: int) -> Iterator[Done]:
    """Every part as it is finished."""
    processes = min(processes, len(parts))
    if processes <= 1:
        torch.set_num_threads(1)
        scorer = PartScorer(job, files) if parts else None
        for part in parts:
            assert scorer is not None
            yield part, scorer.score(part)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, context, initializer=begin, initargs=(job, files))
    try:
        futures = {executor.submit(score_part, part): part for part in parts}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker process ended (out of memory? give fewer --processes); run it again, finished files are kept"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _manifest(job: Job, done: Sequence[Done], seconds: float) -> dict[str, Any]:
    missing: Counter[str] = Counter()
    oov: Counter[str] = Counter()
    faults: list[str] = []
    for _, about in done:
        missing.update(about["missing"])
        oov.update(about["oov"])
        faults += about["faults"]
    return {
        **job.about,
        "input": job.source,
        "rows": sum(part.rows for part, _ in done),
        "bad_rows": sum(about["bad_rows"] for _, about in done),
        "faults": faults[:FAULTS_SHOWN],
        # By feature, counted for each batch of a request's candidates.
        "missing": dict(missing),
        "oov": dict(oov),
        **({} if job.policy is None else _placed(done)),
        "parts": [
            {
                "file": part.output,
                "input": part.file.name,
                "row_groups": [part.first, part.stop],
                "rows": part.rows,
                "bad_rows": about["bad_rows"],
                **file_entry(job.out / part.output),
            }
            for part, about in done
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "libraries": library_versions(),
    }


def _placed(done: Sequence[Done]) -> dict[str, Any]:
    """Rows that the policy dropped, by stage, places at which its cap was relaxed, and requests that two files share.

    Of these, such are seen as end one file and begin the next."""
    dropped: Counter[str] = Counter()
    for _, about in done:
        dropped.update(about["dropped"])
    split = [
        (before.file.name, part.file.name)
        for (before, ended), (part, begun) in pairwise(done)
        if ended["ends"][1] and ended["ends"][1] == begun["ends"][0]
    ]
    if split:
        log.warning(
            "%s: the last request of a file is the first of the next one, and is placed as two: %s, %s",
            counted(len(split), "request"), *split[0],
        )  # fmt: skip
    return {
        "dropped": dict(dropped),
        "relaxed": sum(about["relaxed"] for _, about in done),
        "split_requests": len(split),
    }
