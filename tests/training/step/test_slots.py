"""Tables with slots: who holds them, what a row begins with, and that what is trained is saved, exported and served."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash

from model.embeddings.id_map import IdMap
from model.features.block import BLOCKS, BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.id_lookup import lookup_of, words_of
from model.schema import Table
from model.scorer.scorer import Scorer
from tests.model.feeds import schema_of
from tests.training_data import (
    SCHEMA,
    Stopped,
    assert_same_checkpoints,
    feed_table,
    saved_state,
    stop_at,
    training_file,
)
from training.config import SlotsConfig, TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.validation import predict
from training.fit.id_report import TableReport, as_markdown
from training.publish.export import export
from training.run import state_file
from training.run.checkpoints import MANIFEST, STATE
from training.run.run import BEST, LAST, Run
from training.start.parent import open_parent
from training.start.warm_start import warm_start
from training.step.optimizers import Optimizers
from training.step.slots import ManagedIds, assign_rows_by_policy, with_vocabularies
from training.train import train

CPU = torch.device("cpu")
# Videos have fewer slots than there are (30), users more (40).
WITH_SLOTS = SCHEMA.replace("vocabulary: fitted, dim: 4", "slots: 20, dim: 4").replace("buckets: 100", "slots: 100")
EVERY_FIVE = {"slots": {"interval": 5}}


def words(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def holders(id_map: IdMap) -> dict[int, int]:
    return dict(zip(id_map.words_H.tolist(), id_map.rows_H.tolist(), strict=True))


def write_log(folder: Path, rows: int = 1500, *, as_strings: bool = False) -> pa.Table:
    """The tests' feed, its video ids as they are or as strings."""
    table = feed_table(rows)
    if as_strings:
        named = [f"v{video}" for video in table["video"].to_pylist()]
        lists = [ids if ids is None else [f"v{video}" for video in ids] for ids in table["history"].to_pylist()]
        table = table.set_column(table.column_names.index("video"), "video", pa.array(named))
        table = table.set_column(table.column_names.index("history"), "history", pa.array(lists, pa.list_(pa.string())))
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data" / "log.parquet")
    return table


def trained(folder: Path, schema: str = WITH_SLOTS, **changes: Any) -> Run:
    file = training_file(folder, schema=schema, **{"embeddings": EVERY_FIVE, **changes})
    return train(TrainingConfig.load(file), show=False)


@pytest.mark.parametrize("policy", ["lfu", "distance_lfu", "lru"])
def test_those_hold_slots_whom_the_policy_values_and_keep_their_rows(policy: Any) -> None:
    """Against the policies' definitions, kept by hand: counts, turns since last seen. Every step's ids are drawn so
    that a few are common. Ties are the policy's to break, so values are compared, not ids."""
    rng = np.random.default_rng(0)
    id_map = IdMap(12, CPU)
    counts: Counter[int] = Counter()
    last: dict[int, int] = {}
    for number in range(1, 40):
        drawn = [int(word) * 10**15 - 5 for word in rng.geometric(0.06, 60)]
        before = holders(id_map)
        given = assign_rows_by_policy(id_map, words(*drawn), SlotsConfig(policy=policy))
        after = holders(id_map)
        assert sorted(after) == id_map.words_H.tolist()
        assert set(after.values()) <= set(range(1, 13))
        assert len(set(after.values())) == len(after) == min(12, len(before.keys() | set(drawn)))
        assert {word: row for word, row in after.items() if word in before} == {
            word: row for word, row in before.items() if word in after
        }, "whoever stays has the same row"
        changed = {row for word, row in after.items() if before.get(word) != row}
        assert set(given.tolist()) == changed
        # An id that holds no slot is not remembered: it comes with what it was seen in this turn.
        seen = Counter(drawn)
        counts = Counter({word: counts[word] * (word in before) + seen[word] for word in before.keys() | seen.keys()})
        last = {word: number if word in seen else last[word] for word in counts}
        by_policy: dict[str, dict[int, float]] = {
            "lfu": {word: float(count) for word, count in counts.items()},
            "lru": {word: float(seen_in) for word, seen_in in last.items()},
            "distance_lfu": {word: count / (number - last[word] + 1) for word, count in counts.items()},
        }
        value = by_policy[policy]
        best = sorted(value.values(), reverse=True)[:12]
        # TorchRec divides in float32.
        np.testing.assert_allclose(sorted((value[word] for word in after), reverse=True), best, rtol=1e-6)
        counts = Counter({word: counts[word] for word in after})


