"""Value models: a candidate's answers -> one combined score.

In: `<models>/<name>/value_models.yaml`, validated against the model's outputs before it is used. Out: `ValueModels`,
each with a version that is a hash of its content. Loss weights belong to training. The task weights here belong to
serving, where negative ones are normal (a dislike should cost).

Shapes: N candidates, O outputs of the ranker, M outputs that a value model reads, S subsets of the M outputs.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from math import factorial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, FiniteFloat, PositiveFloat, field_validator

from model.strict_yaml import StrictModel, parse_yaml, refuse_unknown_kind, unknown_key
from model.untrusted_files import read_bytes
from model.value_models.answer_domain import AnswerDomain
from model.value_models.finite_scores import refuse_not_finite
from model.value_models.formula import Formula, Term

FILE_NAME = "value_models.yaml"
DEFAULT = "default"
# So that exact Shapley values stay cheap: 2 ** 12 evaluations of the formula a candidate.
MAX_FORMULA_OUTPUTS = 12
_EVALUATIONS_AT_ONCE = 2**18
# In a file: accepting a formula may take some tenths of a second, and what is polled waits for all of them.
MAX_VALUE_MODELS = 100

Array = NDArray[np.float64]
# Of a logarithm: no sum of them comes near the range of a float64, in any order of addition.
Exponent = Annotated[float, Field(ge=-1e6, le=1e6)]


class WeightedSum(StrictModel):
    """score = sum over outputs of weight x answer. Outputs without a weight do not count."""

    remedy: ClassVar[str] = "use smaller weights"
    kind: Literal["weighted_sum"]
    weights: dict[str, FiniteFloat] = Field(min_length=1)

    @cached_property
    def weights_M(self) -> Array:
        """The weights as an array. A private attribute of pydantic would cost more to read than to multiply by."""
        return np.array(list(self.weights.values()))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that it reads, M."""
        return tuple(self.weights)

    def whole(self) -> Term:
        """The score as a formula."""
        terms = [_binary(np.multiply, "*", _number(weight), Term(name, name)) for name, weight in self.weights.items()]
        return _sum(terms)

    def score(self, answers_NM: Array) -> Array:
        """score_N."""
        score_N: Array = answers_NM @ self.weights_M
        return score_N

    def contributions(self, answers_NM: Array, reference_M: Array) -> Array:
        """contributions_NM: weight x answer, which sum to the score."""
        del reference_M
        contributions_NM: Array = answers_NM * self.weights_M
        return contributions_NM


