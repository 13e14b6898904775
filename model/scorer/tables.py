"""Tables of an artifact, mapped from their files.

Shapes: R rows of all tables of a width W.
"""

import torch

from model.artifact.artifact import Artifact, ArtifactError
from model.artifact.table_files import as_table, table_file


def mapped_table(artifact: Artifact, width: int) -> torch.Tensor:
    """table_RW of a width. Raises ArtifactError."""
    name = table_file(width)
    try:
        return as_table(artifact.map(name), width)
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{artifact.path / name}: {error}") from None
