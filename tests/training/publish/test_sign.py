"""`python -m training sign` and --sign-key: what they sign, and what they will not."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.artifact.artifact import GOLDEN, MANIFEST, ArtifactError
from model.artifact.signature import SIGNATURE
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.items import tiny_items, write_items
from tests.key_pairs import key_pair
from training.__main__ import main
from training.run.run import Run


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_artifact(tmp_path_factory.mktemp("models"))


@pytest.fixture
def version(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "models" / "tiny" / "1"))


def test_a_signed_version_is_taken_and_an_unsigned_one_is_not(version: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    _, other = key_pair(tmp_path, "other")
    with pytest.raises(ArtifactError, match=r"manifest\.sig: missing"):
        Scorer.load(version, verify_key=public)
    assert main(["sign", str(version), "--key", str(private)]) == 0
    assert Scorer.load(version, verify_key=public).version == "1"
    assert Scorer.load(version).version == "1"
    assert {file.name for file in version.iterdir() if file.name.startswith(".")} == set()
    with pytest.raises(ArtifactError, match="no trusted key made this signature"):
        Scorer.load(version, verify_key=other)
    other.write_text("not a key")
    with pytest.raises(ArtifactError, match=r"other\.pub: has no public key"):
        Scorer.load(version, verify_key=other)


def test_a_signature_of_another_version_is_worth_nothing(version: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    second = publish_artifact(tmp_path / "models", seed=1)
    assert main(["sign", str(version), "--key", str(private)]) == 0
    shutil.copy(version / SIGNATURE, second / SIGNATURE)
    with pytest.raises(ArtifactError, match="no trusted key made this signature"):
        Scorer.load(second, verify_key=public)


def test_a_catalogue_has_to_be_signed_where_its_version_has(version: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    items = write_items(tmp_path / "items.parquet", tiny_items(10))
    assert main(["sign", str(version), "--key", str(private)]) == 0
    assert main(["catalogue", str(version), str(items)]) == 0
    assert main(["catalogue", str(version), str(items), "--sign-key", str(private)]) == 0
    scorer = Scorer.load(version, verify_key=public)
    unsigned, signed = scorer.catalogue_generations()
    assert scorer.open_catalogue(signed).manifest.generation == 2
    with pytest.raises(ArtifactError, match=r"catalogue/1/manifest\.sig: missing"):
        scorer.open_catalogue(unsigned)
    assert main(["sign", str(unsigned), "--key", str(private)]) == 0
    assert scorer.open_catalogue(unsigned).manifest.generation == 1


def test_export_signs_the_version_and_its_catalogue(
    finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path)
    items = tmp_path / "videos.parquet"
    pq.write_table(pa.table({"id": pa.array([4, 9]), "video": pa.array([4, 9]), "duration": [3.5, None]}), items)
    arguments = ["export", str(finished_run.path), "--models", str(tmp_path / "models"), "--catalogue", str(items)]
    assert main([*arguments, "--sign-key", str(private)]) == 0
    scorer = Scorer.load(Path(capsys.readouterr().out.strip()), verify_key=public)
    [place] = scorer.catalogue_generations()
    assert scorer.open_catalogue(place).manifest.items == 2


def change_a_file(version: Path) -> None:
    (version / GOLDEN).write_text("{}")


def lose_a_file(version: Path) -> None:
    (version / GOLDEN).unlink()


def lose_the_manifest(version: Path) -> None:
    (version / MANIFEST).unlink()


def write_nonsense(version: Path) -> None:
    (version / MANIFEST).write_text('{"files": [1]}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change_a_file, "the file was changed; nothing was signed"),
        (lose_a_file, f"{GOLDEN}: cannot be read"),
        (lose_the_manifest, f"{MANIFEST}: cannot be read"),
        (write_nonsense, f"{MANIFEST}: not a manifest"),
    ],
)
def test_what_does_not_hold_is_not_signed(
    version: Path, tmp_path: Path, damage: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    private, _ = key_pair(tmp_path)
    assert callable(damage)
    damage(version)
    assert main(["sign", str(version), "--key", str(private)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not (version / SIGNATURE).exists()


def test_a_bad_signing_key_is_said_before_any_work(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, public = key_pair(tmp_path)
    assert main(["catalogue", str(version), str(tmp_path / "none.parquet"), "--sign-key", str(public)]) == 2
    assert "not an Ed25519 private key" in capsys.readouterr().err
