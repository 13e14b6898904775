"""Attention over lists while it is trained, against loops in float64: what a batch reads, and what its gradient is."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from model.embeddings.embeddings import Embeddings, Engine, FusedOptimizer, owners
from model.embeddings.histories import activation_units
from model.features.block import BlockTensors, EncodedBlock
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.schema import FeedSchema
from tests.model.attention import attention_feed, random_block, rows_by_hand

RATE = 0.5
# By way of reading: rows that a bag has place by place, rows of a parameter, rows with sparse gradients.
WAYS: list[tuple[Engine, FusedOptimizer | None]] = [("torchrec", "sgd"), ("torchrec", None), ("torch", "sgd")]


def built(
    engine: Engine, fused: FusedOptimizer | None, *, own: bool = False, mlp: bool = False
) -> tuple[FeedSchema, Embeddings]:
    """Embeddings with rows large enough for scores to differ."""
    schema = attention_feed(mlp=mlp)
    encoder = FeatureEncoder(schema, FittedFeatures(numbers={"age": (), "price": ()}))
    torch.manual_seed(0)
    embeddings = Embeddings(schema, encoder, fused=fused, learning_rate=RATE, engine=engine, for_each_task=own)
    for weight in embeddings.table_weights().values():
        weight.normal_(std=1.5)
    embeddings.use_units(activation_units(schema, len(schema.tasks) if own else 1))
    return schema, embeddings


def doubles(embeddings: Embeddings) -> dict[str, Tensor]:
    """The tables in float64."""
    return {name: weight.double().clone().requires_grad_() for name, weight in embeddings.table_weights().items()}


def gradients(embeddings: Embeddings, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each table's gradient, of fused ones by the step that they took."""
    if embeddings.fused_optimizers():
        after = embeddings.table_weights()
        return {name: (weight.detach() - after[name]) / RATE for name, weight in before.items()}
    found = {}
    for key, parameter in embeddings.named_parameters():
        assert parameter.grad is not None
        found[key.removesuffix(".weight").rpartition(".")[2]] = parameter.grad.to_dense()
    return found


@pytest.mark.parametrize("own", [False, True], ids=["shared tables", "own tables"])
@pytest.mark.parametrize("mlp", [False, True], ids=["dot", "mlp"])
@pytest.mark.parametrize(("engine", "fused"), WAYS)
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_rows_and_gradients_are_those_of_loops(
    engine: Engine, fused: FusedOptimizer | None, rows: int, own: bool, mlp: bool
) -> None:
    schema, embeddings = built(engine, fused, own=own, mlp=mlp)
    tables = doubles(embeddings)
    units = {name: copy.deepcopy(unit).double() for name, unit in embeddings.units.items()}
    assert bool(units) == mlp
    blocks = random_block(schema, "request", rows, rows), random_block(schema, "candidate", rows, rows + 1)
    rows_BD = embeddings(*map(BlockTensors.of, blocks))
    assert rows_BD.shape == (rows, embeddings.width)
    expected_BD = rows_by_hand(schema, blocks, tables, owners(schema, for_each_task=own), units)
    # Sums of some float32 products of order 1.
    torch.testing.assert_close(rows_BD.double(), expected_BD, atol=5e-6, rtol=5e-6)
    cotangent_BD = torch.randn(rows_BD.shape, generator=torch.Generator().manual_seed(1))
    (rows_BD * cotangent_BD).sum().backward()
    (expected_BD * cotangent_BD).sum().backward()  # type: ignore[no-untyped-call]
    found = gradients(embeddings, tables)
    assert found.keys() == tables.keys()
    for name, table in tables.items():
        assert table.grad is not None
        torch.testing.assert_close(found[name].double(), table.grad, atol=1e-4, rtol=1e-4, msg=name)
    for key, unit in units.items():
        for mine, by_hand in zip(embeddings.units[key].parameters(), unit.parameters(), strict=True):
            assert mine.grad is not None
            assert by_hand.grad is not None
            torch.testing.assert_close(mine.grad.double(), by_hand.grad, atol=1e-4, rtol=1e-4, msg=str(key))


@pytest.mark.parametrize(("engine", "fused"), WAYS)
def test_lists_that_are_all_empty_are_zeros_and_teach_nothing(engine: Engine, fused: FusedOptimizer | None) -> None:
    schema, embeddings = built(engine, fused)
    request, candidate = random_block(schema, "request", 5, 1), random_block(schema, "candidate", 5, 2)
    request = EncodedBlock(
        request.ids_BK, np.zeros(0, np.int64), np.zeros_like(request.list_lengths_LB), request.numbers_BQ
    )
    rows_BD = embeddings(BlockTensors.of(request), BlockTensors.of(candidate))
    assert (rows_BD[:, -12:] == 0).all()
    before = doubles(embeddings)
    rows_BD[:, -12:].sum().backward()
    for gradient in gradients(embeddings, before).values():
        assert (gradient == 0).all()


def test_an_order_of_items_changes_no_more_than_rounding() -> None:
    schema, embeddings = built("torchrec", "sgd")
    request, candidate = random_block(schema, "request", 1, 3), random_block(schema, "candidate", 1, 4)
    length = 5
    values_V = np.concatenate([np.arange(1, length + 1), request.list_values_V[request.list_lengths_LB[0, 0] :]])
    lengths_LB = request.list_lengths_LB.copy()
    lengths_LB[0] = length
    one = request._replace(list_values_V=values_V, list_lengths_LB=lengths_LB)
    other = one._replace(list_values_V=np.concatenate([values_V[:length][::-1], values_V[length:]]))
    with torch.no_grad():
        found = [embeddings(BlockTensors.of(block), BlockTensors.of(candidate)) for block in (one, other)]
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)
