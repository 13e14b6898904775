"""Publishes a run's best ranker: TorchScript, golden requests, reference histograms, manifest, one atomic rename.

The same weights leave TorchRec for plain tables in files that readers map, so that a service needs torch alone. Before
anything is visible, eager, scripted and reloaded modules must agree at several batch sizes, and the whole version must
load and answer its golden requests as a service would.

Shapes: N candidates, D their columns, B rows of a split, F outputs over the raw row, O outputs, R rows of all tables of
a width W.
"""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.artifact.artifact import CALIBRATION, FITTED, GOLDEN, RANKER, REFERENCE, REFERENCE_FEATURES, publish
from model.artifact.module_inputs import ModuleInputs
from model.artifact.quality_rows import QUALITY_ROWS
from model.artifact.reference import FeatureReference, of_features
from model.artifact.signature import SigningKey
from model.artifact.table_files import StackedTables
from model.calibration import AnswerMaps, Calibration, calibrated
from model.export.scoring_module import ScoringModule, to_torchscript, write_torchscript
from model.features import distinct
from model.features.block import BLOCKS, BlockTensors
from model.features.encoder import FeatureEncoder
from model.ranker import Ranker
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from training.config import SplitName
from training.data.kinds import in_log
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.calibration import calibrate
from training.evaluate.label_means import label_means
from training.evaluate.validation import predict
from training.publish.catalogue import build_catalogue
from training.publish.kept_rows import kept_rows
from training.publish.sign import sign
from training.run.data_record import warn_of_changes
from training.run.run import Run, library_versions, read_json
from training.start.lineage import refuse_worse
from training.start.parent import write_trained
from training.step.slots import id_map_states, with_vocabularies
from training.tasks.probability_maps import CalibrationKind

log = logging.getLogger(__name__)

# fp32 sums in another order differ by a few units in the last place, a probability by far less than this.
PARITY = 1e-6
# Room for other CPUs' kernels, and for expm1 that widens an error of the log scale. A wrong weight is far beyond it.
GOLDEN_TOLERANCE = 1e-4
PARITY_ROWS = (1, 2, 7, 100, 1000)
GOLDEN_CANDIDATES = (1, 2, 5, 20, 100)
HISTOGRAM_BINS = 50
HISTOGRAM_ROWS = 50_000


