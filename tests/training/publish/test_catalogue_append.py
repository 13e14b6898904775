"""Appends to a catalogue against a full build of the same items: answers, what is removed, what is refused."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.artifact.artifact import ArtifactError
from model.artifact.catalogue import Catalogue, generations
from model.artifact.item_source import MOST_OVERLAYS, UNKNOWN, item_sources
from model.scorer.scorer import EngineChoice, Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.items import Items, tiny_items, write_items
from training.__main__ import main
from training.publish import catalogue as catalogue_module
from training.publish.catalogue import KEPT_GENERATIONS, build_catalogue, one_writer
from training.publish.catalogue_append import append_to_catalogue, first_merged

# What a catalogue should have: features by id.
Expected = dict[str, dict[str, Any]]


def some_items(numbers: list[int], seed: int) -> Expected:
    """Items of these numbers, with features drawn for them."""
    drawn = tiny_items(len(numbers), seed)
    features = {name: column for name, column in drawn.items() if name != "id"}
    return {f"item-{n}": {name: column[k] for name, column in features.items()} for k, n in enumerate(numbers)}


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version is loaded by the first who asks for it."""
    load, loaded = Scorer.load, dict[Path, Scorer]()

    def load_once(path: Path, engine: EngineChoice = "auto") -> Scorer:
        if path not in loaded:
            loaded[path] = load(path, engine)
        return loaded[path]

    monkeypatch.setattr(Scorer, "load", load_once)


def as_columns(items: Expected) -> Items:
    features = [name for name in tiny_items(0) if name != "id"]
    return {"id": list(items), **{name: [one[name] for one in items.values()] for name in features}}


def written(path: Path, items: Expected) -> Path:
    return write_items(path, as_columns(items))


def removal(path: Path, ids: list[str]) -> Path:
    pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), path)
    return path


def opened(version: Path) -> tuple[Scorer, Catalogue]:
    """The version and the newest generation of its catalogue."""
    scorer = Scorer.load(version)
    scorer.catalogue = scorer.open_catalogue(scorer.catalogue_generations()[-1])
    return scorer, scorer.catalogue


def answers_of(scorer: Scorer, ids: list[str]) -> bytes:
    """The answers for a user, by the candidates' ids alone."""
    named = scorer.name(ids, {}, {})
    assert named is not None
    return scorer.score(scorer.encoder.encode_request(TINY_REQUEST["user"]), named).answers_NO.tobytes()


def assert_as_built(version: Path, expected: Expected, everyone: list[str], folder: Path) -> None:
    """Compare the newest generation with a full build of the same items, its sums side by side and in their layers."""
    rebuilt = Path(shutil.copytree(version, folder / "models" / "tiny" / version.name))
    build_catalogue(rebuilt, written(folder / "all.parquet", expected))
    (built_scorer, built), (scorer, catalogue) = opened(rebuilt), opened(version)
    is_known = [one in expected for one in everyone]
    rows_N = catalogue.rows_of(everyone)
    assert (rows_N != UNKNOWN).tolist() == is_known
    assert catalogue.items == built.items == len(expected)
    ids = [one for one in everyone if one in expected]
    rows_N, built_N = catalogue.rows_of(ids), built.rows_of(ids)
    for got, wanted in zip(catalogue.block(rows_N), built.block(built_N), strict=True):
        np.testing.assert_array_equal(got, wanted)
    answers = answers_of(built_scorer, ids)
    assert answers_of(scorer, ids) == answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.artifact.catalogue._COPIED_BYTES", 0)
        assert answers_of(opened(version)[0], ids) == answers
    for feature in range(2):
        for got, wanted in zip(catalogue.words(rows_N, feature), built.words(built_N, feature), strict=True):
            np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(catalogue.ids(rows_N, feature), built.ids(built_N, feature))
    np.testing.assert_array_equal(catalogue.raw_numbers(rows_N, 0), built.raw_numbers(built_N, 0))
    shutil.rmtree(folder)


def test_appends_answer_as_a_full_build_does(tmp_path: Path) -> None:
    """Items that are new, replaced, removed, removed and back, through merges of overlays and of the base."""
    draw = random.Random(5)
    version = publish_artifact(tmp_path / "models")
    everyone = [f"item-{n}" for n in range(60)]
    expected = some_items(list(range(12)), seed=0)
    build_catalogue(version, written(tmp_path / "items-0.parquet", expected))
    family = version.parent / "derived" / "1" / "catalogue"
    num_overlays = []
    for step in range(1, 23):
        added = some_items(draw.sample(range(60), 4), seed=step)
        removable = [one for one in expected if one not in added]
        gone = draw.sample(removable, 2) if step % 3 else []
        items = None if step == 7 else written(tmp_path / f"items-{step}.parquet", added)
        ids = removal(tmp_path / f"gone-{step}.parquet", [*gone, gone[0], "nobody"]) if gone else None
        folder = append_to_catalogue(version, items, ids)
        assert folder == family / str(step + 1)
        expected |= {} if items is None else added
        expected = {one: features for one, features in expected.items() if one not in gone}
        _, catalogue = opened(version)
        num_overlays.append(len(catalogue.layers) - 1)
        assert catalogue.items == len(expected)
        needed = {layer.manifest.generation for layer in catalogue.layers}
        assert needed <= set(generations(family))
        if step in (1, 7, 8, 9, 10, 22):
            assert_as_built(version, expected, everyone, tmp_path / "full")
    assert max(num_overlays) == MOST_OVERLAYS
    assert num_overlays[:8] == list(range(1, 9))
    assert 0 in num_overlays[8:], "the base was never merged"
    # Nothing is kept that the newest two do not stand on.
    assert len(generations(family)) <= KEPT_GENERATIONS + MOST_OVERLAYS
    sources = item_sources(tmp_path / "models", "tiny", "1", "23")
    assert sources[0].path.name == "items-0.parquet"
    assert {source.path.name for source in sources if source.removes} == {
        f"gone-{step}.parquet" for step in range(1, 23) if step % 3
    }


