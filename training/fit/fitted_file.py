"""The file of features fitted beforehand: written by `python -m training vocabulary`, named by training files.

In: what was fitted. Out: JSON that says beside it what each part was fitted for, so that a schema that has changed
since is refused by the name of the part.
"""

from pathlib import Path
from typing import Any

from model.features.block import inputs_of
from model.features.encoder import FittedFeatures
from model.schema import FeedSchema
from model.strict_yaml import StrictModel
from training.run.run import read_json, write_json


class FittedFile(StrictModel):
    """Content of the file: by kind and name, which keys of the schema a part was fitted for."""

    made_for: dict[str, dict[str, dict[str, Any]]]
    fitted: FittedFeatures


def parts_of(schema: FeedSchema) -> dict[str, dict[str, dict[str, Any]]]:
    """The keys of a schema that what is fitted depends on."""
    numbers = inputs_of(schema.features).numbers
    tasks = [task for task in schema.tasks if task.scaling is not None]
    return {
        "vocabularies": {
            table.name: {"dtype": table.dtype, "features": list(table.features), "min_count": table.min_count}
            for table in schema.tables
            if table.vocabulary == "fitted"
        },
        "numbers": {
            number.name: {"transform": list(number.transform), "missing": number.missing} for number in numbers
        },
        "targets": {task.name: {"label": task.label, "mask": task.mask, "transform": task.scaling} for task in tasks},
    }


def write_fitted(path: Path, schema: FeedSchema, fitted: FittedFeatures) -> None:
    """Write the file in one step."""
    write_json(path, FittedFile(made_for=parts_of(schema), fitted=fitted).model_dump(mode="json"))


def read_fitted(path: Path, schema: FeedSchema) -> FittedFeatures:
    """The parts that a schema needs. Raises ValueError naming the one that is absent or was fitted for something
    else."""
    file = FittedFile.from_mapping(read_json(path), str(path))
    parts = parts_of(schema)
    for kind, names in parts.items():
        for name, wanted in names.items():
            made_for = file.made_for.get(kind, {}).get(name)
            if made_for != wanted or name not in getattr(file.fitted, kind):
                raise ValueError(
                    f"{path}: {kind}: {name} was fitted for {made_for}, the schema has {wanted}; "
                    "run `python -m training vocabulary` again"
                )
    return FittedFeatures(
        **{kind: {name: getattr(file.fitted, kind)[name] for name in names} for kind, names in parts.items()}
    )
