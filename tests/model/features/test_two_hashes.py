"""Tables with two hashes: a vector is the sum of two rows, by hashes and sums written out here, trained and served."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from numpy.typing import NDArray

from model.embeddings.embeddings import Embeddings, FusedOptimizer
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Answers
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_SCHEMA, publish_artifact
from tests.items import tiny_items, write_items
from tests.model.embeddings.test_embeddings import WITHOUT_LISTS, encoded, weights
from tests.model.features.test_encoder import split_mix_64
from tests.model.feeds import FEED, columns_of, encoder_of, random_rows, schema_of
from tests.model.test_ranker import build, reloaded, request_and_candidates
from training.publish.catalogue import build_catalogue

Array = NDArray[np.float64]


def with_two_hashes(text: str) -> FeedSchema:
    """The same feed, every hashed table with two."""
    lines = (line.replace(", dim:", ", hashes: 2, dim:") if "buckets:" in line else line for line in text.splitlines())
    return schema_of("\n".join(lines))


def vector(table: Array, buckets: int, value: object) -> Array:
    """The sum of the two rows of one raw id, or of the two OOV rows. The halves stand one below the other."""
    rows = (0, 0)
    if value is not None:
        word = split_mix_64(value) if isinstance(value, int) else xxhash.xxh3_64_intdigest(str(value).encode())
        rows = (word % buckets + 1, split_mix_64(word) % buckets + 1)
    vector: Array = table[rows[0]] + table[buckets + 1 + rows[1]]
    return vector


def pooled(table: Array, buckets: int, values: object, most: int, pooling: str) -> Array:
    vectors = [vector(table, buckets, value) for value in (values if isinstance(values, list) else [])[-most:]]
    total: Array = np.sum(vectors, axis=0) if vectors else np.zeros(table.shape[1])
    return total / max(len(vectors), 1) if pooling == "mean" else total


@pytest.mark.parametrize("text", [FEED, WITHOUT_LISTS], ids=["with lists", "without lists"])
@pytest.mark.parametrize("fused", [None, "rowwise_adagrad"])
@pytest.mark.parametrize("for_each_task", [False, True])
def test_the_vector_of_an_id_is_the_sum_of_its_two_rows(
    fused: FusedOptimizer | None, text: str, for_each_task: bool
) -> None:
    schema = with_two_hashes(text)
    rows = random_rows(np.random.default_rng(3), 40)
    encoder = encoder_of(schema, rows)
    torch.manual_seed(0)
    embeddings = Embeddings(schema, encoder, fused=fused, learning_rate=0.1, for_each_task=for_each_task)
    request, candidate = encoded(encoder, rows, 40)
    rows_BD = embeddings(BlockTensors.of(request), BlockTensors.of(candidate)).detach().numpy()
    tables = weights(embeddings)
    tag = "tags" if text is FEED else "last_tag"
    expected: dict[str, Callable[[int, str], Array]] = {
        "user_id": lambda row, owner: vector(tables[f"user_id{owner}"], 50, rows["user_id"][row]),
        "video_id": lambda row, owner: vector(tables[f"video_id{owner}"], 40, rows["video_id"][row]),
    }
    if text is FEED:
        expected["history"] = lambda row, owner: pooled(tables[f"video_id{owner}"], 40, rows["history"][row], 4, "mean")
        expected["tags"] = lambda row, owner: pooled(tables[f"tags{owner}"], 30, rows["tags"][row], 3, "sum")
        expected["last_tag"] = lambda row, owner: vector(tables[f"{tag}{owner}"], 30, rows["last_tag"][row])
    owners = [f"@{task.name}" for task in schema.tasks] if for_each_task else [""]
    names = [
        name
        for block in ("request", "candidate")
        for kind in ("id", "id_list", "number")
        for name in [feature.name for feature in schema.block(block) if feature.kind == kind]
    ]
    dims = {name: table.dim for table in schema.tables for name in table.features}
    widths = [dims.get(name, 1) for name in names]
    for part, owner in zip(np.split(rows_BD, len(owners), axis=1), owners, strict=True):
        for name, columns in zip(names, np.split(part, np.cumsum(widths)[:-1], axis=1), strict=True):
            if name in expected:
                by_hand = np.stack([expected[name](row, owner) for row in range(40)])
                # Sums of up to 14 float32 entries of order 1.
                np.testing.assert_allclose(columns, by_hand, atol=1e-6, rtol=1e-6, err_msg=f"{name}{owner}")


def test_a_step_moves_both_rows_of_an_id_and_no_other() -> None:
    schema = with_two_hashes(FEED)
    rows = random_rows(np.random.default_rng(0), 200)
    encoder = encoder_of(schema, rows)
    embeddings = Embeddings(schema, encoder, fused="sgd", learning_rate=0.5)
    before = weights(embeddings)
    one = {name: values[:1] for name, values in rows.items()} | {"user_id": [-7]}
    request, candidate = encoded(encoder, one, 1)
    embeddings(BlockTensors.of(request), BlockTensors.of(candidate)).sum().backward()
    word = split_mix_64(-7)
    moved = np.zeros((102, 8))
    moved[[word % 50 + 1, 51 + split_mix_64(word) % 50 + 1]] = -0.5
    np.testing.assert_allclose(weights(embeddings)["user_id"] - before["user_id"], moved, atol=1e-6)


@pytest.mark.parametrize("fused", [None, "rowwise_adagrad"])
def test_what_is_exported_answers_as_what_was_trained(fused: FusedOptimizer | None) -> None:
    schema = with_two_hashes(FEED)
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    ranker, module, inputs = build(schema, encoder, fused)
    scripted, again = reloaded(module)
    answers = Answers(schema, encoder.fitted)
    for batch in (1, 7, 256):
        one, repeated, candidates = request_and_candidates(encoder, batch, seed=batch)
        with torch.no_grad():
            expected = answers(ranker(BlockTensors.of(repeated), BlockTensors.of(candidates)))
            for exported in (module, scripted, again):
                for _ in range(2):  # the executor optimises after its first runs
                    got = exported(inputs.candidate_rows(candidates), inputs.request_sums(one))
                    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def rows_of(values: Sequence[object], buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both rows of each value, as the encoder's pair has them."""
    dtype = "string" if isinstance(values[0], str) else "int64"
    schema = schema_of(
        f"name: f\nfeatures: [{{name: x, side: candidate, kind: id, dtype: {dtype}, buckets: {buckets}, hashes: 2, "
        "dim: 4}]\ntasks: [{name: click, kind: binary, label: clicked}]"
    )
    encoder = FeatureEncoder(schema, FittedFeatures())
    assert encoder.rows_of_table == {"x": 2 * (buckets + 1)}
    columns = columns_of(schema, {"x": values})
    pairs = encoder.encode("candidate", columns, len(values), as_served=True).block.ids_BK[:, 0]
    return pairs // (buckets + 1), pairs % (buckets + 1)


