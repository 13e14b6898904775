"""The published artifact: `<models>/<name>/<version>/`, written once, verified before anything in it is used.

`publish` writes a new version into a hidden folder and renames it: a reader sees a whole version or none. `Artifact`
opens a version and verifies it: a signature where trusted keys are given, format version, the manifest's own
checksum, its name and number, the sha256 of every file. TorchScript is code, so bytes are hashed first and loaded from
memory after: what was verified is what runs. Tables are data and large: they are hashed by read(2), which survives a
file that is cut meanwhile, and mapped where nothing has changed since. Published files are read-only: a copy over them
fails, unless it is root's.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pydantic import Field

from model.artifact import prehash
from model.artifact.signature import SIGNATURE, TrustedKeys
from model.artifact.table_files import TABLE, map_file
from model.schema import FeedSchema
from model.strict_yaml import StrictModel
from model.untrusted_files import DOCUMENT_BYTES, changed, fingerprint_of, open_regular, read_bytes, sha256_of

FORMAT_VERSION = 6
MANIFEST = "manifest.json"
RANKER = "ranker.pt"
FITTED = "fitted_features.json"
GOLDEN = "golden_requests.json"
REFERENCE = "reference_scores.json"
REFERENCE_FEATURES = "reference_features.json"
# Where answers are mapped to means of labels.
CALIBRATION = "calibration.json"
# For training alone: the network as it was trained.
TRAINED = "trained.pt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MOST_RACES = 100


class ArtifactError(ValueError):
    """Artifact that did not verify. The message names the directory and the check that failed."""


class FileEntry(StrictModel):
    """Checksum and size of one file of the artifact."""

    sha256: str
    size_bytes: int


class Manifest(StrictModel):
    """An artifact and its origin. `user` is the feature whose value names the user of a request, None where none does.
    `checksum` is the sha256 of the rest of the manifest."""

    format_version: int
    format: Literal["torchscript"]
    name: str
    version: int
    created: str
    feed: FeedSchema = Field(alias="schema")
    user: str | None = None
    network: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]
    libraries: dict[str, str]
    files: dict[str, FileEntry]
    checksum: str


class Artifact:
    """A verified version. `read` returns the bytes of a file that the manifest lists, `map` maps a table's.

    With `verify_key`, a file of trusted keys, what is made from the version later has to be signed as well."""

    def __init__(self, path: Path, manifest: Manifest, verify_key: Path | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.verify_key = verify_key
        self._mapped: dict[str, mmap.mmap] = {}

    @property
    def version(self) -> str:
        """The model version, as answers and log lines name it."""
        return str(self.manifest.version)

    @classmethod
    def open(cls, path: Path, verify_key: Path | None = None, model: str | None = None) -> "Artifact":
        """Reads and checks the manifest, its signature where `verify_key` names a file of trusted keys, and the
        checksum of every file. With `model` the version has to be one of that model. Raises ArtifactError."""
        artifact = cls(path, _read_manifest(path, verify_key, model), verify_key)
        for name in artifact.manifest.files:
            if TABLE.fullmatch(name):
                artifact.map(name)
            else:
                with artifact._opened(name) as file:
                    artifact._check(name, sha256_of(file))
        missing = {RANKER, FITTED, GOLDEN, REFERENCE, REFERENCE_FEATURES} - set(artifact.manifest.files)
        if missing:
            raise ArtifactError(f"{path}: the manifest does not list {', '.join(sorted(missing))}")
        return artifact

    def read(self, name: str) -> bytes:
        """The bytes of a file, hashed on this very read. Raises ArtifactError if they are not the manifest's."""
        with self._opened(name) as file:
            content = file.read(self.manifest.files[name].size_bytes)
        self._check(name, hashlib.sha256(content).hexdigest())
        return content

    def map(self, name: str) -> mmap.mmap:
        """A file mapped read-only, hashed at its first read. Raises ArtifactError as `read` does."""
        if name not in self._mapped:
            with self._opened(name) as file:
                before = fingerprint_of(file)
                self._check(name, prehash.take_hash(file) or sha256_of(file))
                try:
                    mapped = map_file(file)
                except ValueError as error:  # an empty file
                    raise ArtifactError(f"{self.path / name}: {error}") from None
                if fingerprint_of(file) != before:
                    raise changed(self.path / name)
            self._mapped[name] = mapped
        return self._mapped[name]

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """A file that the manifest lists, of the size that it says. Raises ArtifactError."""
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path}: {name} is not in the manifest, so nothing verifies it")
        with opened(self.path / name, self.manifest.files[name]) as file:
            yield file

    def _check(self, name: str, sha256: str) -> None:
        check_sha256(self.path / name, self.manifest.files[name], sha256)

    def read_json(self, name: str) -> Any:
        """A JSON file of the artifact."""
        return json.loads(self.read(name))


