"""Kind `number`: one number per row."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from model.features.kinds.columns import Column, Dtype
from model.features.kinds.feature import BaseFeature, Side, check_side, column_of
from model.features.kinds.inputs import Inputs, NumberInput, NumberTransform


class NumberFeature(BaseFeature):
    """One number per row, transformed in the order given. `missing` is the raw value that a null takes."""

    has_ids: ClassVar[bool] = False
    is_list: ClassVar[bool] = False
    has_fast_path: ClassVar[bool] = True

    kind: Literal["number"]
    side: Side
    transform: tuple[NumberTransform, ...] = ()
    missing: float = Field(default=0.0, allow_inf_nan=False)
    serving_value: float | None = Field(default=None, allow_inf_nan=False)

    @field_validator("transform", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if value in (None, "none"):
            return ()
        return (value,) if isinstance(value, str) else value

    def description(self) -> str:
        return f"a finite number. Null is {self.missing:,g}"

    def add_inputs(self, inputs: Inputs) -> None:
        inputs.numbers.append(NumberInput(self.name, self.name, self.transform, self.missing))

    def check_serving_value(self, dtype: Dtype | None) -> None:
        check_side(self.name, self.side, self.serving_value)

    def serving_column(self) -> Column:
        return column_of(self.serving_value)
