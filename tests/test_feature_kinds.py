"""Kinds of features stay in one place: a file each in model/ and training/, and the registries that name them.

Other code asks a feature for what it needs. A name of a kind anywhere else is where the next kind would be forgotten.
"""

import ast
from pathlib import Path
from typing import get_args

import pytest

from model.features.kinds import KINDS, Feature
from tests.model.feeds import everything
from tests.named_kinds import named_kinds
from training.data.kinds import in_log

ROOT = Path(__file__).resolve().parent.parent
HOMES = ("model/features/kinds", "training/data/kinds")
CLASSES = {kind.__name__: kind for kind in get_args(get_args(Feature)[0])}


def lines_of(source: str) -> list[int]:
    """Lines that name a kind. `id_list` is found in any text, as no other word is it."""
    texts = [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value == "id_list"
    ]
    return [*named_kinds(source, CLASSES, KINDS), *texts]


def test_kinds_are_named_in_their_files_and_registries_alone() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("model", "training", "service", "deploy")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.parent.relative_to(ROOT)) not in HOMES
        for line in lines_of(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("source", [
    "from model.features.kinds import NumberFeature",
    "isinstance(feature, kinds.IdFeature)",
    "ids = [f for f in features if type(f) is IdListFeature]",
    "feature.kind == 'number'",
    "what = {'id_list': 3}",
])  # fmt: skip
def test_a_named_kind_is_found(source: str) -> None:
    assert lines_of(source) == [1]


def test_every_kind_has_a_file_in_model_and_one_in_training() -> None:
    features = {feature.kind: feature for feature in everything().features}
    assert features.keys() == set(KINDS)
    for kind, feature in features.items():
        assert type(feature).__module__ == f"model.features.kinds.{kind}"
        assert type(in_log(feature)).__module__ == f"training.data.kinds.{kind}"
