"""Files beside a model's versions: their kinds and what a version serves with are the same list."""

from dataclasses import fields

from service.metrics.metrics import LOAD_RESULTS
from service.models.beside import KINDS, Beside
from service.models.version import ServedModel


def test_each_kind_of_file_is_a_field_of_what_serves_and_is_counted() -> None:
    keys = {kind.key for kind in KINDS}
    assert keys == set(Beside._fields)
    assert keys <= {field.name for field in fields(ServedModel)}
    assert {f"{key}_{result}" for key in keys for result in ("ready", "refused")} <= set(LOAD_RESULTS)
