"""Artifact -> answers: the one scorer of the service, of golden requests and of batch scoring.

In: the columns of a request's two blocks (user and context once, N candidates). Out: answers_NT, float32, a probability
per binary task and a quantity in the label's own unit per regression task, and what was missing or unknown.

A scorer exists only for an artifact that answered its golden requests within tolerance. It scores by a compiled package
only where there is one that this process may run and that agrees with TorchScript on them; else by TorchScript.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.artifact import CALIBRATION, FITTED, GOLDEN, RANKER, REFERENCE, Artifact, ArtifactError
from model.calibration import Calibration, Isotonic, Platt, calibrated
from model.compiled import CompiledAnswers, folder_of, open_compiled
from model.features import Column, Encoded, EncodedBlock, FeatureEncoder, FittedFeatures
from model.tables import as_table, set_tables, table_file, widths_of

Engine = Literal["torchscript", "compiled"]
EngineChoice = Literal["auto", "torchscript", "compiled"]
# What bfloat16 may change of a score, and a difference of scores below which two candidates count as level.
COMPILED_TOLERANCE = 1e-3


class NonFiniteScoresError(RuntimeError):
    """The ranker answered NaN or infinity; such scores are never passed on."""


class Scored(NamedTuple):
    """Answers of one request, and per feature how many values were missing or unknown to a vocabulary."""

    answers_NT: NDArray[np.float32]
    missing: dict[str, int]
    oov: dict[str, int]


class ExpertWeights(NamedTuple):
    """One fusion level of a network that mixes experts: weights_NGE of every expert in every unit, by candidate.

    Where experts are gated, the gate's weight and the native one together; a network may also mix them by fixed
    numbers, the same for all candidates."""

    units: list[str]
    experts: list[str]
    weights_NGE: NDArray[np.float32]


class Scorer:
    """One loaded model version. Scoring is safe from several threads.

    `reference_T` are the tasks' mean answers when it was exported."""

    def __init__(self, artifact: Artifact, encoder: FeatureEncoder, module: torch.jit.ScriptModule) -> None:
        self.artifact = artifact
        self.manifest = artifact.manifest
        self.schema = artifact.manifest.feed
        self.tasks = [task.name for task in self.schema.tasks]
        self.encoder = encoder
        self.module = module
        self.reference_T = _reference_means(artifact, self.tasks)
        self.engine: Engine = "torchscript"
        self.engine_reason: str | None = None
        self._compiled: CompiledAnswers | None = None
        self._calibration: Mapping[int, Platt | Isotonic] = {}

    @property
    def version(self) -> str:
        """The model version, as answers and log lines name it."""
        return self.artifact.version

    @classmethod
    def load(cls, path: Path, engine: EngineChoice = "auto") -> "Scorer":
        """Verifies an artifact, loads it and has it answer its golden requests. Raises ArtifactError.

        `auto` takes a compiled package that holds, and else says why not (`engine_reason`; None where there is none);
        `compiled` refuses the artifact then; `torchscript` does not look for one."""
        artifact = Artifact.open(path)
        try:
            fitted = FittedFeatures.from_mapping(artifact.read_json(FITTED), str(path / FITTED))
            encoder = FeatureEncoder(artifact.manifest.feed, fitted)
            with warnings.catch_warnings():
                # torch.jit is deprecated without a successor that loads without a compiler; docs/decisions says more.
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
                warnings.filterwarnings("ignore", message=".*torch.jit.*")
                module = torch.jit.load(  # type: ignore[no-untyped-call]
                    io.BytesIO(artifact.read(RANKER)), map_location="cpu"
                )
            set_tables(module, {width: _table(artifact, width) for width in widths_of(module)})
        except (ValueError, RuntimeError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{path}: cannot be loaded ({error})") from error
        module.eval()
        scorer = cls(artifact, encoder, module)
        scorer._calibration = _calibration(artifact)
        scorer.check_golden_requests()
        if engine == "compiled" or (engine == "auto" and folder_of(artifact).exists()):
            try:
                scorer._take_compiled()
            except ArtifactError as error:
                if engine == "compiled":
                    raise
                scorer.engine_reason = str(error)
        return scorer

    def score_values(
        self, user: Mapping[str, object], features: Mapping[str, Sequence[object]], rows: int
    ) -> NDArray[np.float32]:
        """answers_NT of JSON values: `user` holds one value per feature, `features` a column of `rows` values each."""
        request = self.encoder.columns("request", {name: [value] for name, value in user.items()}, 1)
        return self.score(request, self.encoder.columns("candidate", features, rows), rows).answers_NT

    def score(self, request: Mapping[str, Column], candidates: Mapping[str, Column], rows: int) -> Scored:
        """Scores `rows` candidates (at least 1) for one user. Raises NonFiniteScoresError."""
        assert rows > 0, "a request has at least one candidate"
        encoded_request = self.encoder.encode("request", request, 1, as_served=True)
        encoded = self.encoder.encode("candidate", candidates, rows, as_served=True)
        with torch.inference_mode():
            request_tensors, tensors = block_tensors(encoded_request.block), block_tensors(encoded.block)
            if self._compiled is None:
                answers = self.module(*request_tensors, *tensors)
            else:
                sums_1F = self.module.request_sums(*request_tensors)
                answers = self._compiled(self.module.candidate_rows(*tensors), sums_1F)
        return self._scored(answers, encoded_request, encoded)

    def explain(
        self, request: Mapping[str, Column], candidates: Mapping[str, Column], rows: int
    ) -> tuple[Scored, list[ExpertWeights]]:
        """`score` by TorchScript, and the weights that experts were mixed by, level by level; none where the network
        mixes no experts. Raises NonFiniteScoresError."""
        assert rows > 0, "a request has at least one candidate"
        encoded_request = self.encoder.encode("request", request, 1, as_served=True)
        encoded = self.encoder.encode("candidate", candidates, rows, as_served=True)
        with torch.inference_mode():
            sums_1F = self.module.request_sums(*block_tensors(encoded_request.block))
            rows_ND = self.module.candidate_rows(*block_tensors(encoded.block))
            answers, weights = self.module.explained(rows_ND, sums_1F)
        names = zip(self.module.unit_names, self.module.expert_names, weights, strict=True)
        levels = [ExpertWeights(units, experts, weights_NGE.numpy()) for units, experts, weights_NGE in names]
        return self._scored(answers, encoded_request, encoded), levels

    def _scored(self, answers: torch.Tensor, request: Encoded, candidates: Encoded) -> Scored:
        answers_NT: NDArray[np.float32] = answers.numpy()
        if self._calibration:
            answers_NT = calibrated(answers_NT, self._calibration)
        if not np.isfinite(answers_NT).all():
            raise NonFiniteScoresError(f"model {self.manifest.name} version {self.version} gave a non-finite answer")
        return Scored(answers_NT, {**request.missing, **candidates.missing}, {**request.oov, **candidates.oov})

    def _take_compiled(self) -> None:
        """Scores by the compiled package from now on. Raises ArtifactError where it may not run or is not right."""
        manifest, package = open_compiled(self.artifact)
        place = folder_of(self.artifact)
        # What this very process answers by TorchScript: candidates that are level there may change places.
        expected = self._golden_answers()
        try:
            self._compiled = CompiledAnswers(package)
            for number, (expected_NT, answers_NT) in enumerate(zip(expected, self._golden_answers(), strict=True)):
                fault = disagreement(expected_NT, answers_NT, manifest.tolerance)
                if fault is not None:
                    raise ArtifactError(f"{place}: golden request {number}: {fault}")
        except (RuntimeError, AttributeError, ArtifactError) as error:
            self._compiled = None
            raise error if isinstance(error, ArtifactError) else ArtifactError(f"{place}: {error}") from error
        self.engine = "compiled"

    def _golden_answers(self) -> list[NDArray[np.float32]]:
        return [
            self.score_values(one["user"], one["candidates"]["features"], len(one["candidates"]["id"]))
            for one in self.golden_requests()["requests"]
        ]

    def golden_requests(self) -> dict[str, Any]:
        """The golden requests: `tolerance` and `requests`, each with `user`, `candidates` and `expected` answers."""
        golden: dict[str, Any] = self.artifact.read_json(GOLDEN)
        return golden

    def reference_scores(self) -> dict[str, Any]:
        """The artifact's reference histograms, by task: bin edges and counts."""
        reference: dict[str, Any] = self.artifact.read_json(REFERENCE)
        return reference

    def check_golden_requests(self) -> None:
        """Answers every golden request. Raises ArtifactError where an answer is off by more than the tolerance."""
        place = f"{self.artifact.path / GOLDEN}"
        try:
            golden = self.golden_requests()
            tolerance = float(golden["tolerance"])
            if self.engine == "compiled":
                tolerance = max(tolerance, COMPILED_TOLERANCE)
            if not golden["requests"]:
                raise ArtifactError(f"{place}: no golden request, so nothing shows that the ranker still answers right")
            for number, request in enumerate(golden["requests"]):
                candidates = request["candidates"]
                rows = len(candidates["id"])
                if not rows:
                    raise ArtifactError(f"{place}: request {number} has no candidates")
                answers_NT = self.score_values(request["user"], candidates["features"], rows)
                for position, task in enumerate(self.tasks):
                    expected_N = np.asarray(request["expected"][task], np.float64)
                    error_N = np.abs(answers_NT[:, position] - expected_N) / np.maximum(1.0, np.abs(expected_N))
                    if not error_N.max() <= tolerance:
                        raise ArtifactError(
                            f"{place}: request {number}, task {task}: the answer is off by {error_N.max():.2g}, "
                            f"tolerance {tolerance:g}"
                        )
        except ArtifactError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ArtifactError(f"{place}: not golden requests of this model ({error!r})") from None
        except NonFiniteScoresError as error:
            raise ArtifactError(f"{place}: {error}") from None
        except RuntimeError as error:
            raise ArtifactError(f"{self.artifact.path / RANKER}: cannot score ({error})") from None


def _reference_means(artifact: Artifact, tasks: Sequence[str]) -> NDArray[np.float64]:
    reference = artifact.read_json(REFERENCE)
    try:
        means_T = np.array([float(reference[task]["mean"]) for task in tasks])
    except (KeyError, TypeError, ValueError):
        means_T = np.array([np.nan])
    if not np.isfinite(means_T).all():
        raise ArtifactError(f"{artifact.path / REFERENCE}: needs a finite `mean` of every task: {', '.join(tasks)}")
    return means_T


def disagreement(expected_NT: NDArray[np.float32], answers_NT: NDArray[np.float32], tolerance: float) -> str | None:
    """How answers differ from the expected ones, None if they do not: a score by more than the tolerance (above 1,
    relative), or two candidates in another order although a task tells them apart by more than that."""
    scale_NT = np.maximum(1.0, np.abs(expected_NT))
    error = float((np.abs(answers_NT - expected_NT) / scale_NT).max())
    if not error <= tolerance:
        return f"an answer is off by {error:.2g}, tolerance {tolerance:g}"
    for task, (expected_N, got_N) in enumerate(zip(expected_NT.T, answers_NT.T, strict=True)):
        apart_NN = expected_N[:, None] - expected_N[None, :] > tolerance * scale_NT[:, task, None]
        if (apart_NN & (got_N[:, None] <= got_N[None, :])).any():
            return f"task {task} ranks candidates in another order"
    return None


def _calibration(artifact: Artifact) -> Mapping[int, Platt | Isotonic]:
    if CALIBRATION not in artifact.manifest.files:
        return {}
    place = str(artifact.path / CALIBRATION)
    try:
        return Calibration.from_mapping(artifact.read_json(CALIBRATION), place).bound(artifact.manifest.feed)
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(str(error) if place in str(error) else f"{place}: {error}") from None


def _table(artifact: Artifact, width: int) -> torch.Tensor:
    name = table_file(width)
    try:
        return as_table(artifact.map(name), width)
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{artifact.path / name}: {error}") from None


def block_tensors(block: EncodedBlock) -> tuple[torch.Tensor, ...]:
    """A block's arrays as the exported module takes them, in order; nothing is copied where memory allows."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in block)
