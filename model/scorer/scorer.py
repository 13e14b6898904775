"""Artifact -> answers: the one scorer of the service, of golden requests and of batch scoring.

In: the columns of a request's two blocks (user and context once, N candidates). Out: answers_NO, float32, a probability
per binary task and a quantity in the label's own unit per regression task, and what was missing or unknown.

A scorer exists only for an artifact that answered its golden requests within tolerance. It scores by a compiled package
only where there is one that this process may run and that agrees with TorchScript on them, otherwise by TorchScript.

Shapes: N candidates, S distinct ones, B rows of a block, K single-id features (of a catalogue: its items), D columns of
the dense row, F outputs over the raw row, G fused units and E experts of a level, R rows of all tables of a width W, O
outputs.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model.artifact.artifact import FITTED, GOLDEN, RANKER, Artifact, ArtifactError
from model.artifact.catalogue import Catalogue, generations
from model.artifact.catalogue import folder_of as catalogues_of
from model.artifact.catalogue_join import NamedCandidates as NamedCandidates
from model.artifact.catalogue_join import resolve
from model.artifact.compiled import BY_SUMS, Acceptance, CompiledAnswers, compiled_sums_dtype, folder_of, open_compiled
from model.artifact.module_inputs import ModuleInputs
from model.artifact.reference import Bins as Bins
from model.artifact.reference import Reference as Reference
from model.calibration import calibrated
from model.features.distinct import Positions, distinct, once, picked, spread
from model.features.encoder import Column, Encoded, EncodedBlock, FeatureEncoder, FittedFeatures
from model.recalibration import InForce, Recalibration
from model.recalibration import folder_of as calibrations_of
from model.scorer.answers import ExpertWeights as ExpertWeights
from model.scorer.answers import NonFiniteScoresError as NonFiniteScoresError
from model.scorer.answers import Scored as Scored
from model.scorer.golden import check_expected, check_recalibration, compiled_fault, disagreement
from model.scorer.tables import mapped_table
from model.scorer.torchscript import Load, load_script
from model.value_models.answer_domain import AnswerDomain

Engine = Literal["torchscript", "compiled"]
EngineChoice = Literal["auto", "torchscript", "compiled"]
# What bfloat16 may change of a score, and a difference of scores below which two candidates count as level.
COMPILED_TOLERANCE = 1e-3
CHECKED_ITEMS = 100
# TorchScript watches the first run of a code and optimises it at the second, which takes longer than many requests do.
_RUNS_TO_WARM = 2
_IN_IT = nullcontext()


class Scorer:
    """One loaded model version. Scoring is safe from several threads.

    `reference` is what it saw and answered when it was exported."""

    def __init__(
        self, artifact: Artifact, encoder: FeatureEncoder, module: torch.jit.ScriptModule, inputs: ModuleInputs
    ) -> None:
        self.artifact = artifact
        self.manifest = artifact.manifest
        self.schema = artifact.manifest.feed
        self.outputs = list(self.schema.outputs)
        # A golden request with its `expected` answers. `load` sets it too.
        self.example: dict[str, Any]
        self.domain: AnswerDomain  # set by `load`, once the golden requests verify
        self.encoder = encoder
        self.module = module
        self.inputs = inputs
        self.reference = Reference.read(artifact, self.outputs)
        self.engine: Engine = "torchscript"
        self.engine_reason: str | None = None
        self.acceptance: Acceptance | None = None  # of the compiled package that serves
        # Replaced in one assignment when a newer generation verifies.
        self.catalogue: Catalogue | None = None
        self.compiled: CompiledAnswers | None = None
        self.compiled_sums: CompiledAnswers | None = None
        # Replaced in one assignment when a newer generation verifies.
        self.calibration = InForce.exported(artifact)

    @property
    def version(self) -> str:
        """The model version, as answers and log lines name it."""
        return self.artifact.version

    @classmethod
    def load(
        cls,
        path: Path,
        engine: EngineChoice = "auto",
        verify_key: Path | None = None,
        load: Load = load_script,
        model: str | None = None,
    ) -> "Scorer":
        """Verify an artifact, load it and have it answer its golden requests. Raises ArtifactError.
        With `verify_key`, a file of trusted keys, it and what is loaded beside it must be signed. With `model` it
        has to be a version of that model.

        `auto` takes a compiled package that verifies, and otherwise says why not (`engine_reason`, None where there is
        none). `compiled` then refuses the artifact. `torchscript` does not look for one. `load` makes the module of the
        bytes of an archive (model.scorer.torchscript)."""
        artifact = Artifact.open(path, verify_key, model)
        try:
            fitted = FittedFeatures.from_mapping(artifact.read_json(FITTED), str(path / FITTED))
            encoder = FeatureEncoder(artifact.manifest.feed, fitted)
            module = load(artifact.read(RANKER)).eval()
            stacked_RW = {table.dim: mapped_table(artifact, table.dim) for table in artifact.manifest.feed.tables}
            scorer = cls(artifact, encoder, module, ModuleInputs(artifact.manifest.feed, module, stacked_RW))
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{path}: cannot be loaded ({error})") from error
        scorer.check_golden_requests()
        golden = scorer.golden_requests()["requests"]
        scorer.example = next((one for one in golden if len(one["candidates"]["id"]) > 1), golden[0])
        scorer.domain = AnswerDomain.of(scorer.schema, fitted, scorer.golden_requests())
        if len(scorer.golden_requests()["requests"]) < _RUNS_TO_WARM:
            scorer.check_golden_requests()
        if engine == "compiled" or (engine == "auto" and folder_of(artifact).exists()):
            try:
                scorer._take_compiled()
            except ArtifactError as error:
                if engine == "compiled":
                    raise
                scorer.engine_reason = str(error)
        return scorer

    def request_sums(self, block: EncodedBlock) -> torch.Tensor:
        """sums_BF of a request block: what each of its rows adds to every Linear that reads the raw row."""
        return self.inputs.request_sums(block)

    def candidate_rows(
        self, block: EncodedBlock, requests: EncodedBlock | None = None, request_of_N: Positions | None = None
    ) -> torch.Tensor:
        """rows_ND of a candidate block: its columns of the dense row (`ModuleInputs.candidate_rows`)."""
        return self.inputs.candidate_rows(block, requests, request_of_N)

    def candidate_vectors(self, feature: str, candidates: Encoded | NamedCandidates) -> NDArray[np.float32]:
        """vector_ND of candidates by one of their id features: rows of the artifact's own tables."""
        with _IN_IT if torch.is_inference_mode_enabled() else torch.inference_mode():
            return self.inputs.id_vectors.of_candidates(feature, candidates)

    def score_values(
        self, user: Mapping[str, object], features: Mapping[str, Sequence[object]], rows: int
    ) -> NDArray[np.float32]:
        """answers_NO of JSON values: `user` has one value per feature, `features` a column of `rows` values each."""
        candidates = self.encoder.columns("candidate", features, rows)
        return self.score(*self.encode(self.encoder.request_columns(user), candidates, rows)).answers_NO

    def _golden_scored(self, golden: Mapping[str, Any]) -> Scored:
        candidates, user = golden["candidates"], self.encoder.request_columns(golden["user"])
        rows = len(candidates["id"])
        return self.score(*self.encode(user, self.encoder.columns("candidate", candidates["features"], rows), rows))

    def encode(
        self, request: Mapping[str, Column], candidates: Mapping[str, Column], rows: int
    ) -> tuple[Encoded, Encoded]:
        """The two blocks of a request with `rows` candidates, as they are served."""
        return (
            self.encoder.encode("request", request, 1, as_served=True),
            self.encoder.encode("candidate", candidates, rows, as_served=True),
        )

    def score(self, request: Encoded, candidates: Encoded | NamedCandidates) -> Scored:
        """Score the candidates (at least 1) of one user. Raises NonFiniteScoresError.

        Candidates that are named by id and not described take their sums from the catalogue.
        What is compiled answers where those are in bfloat16."""
        # A thread that does nothing else is in inference mode already. To enter it costs a few tensors.
        with _IN_IT if torch.is_inference_mode_enabled() else torch.inference_mode():
            if isinstance(candidates, Encoded):
                answers = self._answers(request.block, candidates.block)
            elif candidates.encoded is not None and candidates.is_encoded_N.all():
                answers = self._answers(request.block, candidates.encoded)
            else:
                answers = self._answers_named(request.block, candidates)
        return self.scored(answers, request, candidates.missing, candidates.oov)

    def catalogue_generations(self) -> list[Path]:
        """The published generations of the version's catalogue, oldest first."""
        folder = catalogues_of(self.artifact)
        return [folder / str(generation) for generation in generations(folder)]

    def open_catalogue(self, path: Path) -> Catalogue:
        """Open a generation of the version's catalogue and have it answer for some of its items. Layers that serve
        already are taken as they are. Raises ArtifactError where it does not verify."""
        known = self.catalogue
        catalogue = Catalogue.open(path, self.artifact, known)
        rows_N = catalogue.some_rows(CHECKED_ITEMS, besides=known)
        try:
            fault = self.sums_fault(catalogue.block(rows_N), catalogue.sums(rows_N), COMPILED_TOLERANCE)
        except (RuntimeError, IndexError) as error:
            raise ArtifactError(f"{path}: this version cannot score it ({error})") from None
        if fault is not None:
            raise ArtifactError(f"{path}: its sums are not those of its features: {fault}")
        return catalogue

    def calibration_generations(self) -> list[Path]:
        """The published generations of the version's calibration, oldest first."""
        folder = calibrations_of(self.artifact)
        return [folder / str(generation) for generation in generations(folder)]

    def open_calibration(self, path: Path) -> Recalibration:
        """Open a generation of the version's calibration and have it answer the golden requests. Raises ArtifactError
        where it does not verify."""
        recalibration = Recalibration.open(path, self.artifact)
        check_recalibration(recalibration, self.outputs, self.raw_golden_answers(), self._tolerance())
        return recalibration

    def take_calibration(self, recalibration: Recalibration) -> None:
        """Answer by this generation from now on."""
        self.calibration = self.calibration.replaced(recalibration)

    def _tolerance(self) -> float:
        tolerance = float(self.golden_requests()["tolerance"])
        return max(tolerance, COMPILED_TOLERANCE) if self.engine == "compiled" else tolerance

    def sums_fault(self, block: EncodedBlock, sums_NF: torch.Tensor, tolerance: float) -> str | None:
        """Difference of the answers by candidates' sums from those by their features, for the users of the golden
        requests. None where they do not (`disagreement`), and where there is no candidate."""
        if not len(sums_NF):
            return None
        for golden in self.golden_requests()["requests"]:
            with torch.inference_mode():
                request = self.encoder.encode_request(golden["user"]).block
                sums_1F = self.request_sums(request)
                expected = self.module(self.candidate_rows(block, request), sums_1F)
                answers = self.module.answer_sums(self.inputs.with_attention(sums_NF, block, request), sums_1F)
            fault = disagreement(self.as_answered(expected), self.as_answered(answers), tolerance)
            if fault is not None:
                return fault
        return None

    def name(
        self, ids: Sequence[str], candidates: Mapping[str, Column], nulls: Mapping[str, NDArray[np.bool_]]
    ) -> NamedCandidates | None:
        """Candidates as the catalogue of this moment knows them (model.artifact.catalogue_join). None without a
        catalogue."""
        catalogue = self.catalogue
        return None if catalogue is None else resolve(self.encoder, catalogue, ids, candidates, nulls)

    def _answers_named(self, request: EncodedBlock, named: NamedCandidates) -> torch.Tensor:
        """answers_NO of candidates of which the catalogue has some."""
        sums_SF, of_N = self.named_sums(named, request)
        sums_1F = self.request_sums(request)
        if self.compiled_sums is not None and sums_SF.dtype == compiled_sums_dtype(self.schema):
            return spread(self.compiled_sums(sums_SF, sums_1F), of_N)
        return spread(self.module.answer_sums(sums_SF, sums_1F), of_N)

    def named_sums(self, named: NamedCandidates, request: EncodedBlock) -> tuple[torch.Tensor, Positions]:
        """sums_SF of the distinct candidates of a request, and which of them each one is. They are the catalogue's
        where one of equal ones is in it."""
        block, rows_K, place_N = named.whole()
        encoded, found = named.encoded, distinct(block)
        if found is not None:
            is_known_S = found.first_S < len(rows_K)
            encoded = None if is_known_S.all() else picked(block, found.first_S[~is_known_S])
            rows_K, place_N = rows_K[found.first_S[is_known_S]], found.of_N[place_N]
            block = picked(block, found.first_S) if self.schema.attentions else block
        sums_SF = named.catalogue.sums(rows_K)
        if encoded is not None:
            dtype = torch.float32 if self.compiled_sums is None else sums_SF.dtype
            rows_ND = self.candidate_rows(encoded)
            sums_SF = torch.cat([sums_SF.to(dtype), self.module.candidate_sums(rows_ND).to(dtype)])
        return self.inputs.with_attention(sums_SF, block, request), place_N

    def explain(self, request: Encoded, candidates: Encoded | NamedCandidates) -> tuple[Scored, list[ExpertWeights]]:
        """`score` by TorchScript, from features alone, and the weights that experts were mixed by, level by level. None
        where the network mixes no experts. Raises NonFiniteScoresError."""
        with torch.inference_mode():
            sums_1F = self.request_sums(request.block)
            if isinstance(candidates, NamedCandidates):
                block, _, place_N = candidates.whole()
            else:
                block, place_N = candidates.block, np.arange(len(candidates.block.ids_BK))
            block, of_N = once(block)
            answers, weights = self.module.explained(self.candidate_rows(block, request.block), sums_1F)
            of_N = place_N if of_N is None else of_N[place_N]
            answers, weights = spread(answers, of_N), [spread(level, of_N) for level in weights]
        names = zip(self.module.unit_names, self.module.expert_names, weights, strict=True)
        levels = [ExpertWeights(units, experts, weights_NGE.numpy()) for units, experts, weights_NGE in names]
        return self.scored(answers, request, candidates.missing, candidates.oov), levels

    def _answers(self, request: EncodedBlock, candidates: EncodedBlock) -> torch.Tensor:
        """answers_NO of the request's tensors and the candidates, by the engine of this scorer. Equal candidates are
        computed once."""
        block, of_N = once(candidates)
        sums_1F = self.request_sums(request)
        answer = self.module if self.compiled is None else self.compiled
        answers_NO: torch.Tensor = answer(self.candidate_rows(block, request), sums_1F)
        return answers_NO if of_N is None else spread(answers_NO, of_N)

    def scored(
        self, answers: torch.Tensor, request: Encoded, missing: Mapping[str, int], oov: Mapping[str, int]
    ) -> Scored:
        """The module's answers calibrated, with what was missing and unknown. Raises NonFiniteScoresError."""
        raw_NO: NDArray[np.float32] = answers.numpy()
        calibration = self.calibration  # one for the answers and for what names it
        answers_NO = calibrated(raw_NO, calibration.mappings) if calibration.mappings else raw_NO
        if not np.isfinite(answers_NO).all():
            raise NonFiniteScoresError(f"model {self.manifest.name} version {self.version} gave a non-finite answer")
        return Scored(
            answers_NO, {**request.missing, **missing}, {**request.oov, **oov}, raw_NO, calibration.generation
        )

    def as_answered(self, answers: torch.Tensor) -> NDArray[np.float32]:
        """The module's answers, calibrated."""
        return calibrated(answers.numpy(), self.calibration.mappings)

    def as_exported(self, scored: Scored) -> NDArray[np.float32]:
        """answers_NO by the version's own calibration, which its references at export have."""
        return scored.answers_NO if scored.calibration is None else calibrated(scored.raw_NO, self.calibration.own)

    def _take_compiled(self) -> None:
        """Scores by the compiled package from now on. Raises ArtifactError where it may not run or is not right."""
        manifest, package = open_compiled(self.artifact)
        place = folder_of(self.artifact)
        # What this very process answers by TorchScript: candidates that are level there may change places.
        expected = self._golden_answers()
        try:
            self.compiled, self.compiled_sums = CompiledAnswers(package), CompiledAnswers(package, BY_SUMS)
            by_columns = zip(expected, self._golden_answers(), strict=True)
            by_sums = self._golden_answers_by_sums(self.compiled_sums)
            for number, pairs in enumerate(zip(by_columns, by_sums, strict=True)):
                for expected_NO, answers_NO in pairs:
                    fault = compiled_fault(manifest, self.schema, expected_NO, answers_NO)
                    if fault is not None:
                        raise ArtifactError(f"{place}: golden request {number}: {fault}")
        except (RuntimeError, AttributeError, OSError, ArtifactError) as error:
            self.compiled = self.compiled_sums = None
            raise error if isinstance(error, ArtifactError) else ArtifactError(f"{place}: {error}") from error
        self.engine, self.acceptance = "compiled", manifest.acceptance

    def by_torchscript(self, reason: str) -> "Scorer":
        """The same version scored by TorchScript, with the reason why. Requests that run keep this scorer."""
        plain = copy.copy(self)
        plain.compiled = plain.compiled_sums = plain.acceptance = None
        plain.engine, plain.engine_reason = "torchscript", reason
        return plain

    def raw_golden_answers(self) -> list[NDArray[np.float32]]:
        """raw_NO of every golden request, before calibration."""
        return [self._golden_scored(one).raw_NO for one in self.golden_requests()["requests"]]

    def _golden_answers(self) -> list[NDArray[np.float32]]:
        return [calibrated(raw_NO, self.calibration.mappings) for raw_NO in self.raw_golden_answers()]

    def _golden_answers_by_sums(
        self, compiled: CompiledAnswers
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Answers of TorchScript and of the compiled package by the same sums."""
        for golden in self.golden_requests()["requests"]:
            features, rows = golden["candidates"]["features"], len(golden["candidates"]["id"])
            columns = self.encoder.columns("candidate", features, rows)
            encoded = self.encoder.encode("candidate", columns, rows, as_served=True)
            with torch.inference_mode():
                request = self.encoder.encode_request(golden["user"]).block
                sums_1F = self.request_sums(request)
                sums_NF = self.module.candidate_sums(self.candidate_rows(encoded.block, request))
                sums_NF = sums_NF.to(compiled_sums_dtype(self.schema))
                answers = (self.module.answer_sums(sums_NF, sums_1F), compiled(sums_NF, sums_1F))
            yield self.as_answered(answers[0]), self.as_answered(answers[1])

    def golden_requests(self) -> dict[str, Any]:
        """The golden requests: `tolerance` and `requests`, each with `user`, `candidates` and `expected` answers."""
        golden: dict[str, Any] = self.artifact.read_json(GOLDEN)
        return golden

    def check_golden_requests(self) -> None:
        """Answer every golden request. Raises ArtifactError where an answer is off by more than the tolerance."""
        place = f"{self.artifact.path / GOLDEN}"
        try:
            golden = self.golden_requests()
            tolerance, raw = self._tolerance(), []
            if not golden["requests"]:
                raise ArtifactError(f"{place}: no golden request, so nothing shows that the ranker still answers right")
            for number, request in enumerate(golden["requests"]):
                candidates = request["candidates"]
                rows = len(candidates["id"])
                if not rows:
                    raise ArtifactError(f"{place}: request {number} has no candidates")
                raw.append(self._golden_scored(request).raw_NO)
                answers_NO = calibrated(raw[number], self.calibration.own)
                check_expected(f"{place}: request {number}", self.outputs, request["expected"], answers_NO, tolerance)
            if self.calibration.recalibration is not None:
                check_recalibration(self.calibration.recalibration, self.outputs, raw, tolerance)
        except ArtifactError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ArtifactError(f"{place}: not golden requests of this model ({error!r})") from None
        except NonFiniteScoresError as error:
            raise ArtifactError(f"{place}: {error}") from None
        except RuntimeError as error:
            raise ArtifactError(f"{self.artifact.path / RANKER}: cannot score ({error})") from None
