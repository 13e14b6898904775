"""Building a catalogue: every item as the encoder sees it, and faults of the file named where they are."""

import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.artifact.artifact import versions
from model.artifact.signature import SigningKey
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.items import Items, tiny_items, values_of, write_items
from training.__main__ import main
from training.publish import catalogue as catalogue_module
from training.publish import catalogue_files
from training.publish import export as export_module
from training.publish.catalogue import KEPT_GENERATIONS, build_catalogue
from training.run.run import Run

NOT_TEXT = pa.array([b"\xff" if n == 2 else b"%d" % n for n in range(30)]).cast(pa.string(), safe=False)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_artifact(tmp_path_factory.mktemp("models"))


def test_items_of_any_batch_are_encoded_as_a_request_s(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_files, "BATCH_ITEMS", 7)
    items = tiny_items(50, seed=1)
    scorer = Scorer.load(version)
    catalogue = scorer.open_catalogue(build_catalogue(version, write_items(tmp_path / "items.parquet", items, 20)))
    picked = [49, 0, 19, 20, 21, 7, 6, 0]
    rows_N = catalogue.rows_of([f"item-{n}" for n in picked])
    encoder = scorer.encoder
    encoded = encoder.encode(
        "candidate", encoder.columns("candidate", values_of(items, picked), len(picked)), len(picked), as_served=True
    )
    for name, array in encoded.block._asdict().items():
        np.testing.assert_array_equal(getattr(catalogue.block(rows_N), name), array, err_msg=name)
    with torch.inference_mode():
        sums_NF = scorer.module.candidate_sums(scorer.candidate_rows(encoded.block)).numpy()
    # bfloat16 keeps 8 bits of a number's digits
    np.testing.assert_allclose(catalogue.sums(rows_N).float().numpy(), sums_NF, rtol=2**-8, atol=1e-6)
    assert catalogue.manifest.missing["tag"] == items["tag"].count(None)
    assert catalogue.manifest.missing["topics"] == sum(not topics for topics in items["topics"])
    assert catalogue.manifest.oov["topics"] == sum(
        topic not in (7, 8, 9) for topics in items["topics"] for topic in topics or ()
    )


@pytest.mark.parametrize("given", [
    pa.array([5, -7, 2**63 - 1]),
    pa.array(["5", "-7", "9223372036854775807"]),
    pa.array(["5", "-7", "9223372036854775807"]).dictionary_encode(),
    pa.array(["5", "-7", "9223372036854775807"], pa.string_view()),
    pa.array([Decimal(5), Decimal(-7), Decimal(2**63 - 1)], pa.decimal128(38, 0)),
    pa.array(["5", "-7", "9223372036854775807"], pa.large_string()),
])  # fmt: skip
def test_integers_are_ids_by_their_decimal_strings(version: Path, tmp_path: Path, given: pa.Array) -> None:
    table = pq.read_table(write_items(tmp_path / "items.parquet", tiny_items(3)))
    pq.write_table(table.set_column(0, "id", given), tmp_path / "items.parquet")
    catalogue = Scorer.load(version).open_catalogue(build_catalogue(version, tmp_path / "items.parquet"))
    assert catalogue.rows_of(["9223372036854775807", "5", "-7", "6"]).tolist() == [2, 0, 1, -1]


def without(name: str) -> Items:
    return {key: column for key, column in tiny_items(30).items() if key != name}


def with_value(name: str, row: int, value: Any) -> Items:
    items = tiny_items(30)
    items[name][row] = value
    return items


