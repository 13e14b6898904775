"""The keys of the baseline `lightgbm`, and the configuration of its cells.

    - name: lightgbm
      lightgbm: {trees: 2000, early_stopping: 50, encodings: {columns: [user_id], order: date}}

In: an experiment's entry and a dataset's training file. Out: `TreesConfig`, kept in a cell's folder as config.json,
of which the trees use schema, data and seed, and lightgbm.json.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from model.schema import FeedSchema
from model.strict_yaml import StrictModel
from training.compare.target_encodings import EncodingsConfig
from training.compare.tree_inputs import check_encodings
from training.config import PositiveFinite, TrainingConfig
from training.run.run import CONFIG, read_json

SETTINGS = "lightgbm.json"

Fraction = Annotated[float, Field(gt=0, le=1)]


class LightGBMConfig(StrictModel):
    """The trees' settings. `trees` is the most that a task gets."""

    trees: PositiveInt = 2000
    # Stops after so many trees without a lower loss on the validation split.
    early_stopping: PositiveInt = 50
    learning_rate: PositiveFinite = 0.05
    leaves: int = Field(default=31, ge=2, le=131_072)
    min_rows_per_leaf: PositiveInt = 50
    # Drawn for every tree from the cell's seed, so that seeds differ.
    row_fraction: Fraction = 0.8
    feature_fraction: Fraction = 0.8
    l2: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    # An id with more distinct values is read by its encoding alone.
    max_categories: int = Field(default=200, ge=0)
    encodings: EncodingsConfig | None = EncodingsConfig()


class TreesConfig(TrainingConfig):
    """Training configuration of a cell of trees. The keys that describe a network have no effect."""

    lightgbm: LightGBMConfig

    @classmethod
    def of(cls, config: TrainingConfig, settings: LightGBMConfig) -> "TreesConfig":
        """A dataset's configuration with the trees' settings."""
        return cls.model_validate({**config.dump(), "lightgbm": settings.model_dump(mode="json")})

    def check(self, schema: FeedSchema) -> None:
        """Raise ValueError where the encodings do not fit the schema."""
        if self.lightgbm.encodings is not None:
            check_encodings(self.lightgbm.encodings, schema)

    def base(self) -> TrainingConfig:
        """The configuration without the trees' settings, as config.json has it."""
        content = self.dump()
        del content["lightgbm"]
        return TrainingConfig.model_validate(content)


def kept_config(folder: Path) -> TrainingConfig:
    """The configuration of a cell's run folder. Raises ValueError naming a broken file."""
    config = TrainingConfig.from_mapping(read_json(folder / CONFIG), str(folder / CONFIG))
    file = folder / SETTINGS
    return TreesConfig.of(config, LightGBMConfig.from_mapping(read_json(file), str(file))) if file.exists() else config
