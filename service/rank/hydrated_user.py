"""Reading of a request's user, of which a state store may have given values that do not fit.

In: user features and what the store gave of them. Out: the block, but for what is left to hash. A value of the store
that does not fit its feature is taken out of both, so that the feature has its default. A faulty value of the request
is its sender's fault.
"""

from typing import Any

from model.features.encoder import ColumnErrors, Encoded, FeatureEncoder, ReadRow
from service.state.user_state import Hydrated


def read_user(user: dict[str, Any], hydrated: Hydrated | None, encoder: FeatureEncoder) -> ReadRow | Encoded:
    """The request's block. Raises ColumnErrors with every faulty value that the request itself has."""
    while True:
        try:
            return encoder.read_request(user)
        except ColumnErrors as errors:
            faulty = [error.feature for error in errors.errors]
            if hydrated is None or hydrated.values.keys().isdisjoint(faulty):
                raise
            for name in hydrated.values.keys() & set(faulty):
                del user[name], hydrated.values[name]
                hydrated.refused.append(name)