@contextmanager
def opened(path: Path, entry: FileEntry) -> Iterator[BinaryIO]:
    """A file of the size that its manifest says. Raises ArtifactError, also for what the disk says inside the block."""
    try:
        with open_regular(path) as file:
            size = fingerprint_of(file).size_bytes
            if size != entry.size_bytes:
                raise ArtifactError(f"{path}: {size} bytes, the manifest says {entry.size_bytes}; the file was changed")
            yield file
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None


def check_sha256(path: Path, entry: FileEntry, sha256: str) -> None:
    """Return if a file's hash is the manifest's. Raises ArtifactError."""
    if sha256 != entry.sha256:
        raise ArtifactError(f"{path}: checksum differs from the manifest's; the file was changed")


def versions(models: Path, name: str) -> list[int]:
    """The published versions of a model, ascending. Raises OSError where the folder cannot be listed."""
    try:
        entries = list((models / name).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(entry.name) for entry in entries if _VERSION.fullmatch(entry.name) and entry.is_dir())


def model_names(models: Path) -> list[str]:
    """The models of a folder that have at least one version, or may have: their folder cannot be listed. Raises OSError
    where that of the models cannot."""
    return sorted(entry.name for entry in models.iterdir() if _NAME.fullmatch(entry.name) and _is_model(entry))


def _is_model(family: Path) -> bool:
    try:
        return bool(versions(family.parent, family.name))
    except OSError:
        return True


