"""Compiles a published version for CPUs of this host's kind: `<models>/<name>/derived/<version>/compiled/`.

Everything comes from the version itself: its network and weights are rebuilt from the manifest and `ranker.pt`, so it
may be compiled long after training, on the host that serves. Of float32 and, where the CPU multiplies it, bfloat16
(throughout, or over the raw row alone), the fastest is taken. Nothing is published that answers differently, or that is
not surely faster than TorchScript (training/publish/engine_choice.py). Compiling takes a C++ compiler and about a
minute. Running the result takes neither.

Shapes: N candidates, D their columns, F outputs over the raw row, X one of both, O outputs.
"""

import logging
import os
import platform
import shutil
import statistics
import tempfile
import uuid
import warnings
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.artifact.artifact import file_entry, hidden_folder, seal, sync, write_manifest
from model.artifact.compiled import (
    BY_COLUMNS,
    BY_SUMS,
    FORMAT_VERSION,
    PACKAGE,
    Acceptance,
    CompiledAnswers,
    Dtype,
    compiled_sums_dtype,
    folder_of,
    instructions,
)
from model.artifact.signature import SigningKey
from model.export.scoring_module import CandidateAnswers, SumsAnswers
from model.export.scoring_network import ScoringNetwork
from model.ranker import Answers, Network, NetworkConfig, row_width
from model.scorer.quality import Answer
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from training.publish.acceptance import Judge, Verdict, loosest
from training.publish.engine_choice import DECIDING_ROWS, LEVEL, Times, block_of, choose, interleaved
from training.publish.sign import sign

log = logging.getLogger(__name__)

COMPILED_ROWS = 512  # what the compiler tunes for
MEASURED_ROWS = (1, 10, *DECIDING_ROWS)
TORCHSCRIPT = "torchscript"
SETTINGS: dict[str, Any] = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "aot_inductor.package": True,
}
# A CPU without one of these multiplies bfloat16 by way of float32, slower than float32 itself.
BFLOAT16_SETS = ("avx512_bf16", "amx_bf16", "bf16", "svebf16")


