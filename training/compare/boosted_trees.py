"""The baseline `lightgbm` of a comparison: gradient-boosted trees, one model for each task, on the networks' inputs.

In: a cell's configuration. Out: a run folder as a network's cell has one (config.json, schema.json,
fitted_features.json, summary.json, predictions-<split>.npz), with lightgbm.json, and the model of each task as
LightGBM's text in trees-<task>.txt in place of checkpoints.

A binary task is learned by its log loss, a regression by its squared error on the scale that the networks learn. Masks
and row weights count as they do there, `positive_weight` and `loss_weight` have nothing to weigh here. The number of
trees is the one that does best on the validation split. A task whose training labels are all the same is answered by a
constant. How trees read a feed: tree_inputs.py.

Shapes: B rows, F inputs of the trees, O outputs.
"""

import logging
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.schema import FeedSchema
from model.tasks import Task
from training.compare.predictions import keep_outputs, truth_of
from training.compare.tree_config import SETTINGS, TreesConfig, kept_config
from training.compare.tree_inputs import Inputs, Targets, TreeInputs, extra_columns, targets_of
from training.config import SplitName
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import fit_features, read_splits
from training.run.run import SUMMARY, Run, library_versions, locked, refuse_no_run, write_json, write_text
from training.tasks import learned

if TYPE_CHECKING:
    from lightgbm import Booster

log = logging.getLogger(__name__)


def is_trees(run: Run) -> bool:
    """True where a cell's run has trees."""
    return (run.path / SETTINGS).exists()


def train_trees(config: TreesConfig) -> Run:
    """Fit one model per task. Raises ValueError for what the user can fix."""
    _lightgbm()
    started = time.monotonic()
    schema = config.feed_schema()
    refuse_no_run(config)
    with locked(config.output):
        tables = _tables(config, schema, ("train", "validation"))
        train, validation = tables["train"], tables["validation"]
        fitted = fit_features(schema, train, columns_from_arrow(schema, train))
        run = Run(config.output, config.base(), schema, fitted)
        settings = config.lightgbm
        write_json(run.path / SETTINGS, settings.model_dump(mode="json"))
        run.write()
        reader = _reader(config, schema, train)
        common_train, common_validation = reader.common(train), reader.common(validation)
        tasks: dict[str, Any] = {}
        for task in schema.tasks:
            targets = targets_of(task, train, config.data.weight)
            counting = targets.labels_B[targets.weights_B > 0]
            (run.path / _model_file(task)).unlink(missing_ok=True)
            if not len(counting) or counting.min() == counting.max():
                tasks[task.name] = {"constant": learned(task).constant_outputs(counting)}
                log.warning("%s: the training labels of task %s are all the same: a constant", run.path, task.name)
                continue
            model = _fit(
                config,
                task,
                (reader.with_encodings(common_train, targets, None), targets),
                (reader.with_encodings(common_validation, targets, validation), targets_of(task, validation, None)),
            )
            # Written up to the best tree, so that a reader needs no number of trees.
            write_text(run.path / _model_file(task), model.model_to_string(num_iteration=model.best_iteration))
            tasks[task.name] = {"trees": model.best_iteration, "leaves": _leaves(model)}
        _write_summary(run, tables, tasks, time.monotonic() - started)
    return run


def write_tree_predictions(run: Run, split: SplitName) -> Path:
    """Answer a split with a run's trees, and keep the answers as a network's are kept."""
    config = kept_config(run.path)
    assert isinstance(config, TreesConfig)
    tables = _tables(config, run.schema, ("train", split))
    reader = _reader(config, run.schema, tables["train"])
    common = reader.common(tables[split])
    outputs_BO = np.empty((tables[split].num_rows, len(run.schema.outputs)), np.float32)
    constants = _constants(run)
    for task in run.schema.tasks:
        columns = run.schema.output_slices[task.name]
        if task.name in constants:
            outputs_BO[:, columns] = constants[task.name]
            continue
        targets = targets_of(task, tables["train"], config.data.weight)
        inputs = reader.with_encodings(common, targets, tables[split])
        scores_BO = _scores(_load(run, task), inputs.inputs_BF)
        outputs_BO[:, columns] = learned(task).outputs_of_trees(scores_BO)
    return keep_outputs(run.path, split, outputs_BO, truth_of(run, split))