def publish(
    models: Path,
    name: str,
    write_files: Callable[[Path], None],
    *,
    schema: FeedSchema,
    user: str | None = None,
    network: Mapping[str, Any],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    libraries: Mapping[str, str],
    check: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Publish the next version of `name`: `write_files` fills a hidden folder, `check` vets the whole of it, one
    rename makes it visible. Returns its path. On any failure the folder is removed and nothing is published."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"model name '{name}' must match {_NAME.pattern}")
    family = models / name
    with hidden_folder(family) as folder:
        write_files(folder)
        content = {
            "format_version": FORMAT_VERSION,
            "format": "torchscript",
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "schema": schema.model_dump(mode="json", exclude_none=True),
            "user": user,
            "network": dict(network),
            "training": dict(training),
            "metrics": dict(metrics),
            "libraries": dict(libraries),
            "files": {file.name: file_entry(file) for file in sorted(folder.iterdir())},
        }
        first = max(versions(models, name), default=0) + 1
        for version in range(first, first + _MOST_RACES):
            write_manifest(folder, {**content, "version": version})
            check(folder)
            seal(folder)
            final = family / str(version)
            try:
                folder.rename(final)
            except OSError as error:
                # A publisher that was faster has left a non-empty folder here, over which rename fails: take the next.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            with suppress(OSError):  # the version is whole and visible by now: only its surviving a power cut is open
                sync(family)
            return final
        raise ValueError(f"{family}: nothing was published, {_MOST_RACES} versions in a row were taken by others")


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a folder, with the checksum of its content."""
    text = json.dumps({**content, "checksum": _checksum(content)}, indent=1, allow_nan=False)
    (folder / MANIFEST).unlink(missing_ok=True)  # sealed by a try that lost its race
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def seal(folder: Path) -> None:
    """Make the files of a folder read-only, for what is published stays as it is, and have all of it on the disk."""
    for file in folder.iterdir():
        file.chmod(0o444)
        sync(file)
    sync(folder)


@contextmanager
def hidden_folder(family: Path) -> Iterator[Path]:
    """A folder in `family` that no reader sees. It is removed at the end unless it was renamed. Raises ValueError where
    the disk refuses it."""
    folder = None
    try:
        family.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".publishing-", dir=family))
        folder.chmod(0o755)  # mkdtemp's 0700 would hide a published version from the service's user
        yield folder
    except OSError as error:
        raise ValueError(f"{family}: nothing was published, {error.strerror or error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def read_manifest(path: Path, format_version: int, verify_key: Path | None = None) -> dict[str, Any]:
    """The manifest of a folder, its own checksum checked, and its signature where `verify_key` names a file of trusted
    keys, read each time. Raises ArtifactError."""
    place = path / MANIFEST
    try:
        text = read_bytes(place, DOCUMENT_BYTES)
        if verify_key is not None:
            TrustedKeys(verify_key).check(text, path / SIGNATURE)
    except OSError as error:
        raise ArtifactError(f"{place}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ArtifactError(str(error)) from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(content, dict) or "format_version" not in content:
        raise ArtifactError(f"{place}: not a manifest (no format_version)")
    if content["format_version"] != format_version:
        raise ArtifactError(
            f"{place}: format version {content['format_version']!r}, this reader knows {format_version} alone; "
            "make it again with this release"
        )
    if _checksum({key: value for key, value in content.items() if key != "checksum"}) != content.get("checksum"):
        raise ArtifactError(f"{place}: its checksum does not match; the manifest was changed")
    return content


class DerivedManifest(StrictModel):
    """Common part of the manifests of what is made from a version. `parent` is the checksum of its manifest."""

    format_version: int
    name: str
    version: int
    parent: str
    created: str
    files: dict[str, FileEntry]
    checksum: str


Derived = TypeVar("Derived", bound=DerivedManifest)


def read_derived_manifest(
    kind: type[Derived], path: Path, format_version: int, artifact: Artifact, remedy: str
) -> Derived:
    """The manifest of something made from this very version. Raises ArtifactError. `remedy` ends the message where it
    was made from another."""
    try:
        manifest = kind.from_mapping(read_manifest(path, format_version, artifact.verify_key), str(path))
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(str(error)) from None
    own = artifact.manifest
    if (manifest.name, manifest.version, manifest.parent) != (own.name, own.version, own.checksum):
        raise ArtifactError(f"{path}: made for another model version ({manifest.name} {manifest.version}){remedy}")
    return manifest


def _read_manifest(path: Path, verify_key: Path | None, model: str | None) -> Manifest:
    place = path / MANIFEST
    content = read_manifest(path, FORMAT_VERSION, verify_key)
    try:
        manifest = Manifest.from_mapping(content, str(place))
    except ValueError as error:
        raise ArtifactError(str(error)) from None
    for name in manifest.files:
        if not _NAME.fullmatch(name):
            raise ArtifactError(f"{place}: file name {name!r} is not a plain name, it may lead out of the artifact")
    if path.name != str(manifest.version) and _VERSION.fullmatch(path.name):
        raise ArtifactError(f"{place}: says version {manifest.version}, but the folder is {path.name}")
    if model not in (None, manifest.name):
        raise ArtifactError(
            f"{place}: is a version of model '{manifest.name}', but its folder is of model '{model}'; a version is "
            f"served under its own name alone: export --name {model} publishes it under another"
        )
    return manifest


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def file_entry(file: Path) -> dict[str, Any]:
    """Checksum and size, as a manifest lists them."""
    with open_regular(file) as content:
        return {"sha256": sha256_of(content), "size_bytes": fingerprint_of(content).size_bytes}


def sync(path: Path) -> None:
    """Write a file or a folder to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