def compile_version(
    version: Path,
    sign_key: SigningKey | None = None,
    *,
    accept: Acceptance = "tolerance",
    even_if_slower: bool = False,
) -> Path:
    """Make and publish the compiled package of a version, in place of one that is there, signed if a key is given.
    Returns its folder. `accept` is the loosest rule that its answers may be accepted by. `even_if_slower` is for
    measuring: a package that is not faster than TorchScript is published too.

    Raises ValueError where there is no compiler, or nothing worth publishing comes out."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(f"{compiler}: no such program; compiling takes a C++ compiler (Debian: apt-get install g++)")
    if not (sets := instructions()):
        raise ValueError("this system does not show its CPU's instruction sets (/proc/cpuinfo); compile on Linux")
    torch.set_num_threads(1)
    scorer = Scorer.load(version, engine="torchscript")
    judge = Judge(scorer, accept)
    rows_ND, sums_1F = _inputs(scorer)
    found: dict[Dtype, tuple[list[Any], Verdict]] = {}
    answers: dict[str, Answer] = {TORCHSCRIPT: scorer.module.answer}
    for dtype in dtypes_for(sets, accept):
        files = _compile(dense_answers(scorer, dtype), rows_ND, sums_1F)
        compiled = CompiledAnswers(_packed({BY_COLUMNS: files}))
        verdict = judge.by_columns(compiled, rows_ND, sums_1F)
        if verdict.acceptance is None:
            log.warning("%s is left out: %s", dtype, verdict.fault)
            continue
        found[dtype], answers[dtype] = (files, verdict), compiled
    if not found:
        raise ValueError(f"{version}: nothing compiled answers as TorchScript does; it serves on alone")
    times = _times(answers, rows_ND, sums_1F)
    choice = choose(times, TORCHSCRIPT)
    log.info("CPU time as a share of TorchScript's: %s", choice.described())
    fastest = choice.engine or min(found, key=lambda name: statistics.median(times[name][MEASURED_ROWS[-1]]))
    dtype = next(one for one in found if one == fastest)
    if choice.engine is None and not even_if_slower:
        raise ValueError(
            f"{version}: not surely faster than TorchScript on this host, nothing published; CPU time as a share of "
            f"TorchScript's, with its {LEVEL:.0%} interval: {choice.described()}"
        )
    files, verdict = found[dtype]
    files_of_sums, verdict_of_sums, times_of_sums = _compile_sums(scorer, judge, dtype, rows_ND, sums_1F)
    cpu_ms = {**_cpu_ms(times), **_cpu_ms(times_of_sums)}
    verdicts = {BY_COLUMNS: verdict, BY_SUMS: verdict_of_sums}
    measured = {
        "acceptance": loosest([*verdicts.values()]),
        "quality": {name: one.quality.model_dump() for name, one in verdicts.items() if one.quality is not None},
        "cpu_ms": cpu_ms,
        "against_torchscript": {rows: one.model_dump() for rows, one in choice.ratios[dtype].items()},
    }
    package = _packed({BY_COLUMNS: files, BY_SUMS: files_of_sums})
    path = _publish(scorer, dtype, package, sorted(sets), measured, sign_key)
    log.info("published %s; CPU ms by number of candidates: %s", path, cpu_ms)
    return path


def dtypes_for(sets: frozenset[str], accept: Acceptance) -> list[Dtype]:
    """Dtypes that are compiled for a CPU with these instruction sets, the most exact first.

    `bfloat16_row` is between the others in time and in error. On trained networks it is beyond the tolerance
    (`make bench-precision`), so it is compiled where quality may accept it."""
    if not sets & set(BFLOAT16_SETS):
        return ["float32"]
    return ["float32", "bfloat16_row", "bfloat16"] if accept == "quality" else ["float32", "bfloat16"]


def _inputs(scorer: Scorer) -> tuple[Tensor, Tensor]:
    """rows_ND and sums_1F of the version's largest golden request, its candidates repeated to COMPILED_ROWS."""
    request = max(scorer.golden_requests()["requests"], key=lambda one: len(one["candidates"]["id"]))
    count = len(request["candidates"]["id"])
    encoder = scorer.encoder
    user = encoder.columns("request", {name: [value] for name, value in request["user"].items()}, 1)
    columns = encoder.columns("candidate", request["candidates"]["features"], count)
    with torch.inference_mode():
        asked = encoder.encode("request", user, 1, as_served=True).block
        sums_1F = scorer.request_sums(asked)
        block = encoder.encode("candidate", columns, count, as_served=True).block
        rows_ND = scorer.candidate_rows(block, asked)
    return rows_ND[torch.arange(COMPILED_ROWS) % count].clone(), sums_1F.clone()


def dense_answers(scorer: Scorer, dtype: Dtype) -> CandidateAnswers:
    """The version's network as it is compiled: built from its sizes, then given its weights."""
    schema, tasks = scorer.schema, len(scorer.schema.tasks)
    config = NetworkConfig.from_mapping(scorer.manifest.network, str(scorer.artifact.path))
    rows = tasks if config.has_own_embeddings else 1
    network = Network(config, row_width(schema) * rows, schema.output_counts, schema.given)
    scoring = ScoringNetwork(
        network.frozen(tasks),
        network.tower_layers(),
        network.chains,
        # Their order is in the weights already.
        torch.arange(row_width(schema, "request"), row_width(schema)),
        is_compiled=True,
        dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        row_dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
    )
    dense = CandidateAnswers(scoring, Answers(schema, scorer.encoder.fitted)).eval()
    scoring.load_state_dict(scorer.module.answer.network.state_dict())
    return dense


