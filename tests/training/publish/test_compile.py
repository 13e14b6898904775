"""Compiled packages: they answer as TorchScript does, and one that may not run is refused, TorchScript serving."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.artifact.artifact import MANIFEST, Artifact, ArtifactError, write_manifest
from model.artifact.compiled import BY_COLUMNS, BY_SUMS, PACKAGE, Acceptance, Dtype, open_compiled
from model.artifact.signature import SIGNATURE, SigningKey
from model.scorer.golden import disagreement
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact, writable
from tests.items import tiny_items, values_of, write_items
from tests.key_pairs import key_pair
from tests.model.scorer.kept_rows import keep_rows
from tests.service.in_process import client_of, sample
from training.publish import compile as compile_module
from training.publish.catalogue import build_catalogue
from training.publish.compile import compile_version, dtypes_for
from training.publish.sign import sign

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not there; compiling takes it")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one compiled version, compiled once for all tests."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        # Trying out every kernel for products this small takes most of the time and changes nothing that is tested.
        patch.setitem(compile_module.SETTINGS, "max_autotune", False)
        # Which engine is faster is the draw of a busy machine, and not what is tested.
        compile_version(publish_artifact(folder), SigningKey(key_pair(folder)[0]), even_if_slower=True)
    return folder


def features_of(rows: int) -> dict[str, list[Any]]:
    features = TINY_REQUEST["candidates"]["features"]
    return {name: [column[n % len(column)] for n in range(rows)] for name, column in features.items()}


@pytest.mark.slow
def test_compiled_answers_are_those_of_torchscript(models: Path) -> None:
    version = models / "tiny" / "1"
    compiled, plain = Scorer.load(version, "compiled"), Scorer.load(version, "torchscript")
    assert (compiled.engine, plain.engine) == ("compiled", "torchscript")
    for rows in (1, 2, 1000):
        got, expected = (one.score_values(TINY_REQUEST["user"], features_of(rows), rows) for one in (compiled, plain))
        assert got.shape == (rows, 3)
        np.testing.assert_allclose(got, expected, rtol=COMPILED_TOLERANCE, atol=COMPILED_TOLERANCE)
    # Of 1000 candidates four are distinct.
    assert len(np.unique(got, axis=0)) == len(np.unique(expected, axis=0)) == 4


@pytest.mark.slow
def test_threads_do_not_meet_in_a_compiled_package(models: Path) -> None:
    scorer = Scorer.load(models / "tiny" / "1", "compiled")

    def ask(rows: int) -> bool:
        torch.set_num_threads(1)
        got = scorer.score_values(TINY_REQUEST["user"], features_of(rows), rows)
        return bool(np.allclose(got, expected[:rows], rtol=1e-5, atol=1e-6))

    expected = scorer.score_values(TINY_REQUEST["user"], features_of(64), 64)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, [1 + n % 64 for n in range(300)]))


@pytest.mark.slow
def test_candidates_by_id_are_answered_by_the_compiled_function_of_sums(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    version = copy / "tiny" / "1"
    items = tiny_items(30)
    place = build_catalogue(version, write_items(tmp_path / "items.parquet", items))
    scorer = Scorer.load(version, "compiled")
    scorer.catalogue = scorer.open_catalogue(place)
    assert scorer.catalogue.manifest.sums_dtype == "bfloat16"
    asked: list[int] = []
    compiled = scorer.compiled_sums
    assert compiled is not None

    def counted(sums_NF: torch.Tensor, sums_1F: torch.Tensor) -> torch.Tensor:
        asked.append(len(sums_NF))
        return compiled(sums_NF, sums_1F)

    monkeypatch.setattr(scorer, "compiled_sums", counted)
    request = scorer.encoder.encode_request(TINY_REQUEST["user"])
    for picked, tags in (([4], None), ([7, 3, 29], None), ([7, 3, 29], [None, "y", None])):
        said = {} if tags is None else {"tag": tags}
        columns = scorer.encoder.columns("candidate", said, len(picked))
        named = scorer.name([f"item-{n}" for n in picked], columns, {})
        assert named is not None
        values = values_of(items, picked)
        if tags is not None:
            values["tag"] = [a or b for a, b in zip(tags, values["tag"], strict=True)]
        expected_NO = scorer.score_values(TINY_REQUEST["user"], values, len(picked))
        got_NO = scorer.score(request, named).answers_NO
        np.testing.assert_allclose(got_NO, expected_NO, rtol=COMPILED_TOLERANCE, atol=COMPILED_TOLERANCE)
    assert asked == [1, 3, 3]


@pytest.mark.slow
def test_the_manifest_says_how_much_cpu_time_it_takes(models: Path) -> None:
    manifest, _ = open_compiled(Artifact.open(models / "tiny" / "1"))
    assert set(manifest.against_torchscript) == {"100", "500"}
    for rows, one in manifest.against_torchscript.items():
        assert 0 < one.low <= one.ratio <= one.high
        of_medians = manifest.cpu_ms[manifest.dtype][rows] / manifest.cpu_ms["torchscript"][rows]
        # The median of ratios is not the ratio of medians. On a busy machine they are a third apart at worst.
        assert of_medians / 2 < one.ratio < of_medians * 2


def without_a_compiler(monkeypatch: pytest.MonkeyPatch, shares: dict[int, float], off: float = 0.0) -> list[Any]:
    """Have the eager modules, whose answers are `off`, stand for compiled ones, and made-up shares of TorchScript's
    times for measured ones. What is published goes to the list."""
    published: list[Any] = []

    def function(functions: dict[str, list[Any]], name: str = BY_COLUMNS) -> Callable[..., torch.Tensor]:
        return lambda *inputs: functions[name][0](*inputs) + off

    def made_up(answers: dict[str, Any], *_: Any) -> dict[str, dict[int, list[float]]]:
        def seconds(name: str, rows: int) -> list[float]:
            share = 1.0 if name.startswith("torchscript") else shares[rows]
            return list(share * (1 + 0.01 * generator.random(41)))

        return {name: {rows: seconds(name, rows) for rows in (100, 500)} for name in answers}

    def publish(*arguments: Any) -> Path:
        published.append(arguments)
        return Path("published")

    generator = np.random.default_rng(3)
    for name, stand_in in (
        ("BFLOAT16_SETS", ()),
        ("_compile", lambda module, *_: [module]),
        ("_packed", dict),
        ("CompiledAnswers", function),
        ("_times", made_up),
        ("_publish", publish),
    ):
        monkeypatch.setattr(compile_module, name, stand_in)
    return published


@pytest.mark.parametrize(("shares", "is_published"), [({100: 0.9, 500: 0.8}, True), ({100: 1.0, 500: 0.8}, False)])
def test_a_package_is_published_only_where_it_is_surely_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: dict[int, float], is_published: bool
) -> None:
    version = publish_artifact(tmp_path)
    published = without_a_compiler(monkeypatch, shares)
    if is_published:
        assert compile_version(version) == Path("published")
        ((*_, measured, _),) = published
        assert (measured["acceptance"], measured["quality"]) == ("tolerance", {})
        return
    figures = r"float32 at 100 candidates (0\.99|1\.00)\d \(0\.99\d to 1\.0"
    with pytest.raises(ValueError, match=f"not surely faster.*{figures}"):
        compile_version(version)


@pytest.mark.parametrize(("off", "fault"), [(0.0019, None), (0.0021, "probabilities off by less than 0.002: 0.0000")])
def test_a_package_beyond_the_tolerance_is_accepted_by_quality_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, off: float, fault: str | None
) -> None:
    version = publish_artifact(tmp_path)
    published = without_a_compiler(monkeypatch, {100: 0.5, 500: 0.5}, off)
    with pytest.raises(ValueError, match="nothing compiled answers as TorchScript does"):
        compile_version(version)
    with pytest.raises(ValueError, match=r"--accept quality .* this version has no quality_rows\.npz; export its run"):
        compile_version(version, accept="quality")
    keep_rows(version, labels=False)
    caplog.clear()
    if fault is not None:
        with pytest.raises(ValueError, match="nothing compiled answers"):
            compile_version(version, accept="quality")
        assert f"float32 is left out: {fault}" in caplog.text
        return
    compile_version(version, accept="quality")
    ((*_, measured, _),) = published
    assert measured["acceptance"] == "quality"
    assert set(measured["quality"]) == {BY_COLUMNS, BY_SUMS}
    for quality in measured["quality"].values():
        assert quality["probability_error"] == pytest.approx(off, rel=1e-3)
        assert quality["ne_change"] == {"click": None, "like": None}


@pytest.mark.parametrize(("sets", "accept", "dtypes"), [
    ({"avx2", "fma"}, "quality", ["float32"]),
    ({"avx2", "avx512_bf16"}, "tolerance", ["float32", "bfloat16"]),
    ({"amx_bf16"}, "quality", ["float32", "bfloat16_row", "bfloat16"]),
])  # fmt: skip
def test_dtypes_are_those_that_the_cpu_multiplies_the_most_exact_first(
    sets: set[str], accept: Acceptance, dtypes: list[Dtype]
) -> None:
    assert dtypes_for(frozenset(sets), accept) == dtypes


def changed(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        write_manifest(folder, {**{name: old for name, old in content.items() if name != "checksum"}, key: value})

    return change


def flipped(folder: Path) -> None:
    writable(folder)
    content = bytearray((folder / PACKAGE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / PACKAGE).write_bytes(content)


def edited(folder: Path) -> None:
    writable(folder)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"kind": "compiled"', '"kind": "Compiled"'))


@pytest.mark.slow
@pytest.mark.parametrize(("change", "reason"), [
    (changed("torch", "1.0.0"), "made with torch 1.0.0"),
    (changed("instructions", ["avx1024"]), "this one lacks avx1024"),
    (changed("machine", "pdp11"), "the architecture pdp11"),
    (changed("parent", "0" * 64), "another model version"),
    (changed("tolerance", -1.0), "an answer is off"),
    (changed("surprise", 1), "surprise"),
    (flipped, "checksum differs"),
    (edited, "the manifest was changed"),
    (lambda folder: (folder / PACKAGE).unlink(), "cannot be read"),
    (lambda folder: (folder / MANIFEST).unlink(), "cannot be read"),
])  # fmt: skip
def test_a_package_that_may_not_run_is_refused_and_torchscript_serves(
    models: Path, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    change(copy / "tiny" / "derived" / "1" / "compiled")
    with pytest.raises(ArtifactError, match=reason):
        Scorer.load(copy / "tiny" / "1", "compiled")
    scorer = Scorer.load(copy / "tiny" / "1")
    assert scorer.engine == "torchscript"
    assert reason in (scorer.engine_reason or "")
    assert np.isfinite(scorer.score_values(TINY_REQUEST["user"], features_of(4), 4)).all()


@pytest.mark.slow
def test_a_package_has_to_be_signed_where_its_version_has(models: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    version, public = copy / "tiny" / "1", copy / "mine.pub"
    sign(version, SigningKey(copy / "mine.pem"))
    assert Scorer.load(version, "compiled", public).engine == "compiled"
    (copy / "tiny" / "derived" / "1" / "compiled" / SIGNATURE).unlink()
    with pytest.raises(ArtifactError, match=r"compiled/manifest\.sig: missing"):
        Scorer.load(version, "compiled", public)
    assert Scorer.load(version, "auto", public).engine == "torchscript"


@pytest.mark.slow
def test_the_service_says_which_engine_serves_and_why(models: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    with client_of(copy) as client:
        [version] = client.get("/v1/models").json()["models"][0]["versions"]
        of_package = {"acceptance": "tolerance", "reason": None, "calibration": None, "calibration_reason": None}
        assert version == {"version": "1", "state": "ready", "engine": "compiled", **of_package}
        assert sample(client, "ranking_model_info", model="tiny", version="1", engine="compiled", calibration="") == 1
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
    changed("torch", "1.0.0")(copy / "tiny" / "derived" / "1" / "compiled")
    with client_of(copy) as client:
        [version] = client.get("/v1/models").json()["models"][0]["versions"]
        assert (version["state"], version["engine"]) == ("ready", "torchscript")
        assert "made with torch 1.0.0" in version["reason"]
        assert str(copy) not in version["reason"]
        assert sample(client, "ranking_model_load_total", result="compiled_refused") == 1
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
    with client_of(copy, engine="compiled") as client:
        [version] = client.get("/v1/models").json()["models"][0]["versions"]
        assert version["state"] == "quarantined"
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 503


def test_without_a_package_there_is_nothing_to_say(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path)
    scorer = Scorer.load(version)
    assert (scorer.engine, scorer.engine_reason) == ("torchscript", None)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Scorer.load(version, "compiled")


def test_compiling_without_a_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"no-such-compiler: no such program.*C\+\+ compiler"):
        compile_version(tmp_path)


@pytest.mark.parametrize(("answers", "fault"), [
    ([0.1, 0.2, 0.3], None),
    ([0.1005, 0.2, 0.3], None),
    ([0.1, 0.2, 0.3021], "off by 0.0021"),
    ([float("nan"), 0.2, 0.3], "off by nan"),
])  # fmt: skip
def test_scores_may_differ_by_the_tolerance(answers: list[float], fault: str | None) -> None:
    expected = np.array([[0.1], [0.2], [0.3]], np.float32)
    got = disagreement(expected, np.array(answers, np.float32)[:, None], 1e-3)
    assert (got is None) if fault is None else fault in (got or "")


def test_only_candidates_that_are_level_may_change_places() -> None:
    level = np.array([[0.5], [0.5008]], np.float32)
    assert disagreement(level, level[::-1], 1e-3) is None
    apart = np.array([[0.5], [0.5015]], np.float32)
    assert "another order" in (disagreement(apart, np.array([[0.5009], [0.5008]], np.float32), 1e-3) or "")