def tree_costs(runs: Sequence[Run]) -> dict[str, Any]:
    """Leaves of all tasks' trees, the mean over runs, and the sizes of a network, which trees do not have."""
    per_run = [sum(task.get("leaves", 0) for task in run.summary()["tasks"].values()) for run in runs]
    absent = (
        "parameters",
        "parameters_range",
        "embedding_parameters",
        "multiply_adds_per_row",
        "training_rows_per_cpu_second",
    )
    return {**dict.fromkeys(absent), "leaves": statistics.fmean(per_run)}


def tree_call(run: Run, candidates: int) -> Callable[[], object]:
    """A call that scores one request with every task's trees, inputs ready."""
    constants = _constants(run)
    models = [_load(run, task) for task in run.schema.tasks if task.name not in constants]
    inputs = [np.zeros((candidates, model.num_feature()), np.float32) for model in models]
    return lambda: [_scores(*pair) for pair in zip(models, inputs, strict=True)]


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except ImportError:
        raise ValueError(
            "the baseline lightgbm needs the package lightgbm, which is not installed: install requirements/train.txt"
        ) from None
    return lightgbm


def _tables(config: TreesConfig, schema: FeedSchema, splits: tuple[SplitName, ...]) -> dict[SplitName, pa.Table]:
    extra = extra_columns(config.lightgbm.encodings, config.data)
    return read_splits(config.data, schema, splits, extra=extra)


def _reader(config: TreesConfig, schema: FeedSchema, train: pa.Table) -> TreeInputs:
    settings = config.lightgbm
    return TreeInputs(schema, settings.encodings, settings.max_categories, train, config.seed)


def _fit(
    config: TreesConfig, task: Task, train: tuple[Inputs, Targets], validation: tuple[Inputs, Targets]
) -> "Booster":
    lightgbm = _lightgbm()
    settings = config.lightgbm
    if not train[0].names:
        raise ValueError("lightgbm: the feed has no input that trees read; give encodings or a larger max_categories")
    if not validation[1].weights_B.any():
        raise ValueError(
            f"task {task.name} has no label in the validation split, by which the number of trees is chosen"
        )
    parameters = {
        **learned(task).tree_objective,
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.min_rows_per_leaf,
        "bagging_fraction": settings.row_fraction,
        "bagging_freq": 1,
        "feature_fraction": settings.feature_fraction,
        "lambda_l2": settings.l2,
        "seed": config.seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    fitted = _dataset(lightgbm, *train)
    return lightgbm.train(  # type: ignore[no-any-return]
        parameters,
        fitted,
        settings.trees,
        valid_sets=[_dataset(lightgbm, *validation, reference=fitted)],
        callbacks=[lightgbm.early_stopping(settings.early_stopping, verbose=False)],
    )


def _dataset(lightgbm: ModuleType, inputs: Inputs, targets: Targets, reference: Any = None) -> Any:
    counts_B = targets.weights_B > 0
    return lightgbm.Dataset(
        inputs.inputs_BF[counts_B],
        targets.labels_B[counts_B],
        weight=targets.weights_B[counts_B],
        feature_name=inputs.names,
        categorical_feature=inputs.categories,
        reference=reference,
    )


def _scores(model: "Booster", inputs_BF: NDArray[np.float32]) -> NDArray[np.float64]:
    """scores_BO of the trees: logits, or values on the learned scale."""
    scores = np.asarray(model.predict(inputs_BF, raw_score=True, num_threads=1), np.float64)
    return scores.reshape(len(inputs_BF), -1)


def _model_file(task: Task) -> str:
    return f"trees-{task.name}.txt"


def _load(run: Run, task: Task) -> "Booster":
    lightgbm = _lightgbm()
    file = run.path / _model_file(task)
    try:
        model: Booster = lightgbm.Booster(model_str=file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, lightgbm.basic.LightGBMError) as error:
        raise ValueError(f"{file}: not a readable model ({error}); delete the folder and run compare again") from None
    return model


def _constants(run: Run) -> dict[str, list[float]]:
    return {name: task["constant"] for name, task in run.summary()["tasks"].items() if "constant" in task}


def _leaves(model: "Booster") -> int:
    trees = model.dump_model(num_iteration=model.best_iteration)["tree_info"]
    return sum(tree["num_leaves"] for tree in trees)


def _write_summary(run: Run, tables: dict[SplitName, pa.Table], tasks: dict[str, Any], seconds: float) -> None:
    summary = {
        "status": "finished",
        "tasks": tasks,
        "rows": {split: table.num_rows for split, table in tables.items()},
        "seconds": round(seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "libraries": {**library_versions(), "lightgbm": version("lightgbm")},
    }
    write_json(run.path / SUMMARY, summary)