def _compile_sums(
    scorer: Scorer, judge: Judge, dtype: Dtype, rows_ND: Tensor, sums_1F: Tensor
) -> tuple[list[Any], Verdict, Times]:
    """The function that answers by a catalogue's sums, compiled, the verdict on it, and its times beside TorchScript's.
    Raises ValueError where it does not answer as TorchScript does."""
    with torch.inference_mode():
        sums_NF = scorer.module.candidate_sums(rows_ND).to(compiled_sums_dtype(scorer.schema), copy=True)
    files = _compile(SumsAnswers(dense_answers(scorer, dtype)).eval(), sums_NF, sums_1F)
    compiled = CompiledAnswers(_packed({BY_SUMS: files}), BY_SUMS)
    verdict = judge.by_sums(compiled, rows_ND, sums_1F)
    if verdict.acceptance is None:
        raise ValueError(f"{scorer.artifact.path}: answers by sums, compiled in {dtype}: {verdict.fault}")
    answers: dict[str, Answer] = {f"{TORCHSCRIPT} by sums": scorer.module.answer_sums, f"{dtype} by sums": compiled}
    return files, verdict, _times(answers, sums_NF, sums_1F)


def _compile(module: nn.Module, candidates_NX: Tensor, sums_1F: Tensor) -> list[Any]:
    """The compiled files of a function of candidates, any number of them from two, and of the request's sums."""
    import torch._inductor  # the compiler: seconds to import

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's compiler warns of its own innards
        inputs = (candidates_NX, sums_1F)
        shapes = ({0: torch.export.Dim("N", min=2)}, None)
        program = torch.export.export(module, inputs, dynamic_shapes=shapes).module()
        files = torch._inductor.aot_compile(program, inputs, options=SETTINGS)
        assert isinstance(files, list), "a package is made of files"
        return files


def _packed(functions: dict[str, list[Any]]) -> bytes:
    """Compiled functions as one package."""
    from torch._inductor.package.package import package_aoti

    with tempfile.TemporaryDirectory(prefix="feedrank-compile-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / PACKAGE)
        package_aoti(path, functions)
        return Path(path).read_bytes()


def _times(answers: dict[str, Answer], candidates_NX: Tensor, sums_1F: Tensor) -> dict[str, dict[int, list[float]]]:
    """CPU seconds a call, by engine and number of candidates, in interleaved blocks."""
    times: dict[str, dict[int, list[float]]] = {name: {} for name in answers}
    with torch.inference_mode():
        for rows in MEASURED_ROWS:
            some_NX = candidates_NX[:rows]
            blocks = {name: block_of(partial(answer, some_NX, sums_1F)) for name, answer in answers.items()}
            for name, seconds in interleaved(blocks).items():
                times[name][rows] = seconds
    return times


def _cpu_ms(times: Times) -> dict[str, dict[str, float]]:
    return {
        name: {str(rows): round(statistics.median(seconds) * 1e3, 4) for rows, seconds in by_rows.items()}
        for name, by_rows in times.items()
    }


def _publish(
    scorer: Scorer,
    dtype: Dtype,
    package: bytes,
    sets: list[str],
    measured: dict[str, Any],
    sign_key: SigningKey | None,
) -> Path:
    final = folder_of(scorer.artifact)
    with hidden_folder(final.parent) as folder:
        (folder / PACKAGE).write_bytes(package)
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "kind": "compiled",
            "name": scorer.manifest.name,
            "version": scorer.manifest.version,
            "parent": scorer.manifest.checksum,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": str(torch.__version__),
            "machine": platform.machine(),
            "instructions": sets,
            "dtype": dtype,
            "tolerance": COMPILED_TOLERANCE,
            **measured,
            "files": {PACKAGE: file_entry(folder / PACKAGE)},
        }
        write_manifest(folder, content)
        if sign_key is not None:
            sign(folder, sign_key)
        seal(folder)
        if final.exists():
            # A folder that is not empty cannot be renamed over: the old one steps aside first.
            final.rename(final.with_name(f".replaced-{uuid.uuid4().hex}"))
        folder.rename(final)
        sync(final.parent)
        for old in final.parent.glob(".replaced-*"):
            shutil.rmtree(old, ignore_errors=True)
    return final