@pytest.mark.parametrize("values", [
    list(range(30_000)),
    list(range(0, 30_000 * 1024, 1024)),
    [f"item-{value}" for value in range(30_000)],
], ids=["consecutive", "multiples of 1024", "strings"])  # fmt: skip
def test_both_rows_are_shared_as_seldom_as_chance_has_it(values: list[object]) -> None:
    """Chance that an id of n in B**2 pairs meets another: 1 - (1 - 1/B**2)**(n - 1), 3 % here. With one hash of as many
    rows all of them meet. Correlated hashes would meet more often by far."""
    buckets, count = 1000, len(values)
    first, second = rows_of(values, buckets)
    for rows in (first, second):
        assert rows.min() >= 1
        assert rows.max() <= buckets
    _, times = np.unique(first * 10_000 + second, return_counts=True)
    sharing = int(times[times > 1].sum())
    expected = count * (1 - (1 - 1 / buckets**2) ** (count - 1))
    # Twice the number of meetings, which is Poisson: five of its deviations.
    assert abs(sharing - expected) < 5 * 2 * np.sqrt(expected / 2)


def test_the_largest_tables_pairs_fit_int64() -> None:
    buckets = 2**31 - 2
    first, second = rows_of([-(2**63), 0, 17], buckets)
    words = [split_mix_64(value) for value in (-(2**63), 0, 17)]
    assert first.tolist() == [word % buckets + 1 for word in words]
    assert second.tolist() == [split_mix_64(word) % buckets + 1 for word in words]


def test_a_catalogue_answers_as_features_do(tmp_path: Path) -> None:
    """Pairs of large tables are beyond int32, in which a catalogue stores other ids."""
    features: list[dict[str, Any]] = [
        {**feature, "buckets": 90_000, "hashes": 2} if "buckets" in feature else feature
        for feature in TINY_SCHEMA["features"]
    ]
    schema = FeedSchema.from_mapping({**TINY_SCHEMA, "features": features}, "test")
    version = publish_artifact(tmp_path, schema=schema)
    items = tiny_items(60)
    build_catalogue(version, write_items(tmp_path / "items.parquet", items))
    scorer = Scorer.load(version)
    [place] = scorer.catalogue_generations()
    scorer.catalogue = scorer.open_catalogue(place)
    assert scorer.catalogue.manifest.ids_dtype == "int64"
    picked = [7, 0, 59, 7]
    values = {name: [column[row] for row in picked] for name, column in items.items() if name != "id"}
    block = scorer.encoder.encode("candidate", scorer.encoder.columns("candidate", values, 4), 4, as_served=True).block
    named = scorer.catalogue.block(scorer.catalogue.rows_of([f"item-{row}" for row in picked]))
    assert block.ids_BK.max() > 2**31
    for name, array in block._asdict().items():
        np.testing.assert_array_equal(getattr(named, name), array, err_msg=name)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("vocabulary: fitted, hashes: 2, dim: 4", "hashes applies to buckets alone"),
        ("table: y, hashes: 2", "takes hashes from table 'y'"),
        ("buckets: 5, hashes: 3, dim: 4", "hashes"),
    ],
)
def test_hashes_belong_to_a_hashed_table_of_its_own(keys: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema_of(
            f"name: f\nfeatures: [{{name: x, side: candidate, kind: id, {keys}}}, "
            "{name: y, side: candidate, kind: id, buckets: 3, dim: 4}]\n"
            "tasks: [{name: click, kind: binary, label: clicked}]"
        )