class WeightedProduct(StrictModel):
    """score = product over outputs of max(answer, floor) ** exponent.

    The floor keeps one tiny probability from deciding alone."""

    remedy: ClassVar[str] = "use exponents nearer to 0, or another floor"
    kind: Literal["weighted_product"]
    exponents: dict[str, Exponent] = Field(min_length=1)
    floor: PositiveFloat = Field(1e-4, allow_inf_nan=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that it reads, M."""
        return tuple(self.exponents)

    def whole(self) -> Term:
        """The score as a formula."""
        terms = []
        for name, exponent in self.exponents.items():
            floored = Term(
                f"max({name}, {self.floor:g})", function=np.maximum, arguments=(Term(name, name), _number(self.floor))
            )
            logarithm = Term(f"log({floored.text})", function=np.log, arguments=(floored,))
            terms.append(_binary(np.multiply, "*", _number(exponent), logarithm))
        logarithms = _sum(terms)
        return Term(f"exp({logarithms.text})", function=np.exp, arguments=(logarithms,))

    def score(self, answers_NM: Array) -> Array:
        """score_N."""
        # The sum of logarithms: a product of many small powers would lose its digits on the way.
        score_N: Array = np.exp(self._logarithms(answers_NM).sum(axis=1))
        return score_N

    def contributions(self, answers_NM: Array, reference_M: Array) -> Array:
        """contributions_NM: exponent x log of the floored answer, which sum to the logarithm of the score."""
        del reference_M
        return self._logarithms(answers_NM)

    def _logarithms(self, answers_NM: Array) -> Array:
        logarithms_NM: Array = np.log(np.maximum(answers_NM, self.floor)) * np.array(list(self.exponents.values()))
        return logarithms_NM


class Expression(StrictModel):
    """score = a formula over the outputs' names (model/value_models/formula.py)."""

    remedy: ClassVar[str] = "keep it finite, for example by max(answer, 1e-6)"
    kind: Literal["expression"]
    formula: str = Field(min_length=1)

    @cached_property
    def parsed(self) -> Formula:
        """The formula as it was read."""
        return Formula(self.formula)

    @field_validator("formula")
    @classmethod
    def _check_formula(cls, text: str) -> str:
        names = Formula(text).names
        if not 0 < len(names) <= MAX_FORMULA_OUTPUTS:
            raise ValueError(f"a formula reads 1 to {MAX_FORMULA_OUTPUTS} tasks or classes, this one {len(names)}")
        return text

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that it reads, M."""
        return self.parsed.names

    def whole(self) -> Term:
        """The formula's terms."""
        return self.parsed.whole

    def score(self, answers_NM: Array) -> Array:
        """score_N."""
        return self.parsed(dict(zip(self.outputs, answers_NM.T, strict=True)))

    def contributions(self, answers_NM: Array, reference_M: Array) -> Array:
        """contributions_NM: each output's Shapley value (Shapley 1953) of the step from the reference answers to the
        candidate's, exact. They sum to the score less the score of the reference."""
        num_outputs = len(self.outputs)
        # Row S of the coalitions: bit m says whether output m has the candidate's answer.
        is_given_SM = (np.arange(2**num_outputs)[:, None] >> np.arange(num_outputs)) & 1 == 1
        size_S = is_given_SM.sum(axis=1)
        weights = [factorial(s) * factorial(num_outputs - s - 1) / factorial(num_outputs) for s in range(num_outputs)]
        weight_S = np.array([*weights, 0.0])[size_S]
        contributions_NM = np.empty_like(answers_NM)
        step = max(1, _EVALUATIONS_AT_ONCE // len(is_given_SM))
        for start in range(0, len(answers_NM), step):
            some_nM = answers_NM[start : start + step]
            mixed = {
                name: np.where(is_given_SM[:, m, None], some_nM[None, :, m], reference_M[m])
                for m, name in enumerate(self.outputs)
            }
            score_Sn = self.parsed(mixed)
            for m in range(num_outputs):
                without_S = np.flatnonzero(~is_given_SM[:, m])
                gain_Sn = score_Sn[without_S + 2**m] - score_Sn[without_S]
                contributions_NM[start : start + step, m] = weight_S[without_S] @ gain_Sn
        return contributions_NM


Definition = WeightedSum | WeightedProduct | Expression
KINDS: dict[str, type[Definition]] = {
    "weighted_sum": WeightedSum,
    "weighted_product": WeightedProduct,
    "expression": Expression,
}


def _number(value: float) -> Term:
    return Term(f"{value:g}", value)


def _binary(function: np.ufunc, sign: str, left: Term, right: Term) -> Term:
    return Term(f"{left.text} {sign} {right.text}", function=function, arguments=(left, right))


def _sum(terms: list[Term]) -> Term:
    """Sum of terms, as a tree whose depth grows with the logarithm of their number."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return _binary(np.add, "+", _sum(terms[:middle]), _sum(terms[middle:]))


def _unknown_output(name: str, outputs: list[str]) -> str:
    """Message for an output that a ranker does not have. A task with classes is answered by them alone."""
    classes = [output for output in outputs if output.startswith(f"{name}.")]
    if classes:
        return f"task '{name}' has an answer per class, not one; name a class: {', '.join(classes)}"
    return unknown_key(name, outputs, "task")


class ValueModel:
    """A value model bound to the outputs of a ranker. Raises ValueError: an output that the ranker does not have, or a
    score that is not finite for answers that it may give (model/value_models/finite_scores.py)."""

    def __init__(self, name: str, definition: Definition, domain: AnswerDomain) -> None:
        self.name = name
        self.definition = definition
        outputs = list(domain.uppers)
        for output in definition.outputs:
            if output not in outputs:
                raise ValueError(_unknown_output(output, outputs))
        self._positions_M = [outputs.index(output) for output in definition.outputs]
        self._are_all_outputs = self._positions_M == list(range(len(outputs)))
        uppers = {output: domain.uppers[output] for output in definition.outputs}
        refuse_not_finite(definition.whole(), uppers, definition.remedy)
        if not np.isfinite(self.score(domain.golden_NO)).all():
            raise ValueError(f"gives no finite score for an answer of the golden requests; {definition.remedy}")
        canonical = json.dumps(definition.model_dump(mode="json"), sort_keys=True)
        self.version = hashlib.sha256(canonical.encode()).hexdigest()[:8]

    @classmethod
    def from_mapping(cls, name: str, entry: object, domain: AnswerDomain, place: str) -> "ValueModel":
        """The value model of a parsed entry. Raises ValueError, opened by `place`."""
        try:
            refuse_unknown_kind(entry, list(KINDS), "value model")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        kind = KINDS[entry["kind"]] if isinstance(entry, Mapping) else WeightedSum
        definition = kind.from_mapping(entry, place)
        try:
            return cls(name, definition, domain)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    def score(self, answers_NO: NDArray[np.float32]) -> Array:
        """score_N of answers_NO. Float64, so that large weights do not cost the small answers their digits."""
        return self.definition.score(self._read(answers_NO))

    def contributions(self, answers_NO: NDArray[np.float32], reference_O: ArrayLike) -> dict[str, Array]:
        """contribution_N to the combined score, by output that it reads. `reference_O` are the outputs' mean answers.

        Of a weighted sum: weight x answer. Of a weighted product: exponent x log of the floored answer. Of an
        expression: the Shapley value against the reference."""
        reference_M = np.asarray(reference_O, np.float64)[self._positions_M]
        contributions_NM = self.definition.contributions(self._read(answers_NO), reference_M)
        return dict(zip(self.definition.outputs, contributions_NM.T, strict=True))

    def _read(self, answers_NO: NDArray[np.float32]) -> Array:
        if not self._are_all_outputs:
            answers_NO = answers_NO[:, self._positions_M]
        answers_NM: Array = answers_NO.astype(np.float64)
        return answers_NM


class ValueModels:
    """The value models of one ranker, by name. `default` always exists."""

    def __init__(self, models: Mapping[str, ValueModel], *, is_built_in: bool) -> None:
        self._models = dict(models)
        self.is_built_in = is_built_in

    def __getitem__(self, name: str) -> ValueModel:
        return self._models[name]

    def __contains__(self, name: object) -> bool:
        return name in self._models

    @property
    def names(self) -> list[str]:
        """All names, in file order."""
        return list(self._models)

    def with_one(self, value_model: ValueModel) -> "ValueModels":
        """These and one more, which takes the place of the one with its name."""
        return ValueModels({**self._models, value_model.name: value_model}, is_built_in=False)

    @classmethod
    def built_in(cls, domain: AnswerDomain) -> "ValueModels":
        """The one that serves without a file: weight 1 on each binary task, or on each regression task without any.

        Classes have no weight: one is not better than another by itself. Raises ValueError where there is nothing else.
        """
        assert domain.schema is not None, "answers alone do not show which tasks are binary"
        single = [task for task in domain.schema.tasks if task.outputs == (task.name,)]
        names = [task.name for task in single if task.is_probability] or [task.name for task in single]
        if not names:
            raise ValueError(
                f"no task is binary or a regression, so nothing says which class is better; write a {FILE_NAME} with "
                f"weights of {', '.join(domain.uppers)}"
            )
        definition = WeightedSum(kind="weighted_sum", weights=dict.fromkeys(names, 1.0))
        return cls({DEFAULT: ValueModel(DEFAULT, definition, domain)}, is_built_in=True)

    @classmethod
    def from_yaml(cls, path: Path, domain: AnswerDomain) -> "ValueModels":
        """Read a value-model file. Raises ValueError naming the file, the value model and the rule."""
        try:
            content = read_bytes(path)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        return cls.from_bytes(content, str(path), domain)

    @classmethod
    def of_folder(cls, family: Path, domain: AnswerDomain) -> "ValueModels":
        """Value models of `<models>/<name>`, as a service reads them at its start. Raises ValueError as `from_yaml`."""
        path = family / FILE_NAME
        # A link that leads nowhere is no absence but a fault.
        return cls.from_yaml(path, domain) if os.path.lexists(path) else cls.built_in(domain)

    @classmethod
    def from_bytes(cls, content: bytes, path: str, domain: AnswerDomain) -> "ValueModels":
        """The value models of a file's content. `{}` is the built-in one. Raises ValueError as `from_yaml`."""
        data = parse_yaml(content, path)
        if data == {}:
            return cls.built_in(domain)
        if not isinstance(data, Mapping) or DEFAULT not in data:
            raise ValueError(f"{path}: needs a mapping of value models with one named '{DEFAULT}', or {{}} for none")
        if len(data) > MAX_VALUE_MODELS:
            raise ValueError(
                f"{path}: at most {MAX_VALUE_MODELS} value models, got {len(data):,}; remove what no request names"
            )
        models = {}
        for name, entry in data.items():
            if not isinstance(name, str):
                raise ValueError(f"{path}: the name of a value model must be a string, got {name!r}")
            models[name] = ValueModel.from_mapping(name, entry, domain, f"{path}: {name}")
        return cls(models, is_built_in=False)
