"""A calibration fitted again beside a version: `<models>/<name>/derived/<version>/calibration/<generation>/`.

In: a generation that training.publish.recalibrate published for this very version. Out: its maps, in the place of the
version's own (model/calibration.py), and the answers to the golden requests that they give.

Shapes: N candidates, O outputs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import FiniteFloat

from model.artifact.artifact import (
    CALIBRATION,
    Artifact,
    ArtifactError,
    DerivedManifest,
    check_sha256,
    opened,
    read_derived_manifest,
    versions,
)
from model.calibration import AnswerMaps, Calibration, own_calibration
from model.untrusted_files import DOCUMENT_BYTES

FORMAT_VERSION = 1
GOLDEN_ANSWERS = "golden_answers.json"

# By output the expected answers of one golden request.
GoldenAnswers = Mapping[str, Sequence[float]]


class RecalibrationManifest(DerivedManifest):
    """A generation's manifest. `source` and `data_window` name the rows, `tasks` says by task what the maps change on
    them. `means` are the mean answers by output."""

    kind: Literal["calibration"]
    generation: int
    source: str
    data_window: dict[str, Any]
    rows: int
    tasks: dict[str, Any]
    means: dict[str, FiniteFloat]


@dataclass(frozen=True, slots=True)
class Recalibration:
    """One verified generation."""

    manifest: RecalibrationManifest
    calibration: Calibration
    mappings: AnswerMaps
    golden: tuple[GoldenAnswers, ...]

    @classmethod
    def open(cls, path: Path, artifact: Artifact) -> "Recalibration":
        """Verify a generation. Raises ArtifactError: damaged, made for another model version, or not signed where the
        version has to be."""
        remedy = f"; recalibrate {artifact.manifest.name} {artifact.version} itself"
        manifest = read_derived_manifest(RecalibrationManifest, path, FORMAT_VERSION, artifact, remedy)
        if path.name.isdecimal() and path.name != str(manifest.generation):
            raise ArtifactError(f"{path}: the manifest says generation {manifest.generation}; the folder was renamed")
        if absent := [output for output in artifact.manifest.feed.outputs if output not in manifest.means]:
            raise ArtifactError(f"{path}: the manifest has no mean answer of output '{absent[0]}'")
        place = str(path / CALIBRATION)
        golden = _read(path / GOLDEN_ANSWERS, manifest)
        try:
            calibration = Calibration.from_mapping(_read(path / CALIBRATION, manifest), place)
            mappings = calibration.bound(artifact.manifest.feed)
        except ArtifactError:
            raise
        except ValueError as error:
            raise ArtifactError(str(error) if place in str(error) else f"{place}: {error}") from None
        if not isinstance(golden, list) or not all(isinstance(one, dict) for one in golden):
            raise ArtifactError(f"{path / GOLDEN_ANSWERS}: not a list of answers by output")
        return cls(manifest, calibration, mappings, tuple(golden))


class InForce(NamedTuple):
    """The calibration by which a version answers: a generation's, or its own, which `own` has in either case."""

    calibration: Calibration
    mappings: AnswerMaps
    own: AnswerMaps
    recalibration: Recalibration | None = None

    @classmethod
    def exported(cls, artifact: Artifact) -> "InForce":
        """The version's own. Raises ArtifactError naming its file."""
        calibration = own_calibration(artifact)
        mappings = calibration.bound(artifact.manifest.feed)
        return cls(calibration, mappings, mappings)

    def replaced(self, recalibration: Recalibration) -> "InForce":
        """The calibration of a generation."""
        return InForce(recalibration.calibration, recalibration.mappings, self.own, recalibration)

    @property
    def generation(self) -> str | None:
        """The generation, None of the version's own calibration."""
        return None if self.recalibration is None else str(self.recalibration.manifest.generation)


def folder_of(artifact: Artifact) -> Path:
    """Folder of the generations of a version's calibration, if there is one."""
    return artifact.path.parent / "derived" / artifact.version / "calibration"


def generations(folder: Path) -> list[int]:
    """The published generations, ascending."""
    return versions(folder.parent, folder.name)


def _read(place: Path, manifest: RecalibrationManifest) -> Any:
    entry = manifest.files.get(place.name)
    if entry is None or entry.size_bytes > DOCUMENT_BYTES:
        raise ArtifactError(f"{place}: the manifest does not list it, or lists over {DOCUMENT_BYTES} bytes")
    with opened(place, entry) as file:
        content = file.read(entry.size_bytes)
    check_sha256(place, entry, hashlib.sha256(content).hexdigest())
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place}: not valid JSON ({error})") from None
