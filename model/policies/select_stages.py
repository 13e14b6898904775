"""The `select:` part of a policy, as policies.yaml has it: cap, mmr and explore.

In: the parsed mapping. Out: frozen models. Every fault is a ValueError that names the key, the rule and what to do.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from model.schema import FeedSchema
from model.strict_yaml import Name, StrictModel, unknown_key

# More places than a request may have candidates.
MOST_PLACES = 10_000


class Cap(StrictModel):
    """At most `count` candidates of one value of the feature `per` in any `within` consecutive places. Where none may
    stand at a place, the cap is relaxed there, or what is left is dropped. A null counts for no value."""

    per: Name
    count: int = Field(ge=1, le=MOST_PLACES)
    within: int = Field(ge=2, le=MOST_PLACES)
    otherwise: Literal["relax", "drop"] = Field("relax", alias="else")

    @model_validator(mode="after")
    def _binds(self) -> Self:
        if self.count >= self.within:
            rule = f"count {self.count} of {self.within} places caps nothing"
            raise ValueError(f"{rule}; count must be less than within")
        return self


class Mmr(StrictModel):
    """Maximal marginal relevance (Carbonell & Goldstein 1998) of the first `head` places.

    Utility = lambda x min-max score - (1 - lambda) x the largest cosine to what is placed, of the vectors of the
    feature `by`."""

    weight: float = Field(gt=0, le=1, allow_inf_nan=False, alias="lambda")
    head: int = Field(ge=1, le=MOST_PLACES)
    by: Name


class Explore(StrictModel):
    """A share of the requests draws its first `head` places by the softmax of the utilities over what may stand there.
    `temperature` is in standard deviations of the utilities that the `head` best candidates have at the first place."""

    temperature: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    head: int = Field(ge=1, le=MOST_PLACES)
    share: float = Field(ge=0, le=1, allow_inf_nan=False)


class Select(StrictModel):
    """Selection place by place, over what may stand there. Each stage is optional, one is there."""

    cap: Cap | None = None
    mmr: Mmr | None = None
    explore: Explore | None = None

    @model_validator(mode="after")
    def _has_a_stage(self) -> Self:
        if self.cap is None and self.mmr is None and self.explore is None:
            raise ValueError("select needs one of cap, mmr, explore")
        return self

    def check_features(self, schema: FeedSchema) -> None:
        """Raise ValueError unless `per` and `by` are candidate features with one id a candidate."""
        ids = [feature.name for feature in schema.requested("candidate") if feature.has_ids and not feature.is_list]
        named = [] if self.cap is None else [("cap.per", self.cap.per)]
        named += [] if self.mmr is None else [("mmr.by", self.mmr.by)]
        for key, name in named:
            if name not in ids:
                raise ValueError(f"select.{key}: {unknown_key(name, ids, 'candidate id feature')}")
