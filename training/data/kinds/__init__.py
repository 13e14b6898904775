"""Kinds of features in a log, one file each."""

from typing import Any

from model.features.kinds import Feature, IdFeature, IdListFeature, NumberFeature
from training.data.kinds.id import LoggedId
from training.data.kinds.id_list import LoggedIdList
from training.data.kinds.logged import LoggedFeature
from training.data.kinds.number import LoggedNumber

_KINDS: dict[type[Feature], type[LoggedFeature[Any]]] = {
    IdFeature: LoggedId,
    IdListFeature: LoggedIdList,
    NumberFeature: LoggedNumber,
}


def in_log(feature: Feature) -> LoggedFeature[Any]:
    """The feature as the jobs of training read it."""
    return _KINDS[type(feature)](feature)
