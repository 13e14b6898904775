"""The published version: read as it was written, refused with a reason wherever a byte of it has changed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.artifact.artifact import FITTED, FORMAT_VERSION, GOLDEN, MANIFEST, RANKER, REFERENCE, Artifact, ArtifactError
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact, tiny_schema
from tests.model.small_artifact import FILES, SMALL, publish_small


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real artifact. Tests that change it copy it first."""
    return publish_artifact(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """The real artifact, to be changed at will."""
    return shutil.copytree(published, tmp_path / "1")


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and make its checksum hold again, as a forger would."""
    content = json.loads((path / MANIFEST).read_text())
    change(content)
    del content["checksum"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["checksum"] = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    (path / MANIFEST).write_text(json.dumps(content))


def replace_file(path: Path, name: str, content: bytes) -> None:
    """Replace a file and lists it in the manifest."""
    (path / name).write_bytes(content)

    def vouch(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}

    rewrite_manifest(path, vouch)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as raised:
        Scorer.load(path)
    assert str(path) in str(raised.value)


# --- round trip


def test_what_is_published_is_what_is_read(tmp_path: Path) -> None:
    path = publish_small(
        tmp_path,
        network={"fusion": {"kind": "adatt"}},
        training={"seed": 3, "data_window": {"train": {"max": 20220505}}},
        metrics={"test": {"click": {"auc": 0.75, "auc_interval": [0.74, 0.76]}}},
        libraries={"torch": "2"},
    )
    assert path == tmp_path / "small" / "1"
    artifact = Artifact.open(path)
    manifest = artifact.manifest
    assert (manifest.name, manifest.version, artifact.version, manifest.format) == ("small", 1, "1", "torchscript")
    assert manifest.feed == tiny_schema()
    assert manifest.network == {"fusion": {"kind": "adatt"}}
    assert manifest.training == {"seed": 3, "data_window": {"train": {"max": 20220505}}}
    assert manifest.metrics["test"]["click"]["auc_interval"] == [0.74, 0.76]
    assert {name: artifact.read(name) for name in FILES} == SMALL
    assert artifact.read_json(REFERENCE) == [1]
    assert {name: entry.size_bytes for name, entry in manifest.files.items()} == {n: len(c) for n, c in SMALL.items()}


def test_a_real_artifact_answers_its_golden_request(published: Path) -> None:
    scorer = Scorer.load(published)
    candidates = TINY_REQUEST["candidates"]
    answers = scorer.score_values(TINY_REQUEST["user"], candidates["features"], len(candidates["id"]))
    [golden] = scorer.golden_requests()["requests"]
    expected = np.stack([golden["expected"][task] for task in scorer.outputs], axis=1)
    np.testing.assert_allclose(answers, expected, rtol=1e-5)


def test_an_explanation_gives_the_answers_and_what_they_are_mixed_of(published: Path) -> None:
    scorer = Scorer.load(published)
    encoder, candidates = scorer.encoder, TINY_REQUEST["candidates"]["features"]
    request = encoder.request_columns(TINY_REQUEST["user"])
    blocks = scorer.encode(request, encoder.columns("candidate", candidates, 4), 4)
    scored, levels = scorer.explain(*blocks)
    expected = scorer.score(*blocks)
    # The same steps in one call and apart.
    np.testing.assert_allclose(scored.answers_NO, expected.answers_NO, rtol=1e-6)
    assert (scored.missing, scored.oov) == (expected.missing, expected.oov)
    tasks = ["click", "like", "play_time"]
    assert [level.units for level in levels] == [tasks, tasks]
    assert [level.experts for level in levels] == [[f"{task}.{n}" for task in tasks for n in (1, 2)]] * 2
    for level in levels:
        assert level.weights_NGE.shape == (4, 3, 6)
        # A gate's weights sum to 1. A native weight is the same for all candidates, and is on own experts alone.
        native_NG = level.weights_NGE.sum(axis=2) - 1
        np.testing.assert_allclose(native_NG, native_NG[:1].repeat(4, axis=0), atol=1e-6)


# --- damage


TABLES = ("table_4.f32", "table_8.f32")


@pytest.mark.parametrize("name", [*FILES, *TABLES])
def test_a_flipped_byte_of_a_file_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    positions = np.unique(np.linspace(0, len(content) - 1, 200).astype(int)).tolist()
    for number, position in enumerate(positions):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (number % 8)
        (copy / name).write_bytes(flipped)
        with pytest.raises(ArtifactError, match=f"{name}: checksum differs") as raised:
            Artifact.open(copy)
        assert str(copy) in str(raised.value)
    (copy / name).write_bytes(content)
    Scorer.load(copy)


def test_a_flipped_bit_of_the_manifest_is_refused_or_changes_nothing(copy: Path) -> None:
    """One bit of every third byte, and of every byte that JSON is built with."""
    place = copy / MANIFEST
    content = place.read_bytes()
    original = Artifact.open(copy).manifest
    harmless = 0
    positions = [p for p, byte in enumerate(content) if p % 3 == 0 or chr(byte) in '{}[]":,']
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        place.write_bytes(flipped)
        try:
            manifest = Artifact.open(copy).manifest
        except ArtifactError as error:
            assert str(copy) in str(error)  # noqa: PT017 - being read unchanged is fine too
        else:
            assert manifest == original
            harmless += 1
    # White space that became other white space, at most.
    assert harmless < len(positions) / 100


@pytest.mark.parametrize("name", [*FILES, *TABLES, MANIFEST])
def test_a_truncated_file_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 2):
        (copy / name).write_bytes(content[:length])
        refused(copy, name)


@pytest.mark.parametrize("name", [*FILES, *TABLES, MANIFEST])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, f"{name}: cannot be read")
    (copy / name).mkdir()
    refused(copy, f"{name}: cannot be read")


@pytest.mark.parametrize("name", TABLES)
def test_an_enlarged_table_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for more in (b"\0", b"\0" * 4096, content):
        (copy / name).write_bytes(content + more)
        refused(copy, f"{name}: {len(content + more)} bytes, the manifest says {len(content)}; the file was changed")


def test_a_table_that_holds_no_whole_rows_is_refused_although_it_is_vouched_for(copy: Path) -> None:
    replace_file(copy, "table_8.f32", bytes(40))
    refused(copy, "table_8.f32: 40 bytes are no rows of 8 float32 numbers")


def test_a_table_with_too_few_rows_is_refused_although_it_is_vouched_for(copy: Path) -> None:
    replace_file(copy, "table_8.f32", (copy / "table_8.f32").read_bytes()[:32])
    refused(copy, r"not in the valid range \[0, 1\)")


def test_a_table_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    rewrite_manifest(copy, lambda manifest: manifest["files"].pop("table_8.f32"))
    refused(copy, "table_8.f32 is not in the manifest")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "1", "cannot be read")


def test_a_file_beside_the_manifest_is_never_read(copy: Path) -> None:
    (copy / "extra.json").write_text("{}")
    artifact = Artifact.open(copy)
    for name in ("extra.json", MANIFEST, "../1/extra.json", "absent"):
        with pytest.raises(ArtifactError, match="not in the manifest"):
            artifact.read(name)


def test_a_file_changed_after_opening_is_not_read(copy: Path) -> None:
    artifact = Artifact.open(copy)
    (copy / RANKER).write_bytes(b"other code")
    with pytest.raises(ArtifactError, match="the file was changed"):
        artifact.read(RANKER)


# --- manifests that a forger or another release wrote


@pytest.mark.parametrize("version", [0, 1, FORMAT_VERSION - 1, str(FORMAT_VERSION), None, 1e300, [FORMAT_VERSION]])
def test_another_format_version_is_refused_and_named(copy: Path, version: object) -> None:
    rewrite_manifest(copy, lambda manifest: manifest.update(format_version=version))
    refused(copy, f"format version .* this reader knows {FORMAT_VERSION} alone; make it again")


@pytest.mark.parametrize("name", [
    "../secret", "/etc/passwd", "a/b", "..", ".", ".hidden", "", "a\0b", "a\nb", "\ud800", "x" * 300, "-rf",
])  # fmt: skip
def test_a_file_name_that_leads_elsewhere_is_refused(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_bytes(b"")
    empty = {"sha256": hashlib.sha256(b"").hexdigest(), "size_bytes": 0}
    rewrite_manifest(copy, lambda manifest: manifest["files"].update({name: empty}))
    refused(copy, "is not a plain name")


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 2}, "says version 2, but the folder is 1"),
    ({"format": "pickle"}, "format"),
    ({"name": 5}, "name"),
    ({"schema": {"name": "x"}}, "schema.features"),
    ({"files": {}}, "does not list fitted_features.json, golden_requests.json, ranker.pt, reference_features.json, "),
    ({"files": {"a": 3}}, "files"),
    ({"extra": 1}, "unknown key 'extra'"),
])  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    rewrite_manifest(copy, lambda manifest: manifest.update(change))
    refused(copy, message)


@pytest.mark.parametrize("text", [
    "", "null", "[]", "3", "{}", json.dumps({"format_version": FORMAT_VERSION}), "{" * 5, "[" * 100_000, "\xff", "NaN",
    "1" * 9999,
])  # fmt: skip
def test_what_is_no_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("latin-1"))
    refused(copy, MANIFEST)


@pytest.mark.parametrize(("name", "content", "message"), [
    (RANKER, b"not TorchScript", "cannot be loaded"),
    (RANKER, b"", "cannot be loaded"),
    (FITTED, b"not JSON", "cannot be loaded"),
    (FITTED, b"[]", "expected a mapping"),
    (FITTED, b'{"vocabulary": {}}', "unknown key 'vocabulary'"),
    (FITTED, b"{}", "fitted transforms are not the schema's"),
    (GOLDEN, b"not JSON", "not golden requests"),
    (GOLDEN, b"[]", "not golden requests"),
    (GOLDEN, b"{}", "not golden requests"),
    (GOLDEN, b'{"tolerance": "none", "requests": []}', "not golden requests"),
    (GOLDEN, b'{"tolerance": 1, "requests": []}', "no golden request"),
    (GOLDEN, b'{"tolerance": 1, "requests": 5}', "not golden requests"),
    (GOLDEN, b'{"tolerance": 1, "requests": [{"user": [], "candidates": {"id": ["a"], "features": {}}}]}', "golden"),
    (GOLDEN, b'{"tolerance": 1, "requests": [{"user": {}, "candidates": {"id": [], "features": {}}}]}', "no candidate"),
    (GOLDEN, b'{"tolerance": 1, "requests": [{"user": {"x": 1}, "candidates": {"id": ["a"], "features": {}}}]}', "'x'"),
])  # fmt: skip
def test_files_of_another_content_are_refused(copy: Path, name: str, content: bytes, message: str) -> None:
    replace_file(copy, name, content)
    refused(copy, message)


def change_golden(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    golden = json.loads((path / GOLDEN).read_text())
    change(golden)
    replace_file(path, GOLDEN, json.dumps(golden).encode())


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_a_wrong_golden_answer_is_refused_and_named(copy: Path, value: float) -> None:
    def spoil(golden: dict[str, Any]) -> None:
        golden["requests"][0]["expected"]["like"][2] += value

    change_golden(copy, spoil)
    refused(copy, "request 0, output like: the answer is off by")


@pytest.mark.parametrize("expected", [[0.5], [], [0.1] * 9, "x", None, {}])
def test_golden_answers_of_another_shape_are_refused(copy: Path, expected: object) -> None:
    change_golden(copy, lambda golden: golden["requests"][0]["expected"].update(like=expected))
    refused(copy, GOLDEN)


def test_a_golden_answer_within_tolerance_is_accepted(copy: Path) -> None:
    def shift(golden: dict[str, Any]) -> None:
        golden["requests"][0]["expected"]["like"][2] += golden["tolerance"] / 2

    change_golden(copy, shift)
    Scorer.load(copy)


def test_weights_that_changed_fail_the_golden_request(published: Path, tmp_path: Path) -> None:
    """All checksums hold, the code runs, the numbers are another model's."""
    other = publish_artifact(tmp_path, seed=1)
    replace_file(other, RANKER, (published / RANKER).read_bytes())
    refused(other, "the answer is off by")
