"""Range of a model version's answers: from 0 to a bound for each output. Value models are accepted for it.

In: a schema, what was fitted, and the golden requests of an artifact. Out: an `AnswerDomain`.

Shapes: N candidates of the golden requests, O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artifact.artifact import FITTED, GOLDEN, Artifact
from model.features.fitted import FittedFeatures
from model.schema import FeedSchema


@dataclass(frozen=True)
class AnswerDomain:
    """`uppers` by output, in the schema's order: 1 of a probability, of a quantity the bound that the artifact has.
    `golden_NO` are answers that the version gave when it was exported. `schema` is None where answers alone are known.
    """

    schema: FeedSchema | None
    uppers: Mapping[str, float]
    golden_NO: NDArray[np.float32]

    @classmethod
    def of(cls, schema: FeedSchema, fitted: FittedFeatures, golden: Mapping[str, Any]) -> "AnswerDomain":
        """`golden` is the content of the file of golden requests."""
        uppers = {output: task.upper(fitted.targets) for task in schema.tasks for output in task.outputs}
        answers = [np.array([one["expected"][output] for output in uppers], np.float32).T for one in golden["requests"]]
        return cls(schema, uppers, np.concatenate(answers))

    @classmethod
    def of_answers(cls, answers: Mapping[str, Sequence[float]]) -> "AnswerDomain":
        """Range of a request's answers by output, whose version is not there: up to the largest, at least to 1."""
        uppers = {output: max(1.0, *given) for output, given in answers.items()}
        return cls(None, uppers, np.array(list(answers.values()), np.float32).T)

    @classmethod
    def read(cls, artifact: Artifact) -> "AnswerDomain":
        """The domain of a version that is not loaded. Raises ArtifactError, or ValueError naming the file."""
        fitted = FittedFeatures.from_mapping(artifact.read_json(FITTED), str(artifact.path / FITTED))
        return cls.of(artifact.manifest.feed, fitted, artifact.read_json(GOLDEN))
