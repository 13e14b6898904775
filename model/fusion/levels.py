"""Common part of the configurations of fusion networks: the sizes of fusion levels and of each task's experts."""

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

# Strict, for inside a nested list `true` would count as 1.
Width = Annotated[int, Field(gt=0, strict=True)]


def _no_empty_level(levels: tuple[int | tuple[int, ...], ...]) -> tuple[int | tuple[int, ...], ...]:
    # Here and not by min_length, which also complains of emptiness where a level is no width.
    if not levels:
        raise ValueError("there is no level; give the width of at least one")
    if any(isinstance(level, tuple) and not level for level in levels):
        raise ValueError("a level's list of expert widths is empty")
    return levels


# Each level's expert MLP: its width, or its widths layer by layer.
Levels = Annotated[tuple[Width | tuple[Width, ...], ...], AfterValidator(_no_empty_level)]
ExpertsPerTask = PositiveInt | tuple[PositiveInt, ...]


def widths_by_level(levels: tuple[int | tuple[int, ...], ...]) -> list[list[int]]:
    """The widths of each level's expert MLP, layer by layer."""
    return [[level] if isinstance(level, int) else list(level) for level in levels]


def all_widths(levels: tuple[int | tuple[int, ...], ...]) -> list[int]:
    """The widths of all levels as those of one MLP."""
    return [width for widths in widths_by_level(levels) for width in widths]


def experts_by_task(experts_per_task: int | tuple[int, ...], num_tasks: int) -> list[int]:
    """One number of experts for each task. Raises ValueError where a list does not fit the tasks."""
    if isinstance(experts_per_task, int):
        return [experts_per_task] * num_tasks
    if len(experts_per_task) != num_tasks:
        raise ValueError(
            f"experts_per_task has {len(experts_per_task)} entries for {num_tasks} tasks; give one each, or one"
        )
    return list(experts_per_task)
