"""Starting from a parent's weights: what is taken answers as it did, whatever stands beside it now."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from model.artifact.artifact import TRAINED, write_manifest
from model.embeddings.embeddings import Embeddings
from model.embeddings.histories import activation_units
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures, NumberStep
from model.features.kinds import NumberFeature
from model.ranker import Network, NetworkConfig, Ranker
from model.schema import FeedSchema
from model.tasks.task import TargetScale
from tests.artifacts import writable
from tests.training_data import training_file, write_feed
from training.__main__ import main
from training.config import TrainingConfig
from training.publish.export import export
from training.run.run import Run
from training.start.parent import Parent, open_parent
from training.start.warm_start import Taken, print_taken, warm_start
from training.train import train

FEATURES = """
  - {name: user, side: user, kind: id, buckets: 40, dim: 8}
  - {name: seen, side: user, kind: id_list, table: item, max_length: 3, pooling: mean}
  - {name: age, side: user, kind: number, transform: [log1p, standardise]}
  - {name: item, side: candidate, kind: id, vocabulary: fitted, dim: 8}
  - {name: shop, side: candidate, kind: id, dtype: string, vocabulary: [a, b, c], dim: 4}
  - {name: price, side: candidate, kind: number, transform: log1p}
"""
TASKS = ["click", "like", "watch"]
NETWORKS: dict[str, Any] = {
    "adatt": {"kind": "adatt", "levels": [12, 8], "experts_per_task": 2, "shared_experts": 1},
    "adatt_sp": {"kind": "adatt_sp", "levels": [[12, 10], 8], "experts_per_task": 1},
    "mmoe": {"kind": "ml_mmoe", "levels": [12, 8], "num_experts": 3},
    "ple": {"kind": "ple", "levels": [12, 8], "experts_per_task": 2, "shared_experts": 2},
    "cross_stitch": {"kind": "cross_stitch", "levels": [12, 8]},
    "shared_bottom": {"kind": "shared_bottom", "levels": [12, 8]},
    "no_sharing": {"kind": "no_sharing", "levels": [12, 8]},
    "fixed_routing": {"kind": "fixed_random_routing", "levels": [12, 12, 8], "num_modules": 3},
    "learned_routing": {"kind": "learned_routing", "levels": [12, 8], "num_modules": 3},
    "own_embeddings": {"kind": "no_sharing", "levels": [12, 8], "own_embeddings": True},
    "crossed": {"kind": "shared_bottom", "levels": [12, 8]},
    "crossed_low_rank": {"kind": "shared_bottom", "levels": [12, 8]},
}
ITEMS = (3, 5, 8, 13, 21)
ROWS = 64


def schema_with(features: str = FEATURES, tasks: list[str] = TASKS) -> FeedSchema:
    kinds = {"watch": "regression"}
    content = {
        "name": "feed",
        "features": yaml.safe_load(features),
        "tasks": [{"name": task, "kind": kinds.get(task, "binary"), "label": f"is_{task}"} for task in tasks],
    }
    return FeedSchema.from_mapping(content, "test")


def fitted_for(schema: FeedSchema, items: tuple[int, ...] = ITEMS) -> FittedFeatures:
    numbers = [feature for feature in schema.features if isinstance(feature, NumberFeature)]
    return FittedFeatures(
        vocabularies={"item": items} if any(table.name == "item" for table in schema.tables) else {},
        numbers={
            feature.name: tuple(NumberStep(transform=transform, mean=1.0, scale=2.0) for transform in feature.transform)
            for feature in numbers
        },
        targets={
            task.name: TargetScale(mean=2.0, scale=1.5, upper=1e5) for task in schema.tasks if task.kind == "regression"
        },
    )


def ranker_for(schema: FeedSchema, fitted: FittedFeatures, config: NetworkConfig, seed: int) -> Ranker:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        embeddings = Embeddings(schema, FeatureEncoder(schema, fitted), for_each_task=config.has_own_embeddings)
        for weight in embeddings.table_weights().values():
            weight.normal_()
        units = activation_units(schema, len(schema.tasks) if config.has_own_embeddings else 1)
        return Ranker(embeddings, Network(config, embeddings.width, schema.output_counts, units=units)).eval()


def config_of(name: str) -> NetworkConfig:
    cross = {"crossed": {"layers": 2}, "crossed_low_rank": {"layers": 2, "rank": 3}}.get(name)
    return NetworkConfig.from_mapping({"fusion": NETWORKS[name], "cross": cross, "tower": [6]}, "test")


def parent_of(name: str, schema: FeedSchema | None = None, items: tuple[int, ...] = ITEMS) -> tuple[Parent, Ranker]:
    schema, config = schema or schema_with(), config_of(name)
    fitted = fitted_for(schema, items)
    ranker = ranker_for(schema, fitted, config, seed=1)
    tables = {name: weight.clone() for name, weight in ranker.embeddings.table_weights().items()}
    return Parent(Path("parent"), schema, fitted, config, ranker.network, tables, {}), ranker


def started(
    parent: Parent, schema: FeedSchema, items: tuple[int, ...] = ITEMS
) -> tuple[Ranker, FittedFeatures, list[Taken]]:
    fitted = fitted_for(schema, items)
    ranker = ranker_for(schema, fitted, parent.config, seed=2)
    return ranker, fitted, warm_start(ranker, schema, fitted, parent.config, parent)


def logits(ranker: Ranker, schema: FeedSchema, fitted: FittedFeatures) -> dict[str, NDArray[np.float32]]:
    """By task, logits of rows whose ids the parent's vocabulary knows, or nobody's does."""
    rng = np.random.default_rng(5)
    values: dict[str, list[Any]] = {
        "user": rng.integers(0, 1000, ROWS).tolist(),
        "seen": [rng.choice(ITEMS, int(rng.integers(0, 5))).tolist() for _ in range(ROWS)],
        "age": rng.lognormal(1, 1, ROWS).tolist(),
        "item": [None, 4, *rng.choice(ITEMS, ROWS - 2).tolist()],
        "shop": rng.choice(["a", "b", "c", "z"], ROWS).tolist(),
        "price": rng.lognormal(1, 1, ROWS).tolist(),
        "city": rng.integers(0, 1000, ROWS).tolist(),
        "rank": rng.normal(size=ROWS).tolist(),
    }
    encoder = FeatureEncoder(schema, fitted)
    blocks = []
    for side in ("request", "candidate"):
        asked = [feature.name for feature in schema.requested(side)]
        columns = encoder.columns(side, {name: values[name] for name in asked}, ROWS)
        blocks.append(BlockTensors.of(encoder.encode(side, columns, ROWS, as_served=True).block))
    answers_BO = ranker(*blocks).detach().numpy()
    return {task.name: answers_BO[:, place] for place, task in enumerate(schema.tasks)}


def states(taken: list[Taken], kind: str) -> dict[str, str]:
    return {one.name: one.state for one in taken if one.kind == kind}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_feed_answers_as_its_parent_bit_for_bit(name: str) -> None:
    parent, before = parent_of(name)
    ranker, fitted, taken = started(parent, parent.schema)
    expected = logits(before, parent.schema, parent.fitted)
    for task, logits_B in logits(ranker, parent.schema, fitted).items():
        np.testing.assert_array_equal(logits_B, expected[task])
    assert {one.state for one in taken} == {"taken"}


@pytest.mark.parametrize("name", NETWORKS)
def test_new_features_change_no_answer_and_others_move_with_their_columns(name: str) -> None:
    parent, before = parent_of(name)
    lines = FEATURES.strip("\n").splitlines()
    new = [
        "  - {name: city, side: user, kind: id, buckets: 30, dim: 12}",
        "  - {name: rank, side: candidate, kind: number}",
    ]
    schema = schema_with("\n".join([new[0], *reversed(lines), new[1]]))
    ranker, fitted, taken = started(parent, schema)
    expected = logits(before, parent.schema, parent.fitted)
    for task, logits_B in logits(ranker, schema, fitted).items():
        # The columns stand in another order, so float32 sums round otherwise.
        np.testing.assert_allclose(logits_B, expected[task], atol=2e-5)
    features = states(taken, "feature")
    assert {name for name, state in features.items() if state == "fresh"} == {"city", "rank"}


@pytest.mark.parametrize("name", ["adatt", "ple", "mmoe", "own_embeddings"])
def test_a_feature_that_is_gone_takes_its_part_of_every_sum_with_it(name: str) -> None:
    parent, before = parent_of(name)
    schema = schema_with("\n".join(line for line in FEATURES.strip("\n").splitlines() if "shop" not in line))
    ranker, fitted, taken = started(parent, schema)
    for table, weight in before.embeddings.table_weights().items():
        if table.startswith("shop"):
            weight.zero_()  # the same as no columns
    expected = logits(before, parent.schema, parent.fitted)
    for task, logits_B in logits(ranker, schema, fitted).items():
        np.testing.assert_allclose(logits_B, expected[task], atol=2e-5)
    assert states(taken, "feature")["shop"] == "dropped"


def test_rows_of_a_vocabulary_move_with_their_entries() -> None:
    parent, before = parent_of("adatt")
    ranker, fitted, taken = started(parent, parent.schema, items=(99, 21, 3, 13, 5, 8, 7))
    expected = logits(before, parent.schema, parent.fitted)
    for task, logits_B in logits(ranker, parent.schema, fitted).items():
        np.testing.assert_array_equal(logits_B, expected[task])
    assert next(one for one in taken if one.name == "item" and one.kind == "table").why == "2 entries new"


def test_fitted_features_keep_what_the_parent_learned_and_append_what_is_new() -> None:
    parent, _ = parent_of("adatt")
    targets = {name: TargetScale(mean=9.0, scale=9.0, upper=2e5) for name in parent.fitted.targets}
    fresh = fitted_for(parent.schema, items=(2, 5, 99)).model_copy(
        update={"numbers": {"age": (NumberStep(transform="log1p"),), "price": ()}, "targets": targets}
    )
    extended = parent.extended(parent.schema, fresh)
    assert extended.vocabularies["item"] == (*ITEMS, 2, 99)
    assert extended.numbers == parent.fitted.numbers
    assert targets
    for name, scale in parent.fitted.targets.items():
        assert extended.targets[name] == scale.model_copy(update={"upper": 2e5})


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("buckets: 40", "buckets: 41", "buckets was 40, is 41"),
        ("buckets: 40, dim: 8", "buckets: 40, dim: 12", "dim was 8, is 12"),
        ("buckets: 40", "vocabulary: [1, 2]", "buckets was 40, is None"),
    ],
)
def test_a_table_whose_rows_mean_something_else_starts_fresh_and_says_why(old: str, new: str, why: str) -> None:
    parent, _ = parent_of("adatt")
    schema = schema_with(FEATURES.replace(old, new))
    ranker, _, taken = started(parent, schema)
    table = next(one for one in taken if one.name == "user" and one.kind == "table")
    assert table.state == "fresh"
    assert why in table.why
    assert states(taken, "feature")["user"] == "fresh"
    fresh = ranker_for(schema, fitted_for(schema), parent.config, seed=2)
    assert torch.equal(ranker.embeddings.table_weights()["user"], fresh.embeddings.table_weights()["user"])


@pytest.mark.parametrize("name", ["shared_bottom", "no_sharing", "own_embeddings", "mmoe"])
def test_tasks_come_and_go_without_a_trace_where_nothing_is_mixed_by_task(name: str) -> None:
    parent, before = parent_of(name)
    schema = schema_with(tasks=["share", "watch", "click"])
    ranker, fitted, taken = started(parent, schema)
    expected, got = logits(before, parent.schema, parent.fitted), logits(ranker, schema, fitted)
    for task in ("watch", "click"):
        np.testing.assert_allclose(got[task], expected[task], atol=1e-5)
    network = states(taken, "network")
    assert network["tower.share"] == "fresh"
    assert network["tower.like"] == "dropped"


@pytest.mark.parametrize("name", ["adatt", "ple", "cross_stitch"])
def test_gates_and_stitches_go_by_the_experts_and_tasks_that_they_mix(name: str) -> None:
    parent, _ = parent_of(name)
    schema = schema_with(tasks=["share", "watch", "click"])
    ranker, fitted, _ = started(parent, schema)
    fresh = ranker_for(schema, fitted, parent.config, seed=2).network.slots(["share", "watch", "click"])
    ours, theirs = ranker.network.slots(["share", "watch", "click"]), parent.network.slots(TASKS)
    if name == "cross_stitch":
        # Ours: share, watch, click. Theirs: click, like, watch.
        stitch, old = ours["level.0.stitch"], theirs["level.0.stitch"]
        assert torch.equal(stitch[1:, 1:], old[[2, 0]][:, [2, 0]])
        assert torch.equal(stitch[0], fresh["level.0.stitch"][0])
        return
    for level in ("level.0", "level.1"):
        for part in ("weight", "bias"):
            gate, old = ours[f"{level}.gate.watch.{part}"], theirs[f"{level}.gate.watch.{part}"]
            if (
                name == "adatt"
            ):  # experts of share, watch, click (two each), shared. Theirs of click, like, watch, shared
                assert torch.equal(gate[2:7], old[[4, 5, 0, 1, 6]])
                assert torch.equal(gate[:2], fresh[f"{level}.gate.watch.{part}"][:2])
            else:  # a task of PLE sees its own experts and the shared ones
                assert torch.equal(gate, old)
        assert torch.equal(ours[f"{level}.expert.click.1.0.weight"], theirs[f"{level}.expert.click.1.0.weight"])
        fresh_expert = fresh[f"{level}.expert.share.0.0.weight"]
        assert torch.equal(ours[f"{level}.expert.share.0.0.weight"], fresh_expert)


@pytest.fixture(scope="module")
def published(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished_run, tmp_path_factory.mktemp("parents") / "models", "clips")


def test_a_version_gives_the_weights_that_its_run_had(finished_run: Run, published: Path) -> None:
    of_version, of_run = open_parent(published), open_parent(finished_run.path)
    assert of_version.tables.keys() == of_run.tables.keys()
    for name, weight in of_run.tables.items():
        assert torch.equal(of_version.tables[name], weight)
    state = of_version.network.state_dict()
    for name, weight in of_run.network.state_dict().items():
        assert torch.equal(state[name], weight)
    assert of_version.about["version"] == 1
    assert of_version.about["data_window"] == of_run.about["data_window"]


def test_what_cannot_be_a_parent_is_named(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither a published version .* nor a training run"):
        open_parent(tmp_path)
    damaged = tmp_path / "models" / "clips" / "1"
    writable(shutil.copytree(published, damaged))
    (damaged / TRAINED).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=rf"{TRAINED}: 10 bytes, the manifest says \d+; the file was changed"):
        open_parent(damaged)
    (damaged / TRAINED).unlink()
    content = json.loads((damaged / "manifest.json").read_text())
    del content["files"][TRAINED], content["checksum"]
    write_manifest(damaged, content)
    with pytest.raises(ValueError, match=rf"has no {TRAINED}.*export its run again"):
        open_parent(damaged)


def test_the_next_day_is_trained_from_the_version_of_the_day_before(
    finished_run: Run, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del finished_run
    write_feed(tmp_path / "data")
    split = {"column": "day", "train": 5, "validation": 6}
    data = {"path": str(tmp_path / "data"), "split": split, "group_by": "user_id"}
    config = training_file(tmp_path, data=data, epochs=1)
    given = ["train", str(config), "--init-from", str(published)]

    assert main(given) == 0

    run = Run.open(tmp_path / "run")
    parent = run.summary()["parent"]
    assert (parent["name"], parent["version"]) == ("clips", 1)
    assert parent["errors"].keys() == {"click", "like", "watch"}
    assert parent["worse"] == []
    # One epoch of one small day from scratch stays far from what six epochs of four days have learned.
    scratch = train(TrainingConfig.load(config, [f"output={tmp_path / 'scratch'}"]), show=False)
    assert run.summary()["best_objective"] < scratch.summary()["best_objective"] - 0.02
    said = capsys.readouterr().err
    assert f"started from {published}" in " ".join(said.split())
    assert "taken whole" in said

    version = export(run, tmp_path / "models", "clips")
    manifest = json.loads((version / "manifest.json").read_text())["training"]
    assert manifest["parent"]["checksum"] == json.loads((published / "manifest.json").read_text())["checksum"]
    assert manifest["parent"]["data_window"]["train"] == {"min": None, "max": 4}
    assert manifest["data_window"]["train"] == 5


def test_a_run_that_is_worse_than_its_parent_is_not_exported_unasked(published: Path, tmp_path: Path) -> None:
    write_feed(tmp_path / "data")
    changes = ["optimizer.dense.learning_rate=0.5", "optimizer.tables.learning_rate=2.0", "epochs=1"]
    changes += [f"init_from={published}", "init_from.rate_factor=1"]
    config = TrainingConfig.load(training_file(tmp_path), changes)
    run = train(config, show=False)
    assert run.summary()["parent"]["worse"]
    with pytest.raises(ValueError, match=r"task \w+ is answered worse than by the parent.*--accept-worse"):
        export(run, tmp_path / "models")
    assert export(run, tmp_path / "models", accept_worse=True).name == "1"


def test_a_rate_factor_multiplies_every_rate(published: Path, tmp_path: Path) -> None:
    """A quarter of the rates by the factor is a quarter of the rates by hand, bit for bit."""
    write_feed(tmp_path / "data")
    config = training_file(tmp_path, epochs=1, init_from=str(published))
    rates = TrainingConfig.load(config).optimizer
    by_hand = [
        f"optimizer.tables.learning_rate={rates.tables.learning_rate / 4}",
        f"optimizer.dense.learning_rate={rates.dense.learning_rate / 4}",
        f"output={tmp_path / 'by-hand'}",
    ]
    assert main(["train", str(config), "--rate-factor", "0.25"]) == 0
    slower_rates = TrainingConfig.load(config, [*by_hand, "init_from.rate_factor=1"])
    by_factor, slower = Run.open(tmp_path / "run"), train(slower_rates, show=False)
    assert by_factor.config.init_from is not None
    assert by_factor.config.init_from.path == published  # the short form of the file keeps its path
    assert by_factor.summary()["parent"]["rate_factor"] == 0.25
    for name, weight in by_factor.best_ranker().state_dict().items():
        assert torch.equal(weight, slower.best_ranker().state_dict()[name]), name


def test_a_rate_factor_without_a_parent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(training_file(tmp_path)), "--rate-factor", "0.5"]) == 2
    assert "--rate-factor 0.5: there is no parent; give --init-from too" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factor", ["0", "-1", "fast", ".inf"])
def test_a_rate_factor_that_is_no_factor_is_refused(
    factor: str, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = training_file(tmp_path, init_from=str(published))
    assert main(["train", str(config), f"--rate-factor={factor}"]) == 2
    assert "init_from.rate_factor" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_was_not_taken_is_printed_and_the_rest_counted(capsys: pytest.CaptureFixture[str]) -> None:
    parent, _ = parent_of("adatt_sp")
    _, _, all_taken = started(parent, schema_with())
    print_taken(all_taken, parent)
    kinds = Counter(one.kind for one in all_taken)
    said = capsys.readouterr().err.strip()
    assert said == (
        f"started from parent: {kinds['table']} tables, {kinds['feature']} features, {kinds['network']} parts of the "
        "network taken whole"
    )
    city = FEATURES + "  - {name: city, side: user, kind: id, buckets: 9, dim: 4}\n"
    _, _, taken = started(parent, schema_with(city.replace("name: age", "name: years")))
    print_taken(taken, parent)
    first, *rest = capsys.readouterr().err.splitlines()
    assert "5 features" in first
    shown = " ".join(rest)
    for name in ("city", "years", "age"):
        assert name in shown
    for name in ("shop", "price", "seen"):
        assert name not in shown
