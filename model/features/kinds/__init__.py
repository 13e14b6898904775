"""Kinds of features, one file each: the keys of the schema, raw columns, and all other differences of kinds."""

from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from model.features.kinds.id import IdFeature
from model.features.kinds.id_list import IdListFeature
from model.features.kinds.number import NumberFeature
from model.strict_yaml import refuse_unknown_kind

Feature = Annotated[
    IdFeature | IdListFeature | NumberFeature,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, KINDS, "feature's type")),
]

# Every name that `kind` may have.
KINDS: list[str] = [
    kind for feature in get_args(get_args(Feature)[0]) for kind in get_args(feature.model_fields["kind"].annotation)
]

__all__ = ["KINDS", "Feature", "IdFeature", "IdListFeature", "NumberFeature"]
