"""A further kind of feature needs its two files and nothing else: encoder, ranker, /v2, explanations, logs, reports and
trees take it as it is."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.embeddings.embeddings import Embeddings
from model.features.block import BlockTensors, block_inputs
from model.features.encoder import ColumnErrors, FeatureEncoder, FittedFeatures
from model.ranker import row_width
from service.base.errors import Problem
from service.open_inference.infer import read, read_features
from service.open_inference.plan import TensorPlan, metadata_inputs
from tests.further_kind import VectorFeature, register, schema_with
from tests.service.open_inference.tensors import HEADER_LENGTH, Given, binary_body
from training.compare.tree_inputs import TreeInputs
from training.data.kinds.columns import column_from_arrow
from training.fit.tally import Tally

COVER = VectorFeature(name="cover", side="candidate", length=3, missing=0.5)
MOOD = VectorFeature(name="mood", side="user", length=2)
SCHEMA = schema_with(COVER, MOOD)
COVERS = [[1.0, -2.0, 3.0], None, [0.0, 4.0, 0.25]]
# By hand: a row of `missing` where there is none.
NUMBERS = [[1.0, -2.0, 3.0], [0.5, 0.5, 0.5], [0.0, 4.0, 0.25]]


@pytest.fixture
def encoder() -> FeatureEncoder:
    numbers = [number.name for block in ("request", "candidate") for number in block_inputs(SCHEMA, block).numbers]
    return FeatureEncoder(SCHEMA, FittedFeatures(numbers=dict.fromkeys(numbers, ())))


def test_it_is_encoded_and_embedded_among_the_numbers(encoder: FeatureEncoder) -> None:
    columns = encoder.columns("candidate", {"cover": COVERS, "video": [1, 2, 3]}, 3)
    encoded = encoder.encode("candidate", columns, 3, as_served=True)
    assert encoded.block.numbers_BQ.tolist() == NUMBERS
    assert encoded.missing == {"cover": 1}
    left_out = encoder.encode("candidate", {}, 2, as_served=True)
    assert left_out.block.numbers_BQ.tolist() == [[0.5] * 3] * 2
    request = encoder.encode("request", encoder.columns("request", {"mood": [[7, 8]]}, 1), 1, as_served=True)
    repeated = request.block._replace(
        ids_BK=request.block.ids_BK.repeat(3, axis=0),
        list_lengths_LB=request.block.list_lengths_LB.repeat(3, axis=1),
        numbers_BQ=request.block.numbers_BQ.repeat(3, axis=0),
    )
    rows_BD = Embeddings(SCHEMA, encoder)(BlockTensors.of(repeated), BlockTensors.of(encoded.block)).detach()
    assert row_width(SCHEMA, "request") + row_width(SCHEMA, "candidate") == rows_BD.shape[1] == 2 + 4 + 3
    torch.testing.assert_close(rows_BD[:, :2], torch.tensor([[7.0, 8.0]] * 3))
    torch.testing.assert_close(rows_BD[:, 6:], torch.tensor(NUMBERS))


@pytest.mark.parametrize("in_bytes", [False, True])
def test_tensors_of_the_open_inference_protocol(encoder: FeatureEncoder, in_bytes: bool) -> None:
    assert [entry["name"] for entry in metadata_inputs(encoder)][:2] == ["mood.values", "mood.lengths"]

    def columns(values: list[float], lengths: list[int]) -> list[list[float]]:
        given = [Given("cover.values", "FP32", values), Given("cover.lengths", "INT64", lengths)]
        body, headers = binary_body(given)
        if not in_bytes:
            body, headers = json.dumps({"inputs": [one.as_json() for one in given]}).encode(), {}
        inference = read(body, headers.get(HEADER_LENGTH))
        column = read_features(inference, encoder, TensorPlan(encoder), 10)[0].candidates["cover"]
        block = encoder.encode("candidate", {"cover": column}, len(lengths), as_served=True).block
        return [row.tolist() for row in block.numbers_BQ]

    assert columns([1, -2, 3, 0, 4, 0.25], [3, 3]) == [NUMBERS[0], NUMBERS[2]]
    with pytest.raises(Problem, match=r"inputs\.cover\.values: expected 3 numbers or null"):
        columns([1, 2, 3], [1, 2])


def test_faults_are_its_own(encoder: FeatureEncoder) -> None:
    with pytest.raises(ColumnErrors, match="feature 'cover' in row 1: expected 3 numbers or null"):
        encoder.columns("candidate", {"cover": [[1, 2, 3], [1]]}, 2)


def test_logs_trees_and_reports_read_it(encoder: FeatureEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    table = pa.table({"cover": COVERS, "mood": [[1.0, 2.0]] * 3, "video": [1, 2, 3], "clicked": [0, 1, 1]})
    columns = {
        feature.name: column_from_arrow(feature, encoder.dtype(feature.name), table.column(feature.name))
        for feature in SCHEMA.features
    }
    encoded = encoder.encode("candidate", columns, 3, as_served=False)
    assert encoded.block.numbers_BQ.tolist() == NUMBERS
    trees = TreeInputs(SCHEMA, None, 10, table, 0).common(table)
    assert trees.names == ["video", "cover.0", "cover.1", "cover.2", "mood.0", "mood.1"]
    np.testing.assert_array_equal(trees.inputs_BF[:, 1:4], [NUMBERS[0], [np.nan] * 3, NUMBERS[2]])
    tally = Tally(SCHEMA, {}, 1)
    tally.add(table, columns, np.zeros(3, np.int64))
    counts = tally.counts([[0]])[0].features["cover"]
    assert (counts.missing, counts.values, counts.longest, counts.cut) == (1, 6, 3, 0)
