"""TorchRec tables against sums over rows by hand: what a batch reads, and what one fused step writes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.embeddings.embeddings import Embeddings, Engine, FusedOptimizer
from model.features.block import BlockTensors, block_inputs
from model.features.encoder import EncodedBlock, FeatureEncoder, FittedFeatures
from model.features.kinds import IdListFeature
from model.schema import Block, FeedSchema
from tests.model.feeds import FEED, Rows, columns_of, encoder_of, everything, random_rows, schema_of

Array = NDArray[np.float64]
FUSED: tuple[FusedOptimizer, ...] = ("rowwise_adagrad", "adagrad", "sgd")
BATCHES = (1, 2, 7, 512)
# Every feature with one id, two of them sharing a table.
WITHOUT_LISTS = "\n".join(
    line.replace("table: tags", "table: author") for line in FEED.splitlines() if "kind: id_list" not in line
)
BLOCKS: tuple[Block, Block] = ("request", "candidate")


def encoded(encoder: FeatureEncoder, rows: Rows, count: int) -> tuple[EncodedBlock, EncodedBlock]:
    columns = columns_of(encoder.schema, rows)
    request, candidate = (
        encoder.encode(
            block, {f.name: columns[f.name] for f in encoder.schema.block(block)}, count, as_served=False
        ).block
        for block in BLOCKS
    )
    return request, candidate


def read_by_hand(
    schema: FeedSchema, blocks: Sequence[EncodedBlock], tables: dict[str, Array]
) -> tuple[Array, list[list[tuple[str, int, int, float]]]]:
    """rows_BD by loops, and per row which (table, table row, first column of rows_BD, share) it is made of."""
    table_of = {name: table for table in schema.tables for name in table.features}
    outputs, reads = [], []
    for row in range(len(blocks[0].ids_BK)):
        parts: list[Array] = []
        made_of: list[tuple[str, int, int, float]] = []
        width = 0
        for name, block in zip(BLOCKS, blocks, strict=True):
            ids, lists, _ = block_inputs(schema, name)
            starts = np.concatenate([[0], np.cumsum(block.list_lengths_LB)])
            bags: list[tuple[str, list[int], float]] = [
                (feature, [int(block.ids_BK[row, position])], 1.0) for position, feature in enumerate(ids)
            ]
            for position, feature in enumerate(lists):
                cell = position * block.list_lengths_LB.shape[1] + row
                values = block.list_values_V[starts[cell] : starts[cell + 1]].tolist()
                bags.append((feature.name, values, 1 / max(len(values), 1) if feature.pooling == "mean" else 1.0))
            for feature_name, values, share in bags:
                table = table_of[feature_name]
                total = np.zeros(table.dim)
                for value in values:
                    total = total + share * tables[table.name][value]
                    made_of.append((table.name, value, width, share))
                parts.append(total)
                width += table.dim
            parts.append(block.numbers_BQ[row].astype(np.float64))
            width += len(parts[-1])
        outputs.append(np.concatenate(parts))
        reads.append(made_of)
    return np.stack(outputs), reads


def build(schema: FeedSchema, encoder: FeatureEncoder, fused: FusedOptimizer | None, rate: float = 0.1) -> Embeddings:
    torch.manual_seed(0)
    return Embeddings(schema, encoder, fused=fused, learning_rate=rate)


def weights(embeddings: Embeddings) -> dict[str, Array]:
    return {name: weight.double().numpy().copy() for name, weight in embeddings.table_weights().items()}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("fused", [None, *FUSED])
def test_rows_are_the_pooled_rows_of_the_tables(fused: FusedOptimizer | None, batch: int) -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    embeddings = build(schema, encoder, fused)
    blocks = encoded(encoder, random_rows(np.random.default_rng(batch), batch), batch)
    expected, _ = read_by_hand(schema, blocks, weights(embeddings))
    rows = embeddings(BlockTensors.of(blocks[0]), BlockTensors.of(blocks[1]))
    assert rows.shape == (batch, embeddings.width)
    # Sums of up to 7 float32 entries of order 1.
    np.testing.assert_allclose(rows.detach().numpy(), expected, atol=1e-6, rtol=1e-6)


def test_lists_of_one_table_have_poolings_of_their_own() -> None:
    mean = "  - {name: topics, side: candidate, kind: id_list, table: tags, max_length: 3, pooling: mean}\n"
    schema = schema_of(FEED.replace("  - {name: last_tag", f"{mean}  - {{name: last_tag"))
    rows = random_rows(np.random.default_rng(0), 200)
    rows["topics"] = rows["tags"]
    encoder = encoder_of(schema, rows)
    embeddings = build(schema, encoder, "sgd")
    tables = weights(embeddings)
    blocks = encoded(encoder, rows, 200)
    expected, _ = read_by_hand(schema, blocks, tables)
    found = embeddings(BlockTensors.of(blocks[0]), BlockTensors.of(blocks[1]))
    # Sums of up to 3 float32 entries of order 1.
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("engine", ["torchrec", "torch"])
def test_a_seed_draws_the_weights_that_published_results_began_with(engine: Engine) -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    torch.manual_seed(7)
    found = Embeddings(schema, encoder, fused="sgd", learning_rate=0.1, engine=engine).table_weights()
    averaged = {f.table or f.name for f in schema.features if isinstance(f, IdListFeature) and f.pooling == "mean"}
    assert {table.name not in averaged for table in schema.tables[:-1]} == {True, False}
    torch.manual_seed(7)
    for table in [
        *(t for t in schema.tables if t.name in averaged),
        *(t for t in schema.tables if t.name not in averaged),
    ]:
        rows = encoder.rows_of_table[table.name]
        assert torch.equal(found[table.name], torch.empty(rows, table.dim).uniform_(-(rows**-0.5), rows**-0.5))


def test_tables_have_a_row_for_every_id_and_one_for_the_unknown() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    shapes = {name: weight.shape for name, weight in build(schema, encoder, None).table_weights().items()}
    authors = len(encoder.fitted.vocabularies["author"])
    assert shapes == {
        "user_id": (51, 8), "tab": (4, 4), "video_id": (41, 8), "author": (authors + 1, 4), "tags": (31, 4),
        "position": (4, 4),
    }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("fused", FUSED)
def test_one_fused_step_is_the_optimizer_by_hand(fused: FusedOptimizer, batch: int) -> None:
    """Two steps, as Adagrad's state matters from the second on. An id read twice in a batch has one summed gradient."""
    schema, rate = everything(), 0.1
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    embeddings = build(schema, encoder, fused, rate)
    tables = weights(embeddings)
    squares = {name: np.zeros_like(table) for name, table in tables.items()}
    for step in range(2):
        blocks = encoded(encoder, random_rows(np.random.default_rng(step), batch), batch)
        cotangent = np.random.default_rng(step + 10).normal(size=(batch, embeddings.width))
        rows = embeddings(BlockTensors.of(blocks[0]), BlockTensors.of(blocks[1]))
        (rows * torch.from_numpy(cotangent).float()).sum().backward()
        gradients = {name: np.zeros_like(table) for name, table in tables.items()}
        for row, made_of in enumerate(read_by_hand(schema, blocks, tables)[1]):
            for name, entry, column, share in made_of:
                gradients[name][entry] += share * cotangent[row, column : column + tables[name].shape[1]]
        for name, gradient in gradients.items():
            if fused == "sgd":
                tables[name] -= rate * gradient
                continue
            square = gradient**2
            squares[name] += square.mean(axis=1, keepdims=True) if fused == "rowwise_adagrad" else square
            tables[name] -= rate * gradient / (np.sqrt(squares[name]) + 1e-8)
        for name, table in weights(embeddings).items():
            # float32 state and weights of order 1 after two steps.
            np.testing.assert_allclose(table, tables[name], atol=5e-6, err_msg=f"{name} after step {step}")