def test_rows_of_ids_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(1)
    id_map = IdMap(50, CPU)
    known = [-(2**63), -1, 0, 1, 2**40, 2**63 - 2, *rng.integers(2, 1000, 30).tolist()]
    assign_rows_by_policy(id_map, words(*known), SlotsConfig())
    asked = [*known, 7_000, -7_000, 2**63 - 1]
    column = schema_of(WITH_SLOTS).features[3].column([*asked, None], "int64")
    travelling = torch.from_numpy(lookup_of(video_table(), FittedFeatures(), in_training=True)(column))
    row_of = holders(id_map)
    assert id_map.rows(travelling).tolist() == [row_of.get(one, 0) for one in asked] + [0]
    assert all(row_of[one] > 0 for one in known)
    assert IdMap(3, CPU).rows(travelling).tolist() == [0] * (len(asked) + 1)


def changed(state: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**state, **parts}


def test_a_state_that_no_map_has_is_refused_and_changes_nothing() -> None:
    id_map = IdMap(5, CPU)
    assign_rows_by_policy(id_map, words(3, 9, 9, -2), SlotsConfig())
    state, before = id_map.state_dict(), holders(id_map)
    for broken in (
        changed(state, words=words(9, 3, -2)),
        changed(state, words=words(3, 3, 9)),
        changed(state, words=words(-2, 3, 2**63 - 1)),
        changed(state, words=state["words"].float()),
        changed(state, words=state["words"][:2]),
        changed(state, rows=words(1, 2, 2)),
        changed(state, rows=words(0, 1, 2)),
        changed(state, rows=words(1, 2, 6)),
        changed(state, merits={"counts": words(1)}),
        changed(state, turns=-1),
        changed(state, turns=torch.tensor(1)),
    ):
        with pytest.raises(RuntimeError, match="of a table with 5 slots that are not in order"):
            id_map.load_state_dict(broken)
    assert holders(id_map) == before
    id_map.load_state_dict(state)
    assert holders(id_map) == before


