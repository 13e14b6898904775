"""Chains of tasks: `given: click` makes a task's outcome follow from another's, as a conversion follows from a click.

In: the tasks of a schema. Out: by task the place of the one that it is given. Answers are unconditional all the same:
P(long_view) = P(click) * P(long_view | click), the product of ESMM (Ma et al., SIGIR 2018).
"""

from collections.abc import Sequence

from model.strict_yaml import unknown_key
from model.tasks.task import BaseTask


def given_places(tasks: Sequence[BaseTask]) -> tuple[int | None, ...]:
    """Place of the task that each task is given, None where it is given none. Raises ValueError for a task that is not
    there, a circle, a kind without a single probability, and a mask that hides what the product is learned on."""
    places = {task.name: place for place, task in enumerate(tasks)}
    for task in tasks:
        _check(task, tasks, places)
    return tuple(None if task.given is None else places[task.given] for task in tasks)


def in_order(given: Sequence[int | None]) -> list[tuple[int, int]]:
    """Tasks that are given one, with it: each behind the one that it is given. There is no circle."""
    steps: list[tuple[int, int]] = []
    left = [(task, other) for task, other in enumerate(given) if other is not None]
    while left:
        ready = [pair for pair in left if pair[1] not in {task for task, _ in left}]
        assert ready, "a circle of given tasks"
        steps += ready
        left = [pair for pair in left if pair not in ready]
    return steps


def given_before(task: int, given: Sequence[int | None]) -> list[int]:
    """The tasks along the chain of a task up to its beginning: itself, the one that it is given, and so on."""
    tasks = [task]
    while given and (other := given[tasks[-1]]) is not None:
        tasks.append(other)
    return tasks


def _check(task: BaseTask, tasks: Sequence[BaseTask], places: dict[str, int]) -> None:
    path, one = [task.name], task
    while one.given is not None:
        if one.given not in places:
            raise ValueError(f"task '{one.name}': given: {unknown_key(one.given, list(places), 'task')}")
        for end in (one, given := tasks[places[one.given]]):
            if end.chain_fault is not None:
                raise ValueError(f"task '{one.name}': given: '{given.name}': {end.chain_fault}; remove given")
        path.append(given.name)
        if given.name in path[:-1]:
            raise ValueError(f"given: {' -> '.join(path)} is a circle; one of these tasks has to be given none")
        if task.mask is not None and task.mask == given.label:
            raise ValueError(
                f"task '{task.name}': mask '{task.mask}' is the label of '{given.name}', which it is given; a chain is "
                "learned on all rows, those without it too: remove the mask"
            )
        one = given