def export(
    run: Run,
    models: Path,
    name: str | None = None,
    *,
    calibration: CalibrationKind | None = None,
    segment_by: Sequence[str] = (),
    items: Path | None = None,
    sign_key: SigningKey | None = None,
    accept_worse: bool = False,
    vet: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Publish a finished run as the next version of `name` (default: the schema's) and returns its folder.

    Quantities learned on a transformed scale are mapped to means of their labels (training/evaluate/label_means.py).
    With `calibration` probabilities are calibrated (training/evaluate/calibration.py), its quantities mapped as they
    are served, and the manifest says what that changed, also by the values of the columns `segment_by`. With `items`,
    its catalogue is there before it is. With `sign_key`, both are signed. A run that is worse than the parent it
    started from (training/start/lineage.py) is refused unless `accept_worse`. `vet` has the last word on the whole
    version before it is visible: what it raises leaves nothing published."""
    summary = run.summary()
    if not accept_worse:
        refuse_worse(run, summary)
    warn_of_changes(run)
    torch.set_num_threads(run.config.threads)
    trained_run, trained = run, run.best_ranker()
    run, ranker = with_vocabularies(trained_run, trained)
    split: SplitName = "test" if run.config.data.has_test else "validation"
    tables = read_splits(run.config.data, run.schema, ("validation", split) if split == "test" else (split,))
    table, kept = tables[split], kept_rows(run, tables.pop("validation"))
    parity: dict[str, float] = {}
    metrics = _metrics(run)
    # Uncalibrated probabilities are of an item where the serving values put it. So are the quantities beside them.
    is_calibrated = calibration is not None
    means, about_means = label_means(run, ranker, as_served=is_calibrated, every_task=is_calibrated)
    if about_means:
        metrics["label_means"] = about_means
    fitted = Calibration(tasks=dict(means))
    if calibration is not None:
        probabilities, metrics["calibration"] = calibrate(run, ranker, calibration, segment_by)
        fitted = Calibration(tasks={**means, **probabilities.tasks})
    mappings = fitted.bound(run.schema)

    def write_files(folder: Path) -> None:
        stacked = StackedTables.written(ranker.embeddings.table_weights(), folder)
        module = ScoringModule(run.schema, run.fitted, ranker.network, stacked.starts).eval()
        scripted = to_torchscript(module)
        write_torchscript(scripted, folder / RANKER)
        write_trained(folder, ranker, stacked, id_map_states(trained))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            reloaded = torch.jit.load(str(folder / RANKER))  # type: ignore[no-untyped-call]
        inputs = ModuleInputs(run.schema, module, stacked.stacked_RW)
        parity.update(_parity(run, (trained_run, trained), module, (scripted, reloaded), inputs, table))
        _write(folder / FITTED, run.fitted.model_dump(mode="json"))
        _write(folder / GOLDEN, golden_requests(run.schema, run.encoder, module, inputs, mappings, table))
        _write(folder / REFERENCE, reference_scores(run, ranker, module, mappings, table))
        _write(folder / REFERENCE_FEATURES, reference_features(run, table).model_dump(mode="json"))
        if kept is not None:
            (folder / QUALITY_ROWS).write_bytes(kept.content())
        if fitted.tasks:
            _write(folder / CALIBRATION, fitted.model_dump(mode="json"))

    def check(folder: Path) -> None:
        Scorer.load(folder, engine="torchscript")
        if items is not None:
            # Before the version can be seen: requests by ids alone are not refused while its catalogue is being built.
            build_catalogue(folder, items, sign_key)
        if sign_key is not None:
            sign(folder, sign_key)
        vet(folder)

    path = publish(
        models,
        name or run.schema.name,
        write_files,
        schema=run.schema,
        user=user_feature(run.schema, run.config.data.group_by),
        network=run.config.network.model_dump(mode="json"),
        training={
            "run": run.path.name,
            "config": run.config.model_dump(mode="json", by_alias=True, exclude={"output", "feed", "init_from"}),
            "data_window": run.config.data.bounds.model_dump(mode="json"),
            **{key: summary[key] for key in ("epochs", "best_epoch", "best_objective", "rows", "seconds")},
            **{key: summary[key] for key in ("parent",) if key in summary},
        },
        metrics=metrics,
        libraries=library_versions(),
        check=check,
    )
    shown = ", ".join(f"{pair} {error:.1e}" for pair, error in parity.items())
    log.info("published %s; largest differences: %s", path, shown)
    return path


def user_feature(schema: FeedSchema, group_by: str | None) -> str | None:
    """The feature that names the user of a request: the one of single ids on side `user` that `data.group_by` names.
    None where that is another column."""
    ids = {name for table in schema.tables for name in table.features}
    named = [one for one in schema.features if one.name == group_by and one.name in ids]
    return next((one.name for one in named if one.side == "user" and not one.is_list), None)


def _metrics(run: Run) -> dict[str, Any]:
    """Every evaluation of the run, by split. Its intervals stay with its values."""
    paths = sorted(run.path.glob("evaluation-*.json"))
    if not paths:
        log.warning("%s has no evaluation: the manifest will have no metrics; run evaluate before export", run.path)
    return {path.stem.removeprefix("evaluation-"): read_json(path) for path in paths}


def _parity(
    run: Run,
    trained: tuple[Run, Ranker],
    module: ScoringModule,
    stored: tuple[torch.jit.ScriptModule, torch.jit.ScriptModule],
    inputs: ModuleInputs,
    table: pa.Table,
) -> dict[str, float]:
    """The largest difference of the eager module from the trained ranker, and of the `stored` modules, scripted and
    reloaded, from the eager one. The ranker sums in TorchRec's kernels. Inputs are one user and 1 to 1000 candidates.
    Differences are relative where an answer is above 1.

    Raises ValueError where a difference is beyond PARITY."""
    trained_encoder, ranker = trained[0].encoder, trained[1]
    scripted, reloaded = stored
    worst = dict.fromkeys(("eager against trained", "scripted against eager", "reloaded against eager"), 0.0)
    for rows in PARITY_ROWS:
        picked = table.slice(0, rows)
        columns = columns_from_arrow(run.schema, picked)
        first = columns_from_arrow(run.schema, picked.slice(0, 1))
        count = picked.num_rows
        blocks = []
        for encoder in (run.encoder, trained_encoder):
            request = encoder.encode("request", first, 1, as_served=True).block
            blocks.append((request, encoder.encode("candidate", columns, count, as_served=True).block))
        (request, candidate), (as_trained, candidates) = blocks
        with torch.no_grad():
            rows_ND, sums_1F = inputs.candidate_rows(candidate, request), inputs.request_sums(request)
            repeated = distinct.picked(as_trained, np.zeros(count, np.intp))
            logits_NO = ranker(BlockTensors.of(repeated), BlockTensors.of(candidates))
            eager_NO = module(rows_ND, sums_1F)
            for pair, answers_NO, expected_NO in (
                ("eager against trained", eager_NO, module.answer.answers(logits_NO)),
                ("scripted against eager", scripted(rows_ND, sums_1F), eager_NO),
                ("reloaded against eager", reloaded(rows_ND, sums_1F), eager_NO),
            ):
                error_NO = (answers_NO - expected_NO).abs() / expected_NO.abs().clamp(min=1.0)
                worst[pair] = max(worst[pair], float(error_NO.max()))
    for pair, error in worst.items():
        # TorchRec's kernels sum in another order, and expm1 widens that. The exported module has no such excuse.
        limit = PARITY * (_rounding(run.schema) if pair == "eager against trained" else 1.0)
        if not error <= limit:
            raise ValueError(f"{pair}: the answers differ by {error:.2g}, over {limit:g}")
    return worst


def _rounding(schema: FeedSchema) -> float:
    # expm1 makes of an absolute error of the log scale (values up to about 20) a relative one of that size.
    of_log = 20.0 if any(not task.is_probability for task in schema.tasks) else 1.0
    # Sums over a list, whose weights have rounded as well.
    return of_log * (5.0 if schema.attentions else 1.0)


def golden_requests(
    schema: FeedSchema,
    encoder: FeatureEncoder,
    module: ScoringModule,
    inputs: ModuleInputs,
    mappings: AnswerMaps,
    table: pa.Table,
) -> dict[str, Any]:
    """Requests made of real rows, with calibrated answers: users and candidates spread evenly over the split.

    One further request sends nothing but ids and one candidate without any feature: defaults are part of the contract.
    """
    requests = []
    spread = np.linspace(0, table.num_rows - 1, num=sum(GOLDEN_CANDIDATES) + len(GOLDEN_CANDIDATES)).astype(np.int64)
    for count in GOLDEN_CANDIDATES:
        user_row, candidate_rows, spread = spread[:1], spread[1 : count + 1], spread[count + 1 :]
        user = table.take(user_row).to_pylist()[0]
        candidates = table.take(candidate_rows)
        requests.append(
            {
                "user": {f.name: in_log(f).request_value(user[f.name]) for f in schema.requested("request")},
                "candidates": {
                    "id": [f"c{row}" for row in range(count)],
                    "features": {
                        f.name: [in_log(f).request_value(value) for value in candidates.column(f.name).to_pylist()]
                        for f in schema.requested("candidate")
                    },
                },
            }
        )
    requests.append({"user": {}, "candidates": {"id": ["nothing-known"], "features": {}}})
    for request in requests:
        request["expected"] = _answers(schema, encoder, module, inputs, mappings, request)
    return {"tolerance": GOLDEN_TOLERANCE, "requests": requests}


def _answers(
    schema: FeedSchema,
    encoder: FeatureEncoder,
    module: ScoringModule,
    inputs: ModuleInputs,
    mappings: AnswerMaps,
    request: dict[str, Any],
) -> dict[str, Any]:
    rows = len(request["candidates"]["id"])
    user = encoder.columns("request", {name: [value] for name, value in request["user"].items()}, 1)
    candidates = encoder.columns("candidate", request["candidates"]["features"], rows)
    with torch.no_grad():
        asked = encoder.encode("request", user, 1, as_served=True).block
        rows_ND = inputs.candidate_rows(encoder.encode("candidate", candidates, rows, as_served=True).block, asked)
        answers_NO = calibrated(module(rows_ND, inputs.request_sums(asked)).numpy(), mappings)
    return dict(zip(schema.outputs, answers_NO.T.astype(float).tolist(), strict=True))


def reference_scores(
    run: Run, ranker: Ranker, module: ScoringModule, mappings: AnswerMaps, table: pa.Table
) -> dict[str, Any]:
    """Per output a histogram of the answers on the newest split, against which drift is measured.

    Even bins over [0, 1] for probabilities, over the middle 99.8 % for quantities (outer bins take the rest)."""
    newest = table.slice(0, HISTOGRAM_ROWS)
    rows = Rows.encode(run.schema, run.encoder, newest, columns_from_arrow(run.schema, newest), as_served=True)
    with torch.no_grad():
        answers_BO = module.answer.answers(torch.from_numpy(predict(ranker, rows))).numpy()
    answers_BO = calibrated(answers_BO, mappings).astype(np.float64)
    histograms = {}
    is_probability = [task.is_probability for task in run.schema.tasks for _ in task.outputs]
    for output, answers_B, is_bounded in zip(run.schema.outputs, answers_BO.T, is_probability, strict=True):
        low, high = (0.0, 1.0) if is_bounded else np.quantile(answers_B, (0.001, 0.999))
        edges = np.linspace(low, high if high > low else low + 1.0, HISTOGRAM_BINS + 1)
        counts, _ = np.histogram(np.clip(answers_B, edges[0], edges[-1]), bins=edges)
        histograms[output] = {"edges": edges.tolist(), "counts": counts.tolist(), "mean": float(answers_B.mean())}
    return histograms


def reference_features(run: Run, table: pa.Table) -> FeatureReference:
    """The bins of every feature on the same rows, against which the drift of requests is measured."""
    newest = table.slice(0, HISTOGRAM_ROWS)
    columns = columns_from_arrow(run.schema, newest)
    encoded = {block: run.encoder.encode(block, columns, newest.num_rows, as_served=True).block for block in BLOCKS}
    return of_features(run.schema, encoded)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