def test_a_checkpoint_with_such_a_state_is_refused_by_name(tmp_path: Path) -> None:
    write_log(tmp_path)
    run = trained(tmp_path)
    best = run.path / BEST / STATE
    state = state_file.load(best)
    state["slots"]["video"]["rows"] += 10**6
    state_file.save(best, state)
    manifest = json.loads((best.parent / MANIFEST).read_text(encoding="utf-8"))
    content = best.read_bytes()
    manifest["files"][STATE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (best.parent / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ValueError, match="checkpoints/best: has the weights of another network"):
        run.best_ranker()


def video_table() -> Table:
    return next(table for table in schema_of(WITH_SLOTS).tables if table.name == "video")


@pytest.mark.parametrize("as_strings", [False, True], ids=["integers", "strings"])
def test_what_was_trained_is_exported_and_served(tmp_path: Path, as_strings: bool) -> None:
    """The service's answers to raw ids against the ranker in training with its map: known ids, evicted ones, new ones,
    and none."""
    write_log(tmp_path, as_strings=as_strings)
    schema = WITH_SLOTS.replace("slots: 20, dim", "slots: 20, dtype: string, dim") if as_strings else WITH_SLOTS
    run = trained(tmp_path, schema)
    scorer = Scorer.load(export(run, tmp_path / "models"))
    held = scorer.encoder.fitted.vocabularies
    assert len(held["video"]) == 20
    assert set(held["user_id"]) == set(range(-7, 33))
    ids = [f"v{video}" if as_strings else video for video in (*range(30), 10**6)] + [None]
    if as_strings:
        hashes = {np.uint64(xxhash.xxh3_64_intdigest(str(one).encode())).astype(np.int64) for one in ids[:30]}
        assert set(held["video"]) < hashes
    else:
        assert set(held["video"]) < set(range(30))
    user: dict[str, Any] = {"user_id": 3, "history": [ids[4], ids[5], ids[30]], "tab": "home"}
    candidates: dict[str, list[Any]] = {"video": ids, "duration": [5.0] * len(ids)}
    answers_NO = scorer.score_values(user, candidates, len(ids))
    blocks = []
    repeated = {name: [one] * len(ids) for name, one in user.items()}
    for block, values in zip(BLOCKS, (repeated, candidates), strict=True):
        columns = run.encoder.columns(block, values, len(ids))
        encoded = run.encoder.encode(block, columns, len(ids), as_served=True)
        blocks.append(BlockTensors.of(encoded.block))
    with torch.no_grad():
        logits_NO = run.best_ranker()(*blocks)
    # Sums in another order.
    np.testing.assert_allclose(answers_NO[:, 0], torch.sigmoid(logits_NO[:, 0]).numpy(), atol=1e-6)
    known = words_of(ids[:30] if as_strings else np.array(ids[:30]))
    is_unknown = np.array([*(word not in held["video"] for word in known), True, True])
    assert len(np.unique(answers_NO[is_unknown, 0])) == 1, "whoever holds no slot is answered by the OOV row"
    assert len(np.unique(answers_NO[~is_unknown, 0])) > 10
    user["user_id"] = 10**12
    assert not np.array_equal(scorer.score_values(user, candidates, len(ids)), answers_NO)


@pytest.mark.parametrize(
    ("tables", "engine"),
    [
        ({"kind": "rowwise_adagrad"}, "torchrec"),
        ({"kind": "adagrad"}, "torchrec"),
        ({"kind": "sgd", "learning_rate": 0.5}, "torchrec"),
        ({"kind": "adam"}, "torchrec"),
        ({"kind": "rowwise_adagrad"}, "torch"),
        ({"kind": "adagrad"}, "torch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_a_row_that_changes_hands_begins_as_the_oov_row_without_a_memory(
    tables: dict[str, Any], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after every interval, rows that were given are the OOV row, bit for bit, and their optimizer's states are
    0. All other rows and states are as they were."""
    write_log(tmp_path)
    renewed = []
    original = ManagedIds._copy_oov_row

    def look(self: ManagedIds, table: str, rows_R: torch.Tensor, optimizers: Optimizers) -> None:
        before = states(self, table, optimizers)
        original(self, table, rows_R, optimizers)
        after = states(self, table, optimizers)
        assert after.keys() == before.keys() >= {"weight"}
        others = torch.ones(len(after["weight"]), dtype=torch.bool)
        others[rows_R] = False
        for name, state in after.items():
            expected = state[0].expand_as(state[rows_R]) if name == "weight" else torch.zeros_like(state[rows_R])
            assert torch.equal(state[rows_R], expected), name
            assert torch.equal(state[others], before[name][others]), name
        had = [name for name, state in before.items() if name != "weight" and state[rows_R].any()]
        renewed.append((table, len(rows_R), len(had), len(after)))

    def states(managed: ManagedIds, table: str, optimizers: Optimizers) -> dict[str, torch.Tensor]:
        found = {"weight": managed._embeddings.table_weights()[table].clone()}
        if table in optimizers.momenta():
            found["momentum"] = optimizers.momenta()[table].clone()
        for parameter, state in optimizers._dense.state.items():
            if optimizers._name_of.get(id(parameter)) == table:
                found |= {name: one.clone() for name, one in state.items() if one.shape == parameter.shape}
        return found

    monkeypatch.setattr(ManagedIds, "_copy_oov_row", look)
    schema = WITH_SLOTS.replace("slots: 20", "slots: 8")
    # By what was seen last, of few rows a step: most ids hold a slot for a short time.
    embeddings = {"slots": {"policy": "lru", "interval": 2}, "engine": engine}
    run = trained(tmp_path, schema, batch_size=8, epochs=1, optimizer={"tables": tables}, embeddings=embeddings)
    videos = [(rows, had, kinds) for table, rows, had, kinds in renewed if table == "video"]
    assert sum(rows for rows, *_ in videos) > 100, "slots are given and taken away"
    if tables["kind"] != "sgd":
        assert any(had for _, had, _ in videos), "a row that is taken away had been learned"
        assert {kinds for *_, kinds in videos} == {3 if tables["kind"] == "adam" else 2}
    assert run.summary()["slots"]["video"] == {"slots": 8, "held": 8}


def test_a_run_that_is_killed_goes_on_with_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come between intervals, with what was counted since the last."""
    write_log(tmp_path)
    often: dict[str, Any] = {"embeddings": {"slots": {"interval": 7}}, "checkpoint_seconds": 1e-9, "epochs": 3}
    whole = trained(tmp_path, **often)
    file = TrainingConfig.load(tmp_path / "training.yaml", [f"output={tmp_path}/killed"])
    for step in (3, 9, 13):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Stopped):
                train(file, show=False)
    killed = train(file, show=False)
    assert_same_checkpoints(whole, killed)
    assert saved_state(killed.path / LAST)["slots"]["video"]["counts"].sum() > 0


def test_evaluation_of_what_settled_is_that_of_training(tmp_path: Path) -> None:
    """Tables of each task's own too: one map for all of them."""
    write_log(tmp_path)
    own = {"kind": "no_sharing", "levels": [8], "own_embeddings": True}
    run = trained(tmp_path, network={"fusion": own, "tower": [4]})
    ranker = run.best_ranker()
    done, settled_ranker = with_vocabularies(run, ranker)
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    columns = columns_from_arrow(run.schema, table)
    answers = [
        predict(one, Rows.encode(run.schema, of.encoder, table, columns, as_served=True))
        for of, one in ((run, ranker), (done, settled_ranker))
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    rows = {name: len(weight) for name, weight in settled_ranker.embeddings.table_weights().items()}
    assert {rows[f"video@{task.name}"] for task in run.schema.tasks} == {21}
    assert {rows[f"user_id@{task.name}"] for task in run.schema.tasks} == {41}


@pytest.mark.parametrize("from_version", [False, True], ids=["run", "version"])
def test_the_next_run_starts_with_the_ids_of_its_parent(tmp_path: Path, from_version: bool) -> None:
    """Before its first step a child answers as its parent, and a child with fewer slots has the most counted ids."""
    write_log(tmp_path)
    run = trained(tmp_path)
    path = export(run, tmp_path / "models") if from_version else run.path
    parent = open_parent(path)
    counts = parent.id_maps["video"]["merits"]["counts"]
    words_H = parent.id_maps["video"]["words"]
    assert tuple(words_H.tolist()) == parent.fitted.vocabularies["video"]
    for slots in (20, 40, 5):
        folder = tmp_path / f"{slots}"
        folder.mkdir()
        schema = schema_of(WITH_SLOTS.replace("slots: 20", f"slots: {slots}"))
        fitted = run.fitted
        child = Run(folder, run.config, schema, fitted)
        ranker = child.new_ranker()
        taken = warm_start(ranker, schema, fitted, run.config.network, parent)
        assert {one.state for one in taken if one.kind == "table"} == {"taken"}
        id_map = ranker.embeddings.id_maps.maps["video"]
        kept = sorted(int(counts[words_H == word]) for word in holders(id_map))
        assert kept == counts.sort().values[-slots:].tolist() == id_map.merits["counts"].sort().values.tolist()
        if slots >= 20:
            table = read_splits(run.config.data, schema, ("validation",))["validation"]
            columns = columns_from_arrow(schema, table)
            rows = Rows.encode(schema, child.encoder, table, columns, as_served=True)
            encoder = FeatureEncoder(parent.schema, parent.fitted)
            parents = Rows.encode(parent.schema, encoder, table, columns, as_served=True)
            # The parent's tables are read row by row, the child's by TorchRec's kernels: sums in another order.
            np.testing.assert_allclose(predict(ranker, rows), predict(parent.ranker(), parents), atol=1e-6)
    again = trained(tmp_path, init_from=str(path), output=str(tmp_path / "next"))
    done, _ = with_vocabularies(again, again.best_ranker())
    assert set(parent.fitted.vocabularies["user_id"]) <= set(done.fitted.vocabularies["user_id"])


def test_a_table_with_slots_has_no_rows_to_serve_before_it_is_known_who_holds_them() -> None:
    with pytest.raises(ValueError, match="table 'user_id': the ids that have its slots are absent"):
        FeatureEncoder(schema_of(WITH_SLOTS), FittedFeatures())
    # A training that ended before any turn: everything is unknown.
    schema = schema_of(WITH_SLOTS.replace("transform: [log1p, standardise], ", ""))
    none = FittedFeatures(vocabularies={"user_id": (), "video": ()}, numbers={"duration": ()})
    encoder = FeatureEncoder(schema, none)
    columns = encoder.columns("candidate", {"video": [1, None, -5]}, 3)
    encoded = encoder.encode("candidate", columns, 3, as_served=True)
    assert encoded.block.ids_BK.tolist() == [[0], [0], [0]]
    assert (encoded.missing["video"], encoded.oov["video"]) == (1, 2)


def test_the_report_says_what_slots_can_hold_at_best(tmp_path: Path) -> None:
    table = write_log(tmp_path)
    run = trained(tmp_path)
    report = {one["name"]: one for one in json.loads((run.path / "ids.json").read_text(encoding="utf-8"))["tables"]}
    days = np.array(table["day"])
    of_train = [
        *np.array(table["video"])[days <= 4].tolist(),
        *(one for ids, day in zip(table["history"].to_pylist(), days, strict=True) if day <= 4 for one in ids or ()),
    ]
    counts = Counter(of_train)
    held = sum(count for _, count in counts.most_common(20))
    assert report["video"]["oov_train"] == pytest.approx(1 - held / len(of_train))
    assert report["video"]["rows"] == 21
    assert report["user_id"]["oov_train"] == 0.0
    reports = [TableReport.from_mapping(one, "ids.json") for one in report.values()]
    assert "OOV of tables with slots (user_id, video): if their commonest ids held them all." in as_markdown(
        reports, 1, 1
    )
