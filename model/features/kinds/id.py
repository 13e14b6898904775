"""Kind `id`: one id per row."""

from typing import ClassVar, Literal

from model.features.kinds.columns import ID_LIMITS, Column, Dtype
from model.features.kinds.embedded import EmbeddedFeature
from model.features.kinds.feature import Side, check_side, column_of
from model.features.kinds.inputs import Inputs


class IdFeature(EmbeddedFeature):
    """One id per row. A missing or unknown id takes the table's OOV row."""

    is_list: ClassVar[bool] = False
    has_fast_path: ClassVar[bool] = True

    kind: Literal["id"]
    side: Side
    serving_value: int | str | None = None

    def description(self) -> str:
        return "an id, and null where there is none. An id that is unknown shares one row of the table"

    def add_inputs(self, inputs: Inputs) -> None:
        inputs.ids.append(self.name)

    def check_serving_value(self, dtype: Dtype | None) -> None:
        check_side(self.name, self.side, self.serving_value)
        value = self.serving_value
        if value is None:
            return
        if not isinstance(value, str if dtype == "string" else int):
            raise ValueError(f"feature '{self.name}': serving_value must be of dtype {dtype}, got {value!r}")
        if isinstance(value, int) and not ID_LIMITS[0] <= value <= ID_LIMITS[1]:
            raise ValueError(f"feature '{self.name}': serving_value {value} is not an int64")

    def serving_column(self) -> Column:
        return column_of(self.serving_value)
