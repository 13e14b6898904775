"""Ranking policies of a model, `<models>/<name>/policies.yaml`: from combined scores to the order that is answered.

In: the file, then scored requests. Out: `Policies`, of which a `Policy` places candidates. Its stages come in one
order: filter, seen and dedup drop, boost and decay change utilities, select fills the places. Each is optional.

Shapes: N candidates, L of them left after the stages that drop, K of them answered, D columns
of a vector, B rows of a column.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.features.raw_values import Words
from model.policies.candidates import ID, Readable
from model.policies.draws import Draws
from model.policies.place import SCORE, Floats, Move, Placed, Placing, Rows
from model.policies.places import NO_GROUP, Codes
from model.policies.select import Prefixes, prefixes, select
from model.policies.select_stages import Select
from model.policies.stages import MOST_CONDITIONS, Boost, ConditionText, Decay, Mask, Seen, first_of_each
from model.schema import FeedSchema
from model.strict_yaml import Name, StrictModel, did_you_mean, parse_yaml
from model.value_models.answer_domain import AnswerDomain
from model.value_models.formula import Condition

FILE_NAME = "policies.yaml"
DEFAULT = "default"
MAX_POLICIES = 100


class PolicyDefinition(StrictModel):
    """A policy as the file has it."""

    filter: list[ConditionText] = Field(default_factory=list, max_length=MOST_CONDITIONS)
    seen: Seen | None = None
    dedup: list[Name] = Field(default_factory=list, max_length=MOST_CONDITIONS)
    boost: list[Boost] = Field(default_factory=list, max_length=MOST_CONDITIONS)
    decay: Decay | None = None
    select: Select | None = None


class _Left(NamedTuple):
    """Candidates that the stages before selection leave, by descending score, with their utilities."""

    rows_L: Rows
    utility_L: Floats
    dropped: dict[str, Rows]
    moves: tuple[Move, ...]


class Policy:
    """A policy bound to a ranker. Raises ValueError for features and answers that the ranker does not have."""

    def __init__(
        self, name: str, definition: PolicyDefinition, schema: FeedSchema, readable: Readable, domain: AnswerDomain
    ) -> None:
        self.name = name
        self.definition = definition
        self.readable = readable
        self._outputs = frozenset(domain.uppers)
        self._filter = [Condition(text) for text in definition.filter]
        self._boost = [(Condition(boost.when), boost.multiply) for boost in definition.boost]
        for key, conditions in (("filter", self._filter), ("boost", [condition for condition, _ in self._boost])):
            for number, condition in enumerate(conditions):
                for read in condition.names:
                    _check_read(f"{key}.{number}", read, schema, readable, self._outputs)
        named = {f"dedup.{number}": read for number, read in enumerate(definition.dedup)}
        named |= {} if definition.seen is None else {"seen.by": definition.seen.by}
        named |= {} if definition.decay is None else {"decay.per": definition.decay.per}
        for place, read in named.items():
            if read not in readable.ids and read != ID:
                hint = _hint(read, schema, [*readable.ids, ID])
                raise ValueError(f"{place}: '{read}' is no id feature of candidates; {hint}")
        if definition.select is not None:
            definition.select.check_features(schema)
        canonical = json.dumps(definition.model_dump(mode="json"), sort_keys=True)
        self.version = hashlib.sha256(canonical.encode()).hexdigest()[:8]

    @property
    def stages(self) -> list[str]:
        """The stages at which candidates may be dropped, in their order."""
        stages = [stage for stage in ("filter", "seen", "dedup") if getattr(self.definition, stage)]
        cap = self.definition.select and self.definition.select.cap
        return [*stages, "cap"] if cap and cap.otherwise == "drop" else stages

    def place(self, placing: Placing) -> Placed:
        """The order of a request. Nothing of it is kept."""
        explore = self.definition.select and self.definition.select.explore
        if not explore:
            return self._place(placing, None)
        draws = Draws(placing.request_id, self.version)
        return self._place(placing, draws if draws.wins_coin(explore.share) else None)

    def place_unexplored(self, placing: Placing) -> Placed:
        """The order of a request that does not explore, whatever its coin."""
        return self._place(placing, None)

    def follow(self, placing: Placing, order_K: Rows, value_N: Floats) -> Prefixes:
        """Probabilities of an order's first places under this policy, coin included, and the mean of a value over
        what it would put at each."""
        left = self._left(placing)
        number_of_N = np.full(len(placing.score_N), -1, np.intp)
        number_of_N[left.rows_L] = np.arange(len(left.rows_L))
        stages = self.definition.select
        if not len(left.rows_L):
            return Prefixes(np.zeros(len(order_K)), np.zeros(len(order_K)))
        group_L, vector_LD = self._read_of_select(placing, left.rows_L)
        of_left = number_of_N[order_K], value_N[left.rows_L]
        return prefixes(stages, left.utility_L, *of_left, group_N=group_L, vector_ND=vector_LD)

    def _place(self, placing: Placing, draws: Draws | None) -> Placed:
        """The order of a request, which explores with `draws` alone."""
        left, stages = self._left(placing), self.definition.select
        rows_L, utility_L, dropped = left.rows_L, left.utility_L, left.dropped
        if stages is None or not len(rows_L):
            order_K = rows_L[(-utility_L).argsort(kind="stable")][: placing.top_k]
            return Placed(order_K, None, dropped, 0, left.moves)
        group_L, vector_LD = self._read_of_select(placing, rows_L)
        selection = select(stages, utility_L, group_N=group_L, vector_ND=vector_LD, top_k=placing.top_k, draws=draws)
        if len(selection.dropped):
            dropped["cap"] = rows_L[selection.dropped]
        order_K = rows_L[selection.order_K]
        return Placed(order_K, selection.propensity_K, dropped, selection.relaxed, left.moves)

    def _left(self, placing: Placing) -> _Left:
        """The candidates that are left before selection, and their utilities."""
        definition, score_N = self.definition, placing.score_N
        left: Rows = (-score_N).argsort(kind="stable")
        dropped: dict[str, Rows] = {}
        numbers: dict[str, Floats] = {}

        def keep(stage: str, is_kept_L: Mask) -> None:
            nonlocal left
            if not is_kept_L.all():
                dropped[stage] = left[~is_kept_L]
                left = left[is_kept_L]

        if self._filter:
            is_kept_N = np.ones(len(score_N), np.bool_)
            for condition in self._filter:
                is_kept_N &= self._truths(condition, placing, numbers)
            keep("filter", is_kept_N[left])
        if definition.seen is not None:
            seen = definition.seen
            entries = placing.seen.get(seen.field, ())
            is_text = seen.by not in self.readable.integers
            words = _of_rows(placing.values.words(seen.by), left)
            keep("seen", ~seen.drops(words, entries, placing.now, is_text=is_text))
        if definition.dedup:
            keep("dedup", first_of_each([_of_rows(placing.values.words(name), left) for name in definition.dedup]))
        utility_L = score_N[left]
        moves = [Move(SCORE, left, utility_L)]
        if self._boost or definition.decay is not None:
            utility_L = utility_L - score_N.min()
        if self._boost:
            for condition, factor in self._boost:
                is_true_N = self._truths(condition, placing, numbers)
                utility_L = np.where(is_true_N[left], utility_L * factor, utility_L)
            moves.append(Move("boost", left, utility_L))
        if definition.decay is not None:
            words = _of_rows(placing.values.words(definition.decay.per), left)
            utility_L = utility_L * definition.decay.factors(utility_L, words)
            moves.append(Move("decay", left, utility_L))
        return _Left(left, utility_L, dropped, tuple(moves))

    def _read_of_select(self, placing: Placing, rows_L: Rows) -> tuple[Codes | None, NDArray[np.float32] | None]:
        """group_L of the cap and vector_LD of mmr, None without that stage."""
        stages = self.definition.select
        has_cap, has_mmr = stages is not None and stages.cap, stages is not None and stages.mmr
        group_L = _group_codes(_of_rows(placing.values.words(has_cap.per), rows_L)) if has_cap else None
        return group_L, placing.vectors(has_mmr.by)[rows_L] if has_mmr else None

    def _truths(self, condition: Condition, placing: Placing, numbers: dict[str, Floats]) -> Mask:
        """is_true_N of a condition. `numbers` keeps what was read."""
        for name in condition.names:
            if name not in numbers:
                is_answer = name in self._outputs
                numbers[name] = (
                    placing.answer_by_output[name].astype(np.float64) if is_answer else placing.values.numbers(name)
                )
        return condition(numbers).astype(np.bool_)


class Policies:
    """The policies of one ranker, by name."""

    def __init__(self, policies: Mapping[str, Policy], readable: Readable) -> None:
        self._policies = dict(policies)
        self.readable = readable

    def __getitem__(self, name: str) -> Policy:
        return self._policies[name]

    def __contains__(self, name: object) -> bool:
        return name in self._policies

    @property
    def names(self) -> list[str]:
        """All names, in file order."""
        return list(self._policies)

    @classmethod
    def from_bytes(cls, content: bytes, path: str, schema: FeedSchema, domain: AnswerDomain) -> "Policies":
        """The policies of a file's content, none of `{}`. Raises ValueError naming the file, the policy and the
        rule."""
        data = parse_yaml(content, path)
        if not isinstance(data, Mapping):
            raise ValueError(f"{path}: needs a mapping of policies by their names, or {{}} for none")
        if len(data) > MAX_POLICIES:
            raise ValueError(
                f"{path}: at most {MAX_POLICIES} policies, got {len(data):,}; remove what no request names"
            )
        readable = Readable.of(schema)
        policies = {}
        for name, entry in data.items():
            if not isinstance(name, str):
                raise ValueError(f"{path}: the name of a policy must be a string, got {name!r}")
            place = f"{path}: {name}"
            definition = PolicyDefinition.from_mapping(entry, place)
            try:
                policies[name] = Policy(name, definition, schema, readable, domain)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        return cls(policies, readable)

    def check_histories(self, kept: Sequence[str], path: str) -> None:
        """Check that every `seen` reads one of the histories that are kept of a user. Raises ValueError naming the
        file, the policy and the history."""
        for name, policy in self._policies.items():
            seen = policy.definition.seen
            if seen is not None and seen.field not in kept:
                hint = did_you_mean(seen.field, kept, f"it has: {', '.join(kept) or 'none'}")
                rule = f"'{seen.field}' is no append field of state.yaml"
                raise ValueError(f"{path}: {name}: seen.field: {rule}; {hint}")


def _of_rows(words: Words, rows: Rows) -> Words:
    return Words(words.word_B[rows], words.has_id_B[rows])


def _group_codes(words: Words) -> Codes:
    """group_N of the cap: numbers from 0, NO_GROUP where a candidate lacks the id."""
    code_N: Codes = np.unique(words.word_B, return_inverse=True)[1].astype(np.int64)
    return np.where(words.has_id_B, code_N, NO_GROUP)


def _check_read(place: str, name: str, schema: FeedSchema, readable: Readable, outputs: frozenset[str]) -> None:
    """Raise ValueError unless a condition can read what it names."""
    is_feature = name in readable.numbers or name in readable.integers
    if is_feature and name in outputs:
        raise ValueError(
            f"{place}: '{name}' is a feature and a task, so a condition cannot name it; rename one of them"
        )
    if not is_feature and name not in outputs:
        hint = _hint(name, schema, [*readable.numbers, *readable.integers, *sorted(outputs)])
        raise ValueError(f"{place}: '{name}' is no answer, number or integer id of candidates; {hint}")


def _hint(name: str, schema: FeedSchema, valid: Sequence[str]) -> str:
    feature = next((one for one in schema.features if one.name == name), None)
    if feature is not None:
        return f"it is a {feature.side} feature of kind {feature.kind}; valid: {', '.join(valid)}"
    return did_you_mean(name, valid, f"valid: {', '.join(valid)}")
