"""Features of ids: the keys by which they describe an embedding table, or name another feature's."""

from collections import Counter
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import Field, StrictInt, StrictStr, field_validator, model_validator

from model.features.kinds.columns import ID_LIMITS, Dtype
from model.features.kinds.feature import BaseFeature
from model.strict_yaml import Name

# Scaled dot product of the candidate's embedding and those of the list, or an MLP of both.
AttentionKind = Literal["dot", "mlp"]


class Attended(NamedTuple):
    """A list whose ids are weighed by each candidate. `query` names the candidate's id that they are compared with,
    None where there is but one that can be."""

    kind: AttentionKind
    query: Name | None
    max_length: int


class EmbeddedFeature(BaseFeature):
    """The keys by which an id or id_list feature describes its embedding table, or names another feature's."""

    has_ids: ClassVar[bool] = True

    dtype: Dtype | None = None
    buckets: int | None = Field(default=None, ge=1, le=2**31 - 2)
    # 2: an id is the sum of two rows, each `buckets` by a hash of its own. Two ids then seldom have both in common.
    hashes: Literal[1, 2] | None = None
    vocabulary: Literal["fitted"] | list[StrictInt] | list[StrictStr] | None = None
    min_count: int | None = Field(default=None, ge=1)
    # Rows that ids take while training runs and lose to others: model/embeddings/id_map.py, training/step/slots.py.
    slots: int | None = Field(default=None, ge=1, le=2**31 - 2)
    table: Name | None = None
    dim: int | None = Field(default=None, ge=4, le=1024)

    @property
    def attended(self) -> Attended | None:
        """Needs of attention to the feature's ids, None without it."""
        return None

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _ids_of_one_type(cls, value: object) -> object:
        if value is None or value == "fitted":
            return value
        if not isinstance(value, list | tuple):
            raise ValueError("a vocabulary is a list of ids, or the word fitted")
        if not any(all(isinstance(entry, dtype) for entry in value) for dtype in (int, str)):
            raise ValueError("a vocabulary has int64 ids alone or strings alone; write quotes around strings")
        return value

    @model_validator(mode="after")
    def _one_source_of_rows(self) -> Self:
        given = [key for key in ("buckets", "vocabulary", "slots", "table") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"feature '{self.name}' needs exactly one of buckets, vocabulary, slots, table; got {given or 'none'}"
            )
        if self.table is not None:
            extra = [key for key in ("dim", "dtype", "min_count", "hashes") if getattr(self, key) is not None]
            if extra:
                raise ValueError(f"feature '{self.name}' takes {', '.join(extra)} from table '{self.table}'; remove it")
            return self
        if self.dim is None:
            raise ValueError(f"feature '{self.name}' needs dim, the width of its embedding")
        if self.dim % 4:
            raise ValueError(f"feature '{self.name}': dim must be a multiple of 4 (fused kernels), got {self.dim}")
        if self.min_count is not None and self.vocabulary != "fitted":
            raise ValueError(f"feature '{self.name}': min_count applies to `vocabulary: fitted` alone")
        if self.hashes is not None and self.buckets is None:
            raise ValueError(
                f"feature '{self.name}': hashes applies to buckets alone; a vocabulary gives ids their own"
            )
        if isinstance(self.vocabulary, list):
            self._check_vocabulary(self.vocabulary)
        return self

    def _check_vocabulary(self, vocabulary: list[int] | list[str]) -> None:
        if not vocabulary:
            raise ValueError(f"feature '{self.name}': vocabulary is empty")
        wanted: type = str if self.dtype == "string" else int
        entry: int | str
        for entry in vocabulary:
            if not isinstance(entry, wanted):
                raise ValueError(f"feature '{self.name}': dtype {self.dtype or 'int64'} does not fit {entry!r}")
            if isinstance(entry, int) and not ID_LIMITS[0] <= entry <= ID_LIMITS[1]:
                raise ValueError(f"feature '{self.name}': {entry} is not an int64")
        (entry, times) = Counter[int | str](vocabulary).most_common(1)[0]
        if times > 1:
            raise ValueError(f"feature '{self.name}': vocabulary holds {entry!r} {times} times")