@pytest.mark.parametrize(("keys", "first"), [
    ([100, 1], 1),
    ([100, *[1] * 8], 8),
    ([100, *[1] * 9], 1),  # 9 together, fewer than the base
    ([9, *[1] * 9], 0),
    ([100, 64, 32, 16, 8, 4, 2, 1, 1, 1], 0),
    ([200, 64, 32, 16, 8, 4, 2, 1, 1, 1], 1),
    ([900, 400, 200, 100, 50, 25, 12, 6, 3, 1], 8),  # one merge at least
    ([1000, 500, 200, 90, 40, 20, 10, 9, 8, 1], 4),
])  # fmt: skip
def test_layers_are_merged_when_those_above_have_as_many_keys(keys: list[int], first: int) -> None:
    assert first_merged(keys) == first


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version with a catalogue of item-0 to item-9."""
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, written(tmp_path / "items.parquet", some_items(list(range(10)), seed=0)))
    return version


def test_the_command_says_what_it_did_and_nothing_to_do_is_no_fault(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    more = written(tmp_path / "more.parquet", some_items([8, 9, 10, 11, 12], seed=1))
    gone = removal(tmp_path / "gone.parquet", ["item-0", "item-77"])
    assert main(["catalogue", str(version), str(more), "--append", "--remove", str(gone)]) == 0
    assert capsys.readouterr().out.strip().endswith("/catalogue/2")
    assert "gone.parquet: ids to remove that are not in the catalogue: 1" in caplog.text
    assert "items new 3, replaced 2, removed 1; overlays 1, items of the newest 5" in caplog.text
    assert main(["catalogue", str(version), "--append", "--remove", str(gone)]) == 0
    assert capsys.readouterr().out.strip().endswith("/catalogue/2")
    assert opened(version)[1].items == 12


def test_layers_that_serve_are_not_read_again(version: Path, tmp_path: Path) -> None:
    scorer, before = opened(version)
    first = append_to_catalogue(version, written(tmp_path / "a.parquet", some_items([10], seed=1)))
    after = scorer.open_catalogue(first)
    assert after.layers[0] is before.layers[0]
    scorer.catalogue = after
    second = scorer.open_catalogue(append_to_catalogue(version, written(tmp_path / "b.parquet", some_items([11], 2))))
    assert second.layers[:2] == after.layers
    assert after.rows_of(["item-11"]).tolist() == [UNKNOWN]  # a request that has begun keeps what it took


def refused(version: Path, reason: str, items: Path | None, removed: Path | None = None) -> None:
    """Run an append that fails, and see that it left nothing."""
    family = version.parent / "derived" / "1" / "catalogue"
    before = sorted(path.name for path in family.iterdir())
    with pytest.raises(ValueError, match=reason):
        append_to_catalogue(version, items, removed)
    assert sorted(path.name for path in family.iterdir()) == before


def test_what_cannot_be_appended_is_refused_and_nothing_is_published(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = written(tmp_path / "more.parquet", some_items([10, 11], seed=1))
    twice = written(tmp_path / "twice.parquet", some_items([10], seed=1))
    pq.write_table(pa.concat_tables([pq.read_table(twice)] * 2), twice)
    refused(version, r"'item-10' \(row group 0, row 0\) and 'item-10' .* are the same", twice)
    both = removal(tmp_path / "both.parquet", ["item-3"])
    refused(version, r"'item-3' .* is also to be removed", written(tmp_path / "3.parquet", some_items([3], 1)), both)
    without = {name: column for name, column in as_columns(some_items([10], 1)).items() if name != "tag"}
    refused(version, "no column 'tag'", write_items(tmp_path / "without.parquet", without))
    pq.write_table(pa.table({"ids": ["item-1"]}), tmp_path / "other.parquet")
    refused(version, r"other\.parquet: no column 'id'", None, tmp_path / "other.parquet")
    with one_writer(version.parent / "derived" / "1" / "catalogue"):
        refused(version, "another job writes this catalogue", more)
        with pytest.raises(ValueError, match="another job writes this catalogue"):
            build_catalogue(version, more)
    monkeypatch.setattr(catalogue_module, "COMPILED_TOLERANCE", 1e-9)
    refused(version, "build the catalogue again of all items", more)
    monkeypatch.undo()
    shutil.rmtree(version.parent / "derived" / "1" / "catalogue" / "1")
    refused(version, "has no catalogue to append to", more)
    for arguments, reason in (
        (["--append"], "nothing to append"),
        ([str(more), "--remove", str(both)], "give --append too"),
        ([], "the file of all items is missing"),
    ):
        assert main(["catalogue", str(version), *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_nothing_is_appended_to_a_base_that_is_gone(version: Path, tmp_path: Path) -> None:
    append_to_catalogue(version, written(tmp_path / "a.parquet", some_items([10], seed=1)))
    shutil.rmtree(version.parent / "derived" / "1" / "catalogue" / "1")
    more = written(tmp_path / "b.parquet", some_items([11], 2))
    refused(version, "stands on generation 1, which cannot be used", more)
    with pytest.raises(ArtifactError, match="stands on generation 1, which cannot be used"):
        opened(version)
    build_catalogue(version, tmp_path / "items.parquet")
    assert opened(version)[1].items == 10
