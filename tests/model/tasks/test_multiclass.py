"""Tasks of several classes: rules of the schema, outputs, and probabilities against numpy's softmax."""

import json

import numpy as np
import pytest
import torch
import yaml

from model.export.scoring_module import to_torchscript
from model.features.encoder import FittedFeatures
from model.ranker import Answers
from model.schema import FeedSchema
from model.tasks.task import TargetScale

FEED = """
name: feed
features: [{{name: item, side: candidate, kind: number}}]
tasks: [{}]
"""
RATING = "{name: rating, kind: multiclass, label: stars, classes: {1: bad, 2: fair, 3: good}}"
MOOD = "{name: mood, kind: multiclass, label: mood, classes: [calm, loud]}"
CITIZEN = "{name: citizen, kind: multiclass, label: c, classes: {Born in the U.S.: born, '1': one, '007': bond}}"
CLICK = "{name: click, kind: binary, label: clicked, negative_sampling_rate: 0.25}"
WATCH = "{name: watch, kind: regression, label: ms, transform: log1p}"


def schema_of(*tasks: str) -> FeedSchema:
    return FeedSchema.from_mapping(yaml.safe_load(FEED.format(", ".join(tasks))), "feed.yaml")


def test_a_task_has_an_output_a_class() -> None:
    schema = schema_of(CLICK, RATING, WATCH, MOOD)
    assert schema.outputs == ("click", "rating.bad", "rating.fair", "rating.good", "watch", "mood.calm", "mood.loud")
    places = [range(7)[columns] for columns in schema.output_slices.values()]
    assert places == [range(1), range(1, 4), range(4, 5), range(5, 7)]
    assert schema.output_counts == (1, 3, 1, 2)


def test_a_schema_is_the_same_after_json() -> None:
    schema = schema_of(RATING, MOOD, CITIZEN)
    content = json.loads(json.dumps(schema.model_dump(mode="json", exclude_none=True)))
    assert FeedSchema.from_mapping(content, "manifest.json") == schema


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("[calm]", "2 to 32 classes, got 1"),
        ("{1: calm}", "2 to 32 classes, got 1"),
        (f"[{', '.join(f'c{number}' for number in range(33))}]", "2 to 32 classes, got 33"),
        ("[calm, calm]", "class 'calm' is there 2 times"),
        ("{1: calm, 2: calm}", "class 'calm' is there 2 times"),
        ("[calm, very loud]", "String should match pattern"),
        ("[calm, a.b]", "String should match pattern"),
        ("{no: calm, yes: loud}", "False is no value of an integer or string column"),
        ("{0.5: calm, 1: loud}", "0.5 is no value of an integer or string column"),
        ("{9007199254740993: calm, 1: loud}", "9007199254740993 is no value of an integer or string column"),
        ("calm", "a list of names, or a mapping from the column's values"),
        ("[no, yes]", "got true or false"),
    ],
)
def test_faults_of_classes_are_named(classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"feed\.yaml: tasks\.0") as error:
        schema_of(f"{{name: mood, kind: multiclass, label: mood, classes: {classes}}}")
    assert message in str(error.value)


def test_answers_are_each_kind_s_own() -> None:
    fitted = FittedFeatures(targets={"watch": TargetScale(mean=2.0, scale=1.5, upper=100.0)})
    answers = Answers(schema_of(CLICK, RATING, MOOD, WATCH), fitted)
    logits = np.random.default_rng(0).normal(0, 3, (50, 7))
    expected = np.empty_like(logits)
    expected[:, 0] = 1 / (1 + np.exp(-(logits[:, 0] + np.log(0.25))))
    for columns in (slice(1, 4), slice(4, 6)):
        powers = np.exp(logits[:, columns])
        expected[:, columns] = powers / powers.sum(axis=1, keepdims=True)
    expected[:, 6] = np.clip(np.expm1(logits[:, 6] * 1.5 + 2.0), 0, 100.0)
    logits_NO = torch.tensor(logits, dtype=torch.float32)
    # float32 against float64: expm1 of numbers up to about 12 widens their rounding.
    np.testing.assert_allclose(answers(logits_NO).numpy(), expected, rtol=2e-6, atol=1e-7)
    scripted = to_torchscript(answers)
    assert torch.equal(scripted(logits_NO), answers(logits_NO))
