"""Bits that flip and files that are cut short, anywhere in a version and its catalogue: refused, or of no effect."""

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.artifact.artifact import ArtifactError
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact, writable
from tests.items import tiny_items, write_items
from tests.reliability.sizes import SIZES
from training.publish.catalogue import build_catalogue


def answers_of(version: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Answers of a version, and the sums of its catalogue's items. Raises ArtifactError."""
    scorer = Scorer.load(version)
    (place,) = scorer.catalogue_generations()
    catalogue = scorer.open_catalogue(place)
    sums_NF = catalogue.sums(np.arange(catalogue.manifest.items))
    answers_NO = scorer.score_values(TINY_REQUEST["user"], TINY_REQUEST["candidates"]["features"], 4)
    return answers_NO, sums_NF.float().numpy()


@pytest.mark.parametrize("cuts", [False, True], ids=["flips", "cuts"])
def test_damage_is_refused_or_of_no_effect(tmp_path: Path, cuts: bool) -> None:
    version = publish_artifact(tmp_path / "models")
    catalogue = writable(build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(20))))
    expected = answers_of(version)
    files = sorted(file for folder in (version, catalogue) for file in folder.iterdir() if file.stat().st_size)
    chance = random.Random(20)
    refused = 0
    for number in range(SIZES.damages // 2):
        file = files[number % len(files)]
        kept = file.read_bytes()
        position = chance.randrange(len(kept))
        damaged = bytearray(kept)
        damaged[position] ^= 1 << chance.randrange(8)
        file.write_bytes(kept[:position] if cuts else damaged)
        try:
            found = answers_of(version)
        except ArtifactError as error:
            refused += 1
            assert str(version.parent) in str(error)  # noqa: PT017 - being read unchanged is fine too
        else:
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
        finally:
            file.write_bytes(kept)
    # White space of a manifest that became other white space, or its last line end that was cut.
    assert refused >= 0.97 * (SIZES.damages // 2)