@pytest.mark.parametrize(("items", "reason"), [
    (without("id"), "no column 'id'"),
    (without("tag"), "no column 'tag'"),
    (with_value("id", 13, None), "row group 1: column 'id': row 3: null"),
    (with_value("id", 25, "item-4"), r"\(row group 0, row 4\) and 'item-4' \(row group 2, row 5\) are the same"),
    (with_value("duration_ms", 19, float("nan")), "group 1, counted from its row 8: column 'duration_ms': row 1: NaN"),
    ({**tiny_items(30), "video_id": pa.array(["three"] * 30)}, "row group 0: column 'video_id': is string"),
    ({**tiny_items(30), "id": pa.array([0.5] * 30)}, "row group 0: column 'id': is double"),
    ({**tiny_items(30), "id": NOT_TEXT}, "row group 0: column 'id': row 2: text that is not valid UTF-8; 1 such row"),
    ({**tiny_items(30), "id": pa.array([Decimal(2**70)] * 30)}, "row group 0: column 'id': row 0: a decimal beyond"),
    (tiny_items(0), "no items"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_published(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: Items, reason: str
) -> None:
    monkeypatch.setattr(catalogue_files, "BATCH_ITEMS", 8)
    path = tmp_path / "items.parquet"
    write_items(path, items, 10)
    family = version.parent / "derived" / version.name / "catalogue"
    before = sorted(family.glob("*"))
    with pytest.raises(ValueError, match=reason) as raised:
        build_catalogue(version, path)
    assert str(path) in str(raised.value)
    assert sorted(family.glob("*")) == before


def test_what_is_not_parquet_is_said(version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items.csv").write_text("id\n1\n")
    assert main(["catalogue", str(version), str(tmp_path / "items.csv")]) == 2
    assert "items.csv: not a readable Parquet file" in capsys.readouterr().err
    assert main(["catalogue", str(version), str(tmp_path / "none.parquet")]) == 2
    assert "none.parquet: not a readable Parquet file" in capsys.readouterr().err


def test_a_refresh_is_a_new_generation_and_the_oldest_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = publish_artifact(tmp_path)
    path = write_items(tmp_path / "items.parquet", tiny_items(5))
    folders = []
    for _ in range(4):
        assert main(["catalogue", str(version), str(path)]) == 0
        folders.append(Path(capsys.readouterr().out.strip()))
    assert [folder.name for folder in folders] == ["1", "2", "3", "4"]
    kept = folders[-KEPT_GENERATIONS:]
    removed = folders[0].parent / "removed"
    assert sorted(folders[0].parent.iterdir()) == [folders[0].parent / ".lock", *kept, removed]
    assert sorted(file.name for file in removed.iterdir()) == ["1.json", "2.json"]
    for file in (removed / "1.json", kept[-1] / "manifest.json"):
        manifest = json.loads(file.read_text())
        [source] = manifest["sources"]
        assert source["path"] == str(path)
        assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Scorer.load(version).catalogue_generations() == kept


def test_sums_are_kept_in_float32_where_bfloat16_changes_scores(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Between the errors of the two: about 1e-4 and 1e-7.
    monkeypatch.setattr(catalogue_module, "COMPILED_TOLERANCE", 2e-6)
    folder = build_catalogue(version, write_items(tmp_path / "items.parquet", tiny_items(40)))
    assert Scorer.load(version).open_catalogue(folder).manifest.sums_dtype == "float32"
    assert "sums in bfloat16 are left out" in caplog.text


def test_export_has_the_catalogue_ready_before_the_version_can_be_seen(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "videos.parquet"
    pq.write_table(pa.table({"id": pa.array([4, 9]), "video": pa.array([4, 9]), "duration": [3.5, None]}), items)
    models = tmp_path / "models"
    seen: list[list[int]] = []

    def watched(version: Path, items: Path, sign_key: SigningKey | None) -> Path:
        built = build_catalogue(version, items, sign_key)
        seen.append(versions(models, "clips"))
        return built

    monkeypatch.setattr(export_module, "build_catalogue", watched)
    assert main(["export", str(finished_run.path), "--models", str(models), "--catalogue", str(items)]) == 0
    scorer = Scorer.load(Path(capsys.readouterr().out.strip()))
    [place] = scorer.catalogue_generations()
    assert scorer.open_catalogue(place).rows_of(["9", "4"]).tolist() == [1, 0]
    assert seen == [[]]
    assert versions(models, "clips") == [1]

    pq.write_table(pa.table({"id": [4, 4], "video": [4, 9], "duration": [3.5, 1.0]}), items)
    assert main(["export", str(finished_run.path), "--models", str(models), "--catalogue", str(items)]) == 2
    assert "'4' (row group 0, row 0) and '4' (row group 0, row 1)" in capsys.readouterr().err
    assert versions(models, "clips") == [1]