@pytest.mark.parametrize("text", [FEED, WITHOUT_LISTS], ids=["with lists", "without lists"])
def test_unfused_tables_are_parameters_with_the_summed_gradient(text: str) -> None:
    schema = schema_of(text)
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    embeddings = build(schema, encoder, None)
    blocks = encoded(encoder, random_rows(np.random.default_rng(1), 16), 16)
    rows = embeddings(BlockTensors.of(blocks[0]), BlockTensors.of(blocks[1]))
    rows.sum().backward()
    tables = weights(embeddings)
    np.testing.assert_allclose(rows.detach().numpy(), read_by_hand(schema, blocks, tables)[0], atol=1e-6, rtol=1e-6)
    expected = {name: np.zeros_like(table) for name, table in tables.items()}
    for made_of in read_by_hand(schema, blocks, tables)[1]:
        for name, entry, _, share in made_of:
            expected[name][entry] += share
    parameters = dict(embeddings.named_parameters())
    assert len(parameters) == len(tables)
    for key, parameter in parameters.items():
        name = key.removeprefix("collection.embedding_bags.").removesuffix(".weight")
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], atol=1e-5)


@pytest.mark.parametrize("fused", [None, *FUSED])
def test_the_fused_optimizer_is_there_where_it_is_asked_for(fused: FusedOptimizer | None) -> None:
    schema = everything()
    embeddings = build(schema, encoder_of(schema, random_rows(np.random.default_rng(0), 200)), fused)
    assert (embeddings.parameters_outside() == []) == (fused is not None)
    assert (embeddings.fused_optimizers() != []) == (fused is not None)


def test_a_changed_learning_rate_takes_effect_at_step() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    embeddings = build(schema, encoder, "sgd", rate=0.5)
    ((optimizer, _),) = embeddings.fused_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    before = weights(embeddings)
    blocks = encoded(encoder, random_rows(np.random.default_rng(1), 4), 4)
    embeddings(BlockTensors.of(blocks[0]), BlockTensors.of(blocks[1])).sum().backward()
    for name, table in weights(embeddings).items():
        np.testing.assert_array_equal(table, before[name])


def test_a_feed_of_numbers_needs_no_table() -> None:
    schema = schema_of(
        "name: f\nfeatures: [{name: a, side: candidate, kind: number}, {name: b, side: user, kind: number}]\n"
        "tasks: [{name: click, kind: binary, label: clicked}]"
    )
    encoder = FeatureEncoder(schema, FittedFeatures(numbers={"a": (), "b": ()}))
    embeddings = Embeddings(schema, encoder, fused="sgd", learning_rate=0.1)
    assert embeddings.table_weights() == {}
    assert embeddings.fused_optimizers() == []
    blocks = encoded(encoder, {"a": [1, 2], "b": [3, 4]}, 2)
    assert embeddings(BlockTensors.of(blocks[0]), BlockTensors.of(blocks[1])).tolist() == [[3, 1], [4, 2]]
