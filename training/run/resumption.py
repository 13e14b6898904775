"""A training file compared with the run in its output folder: the same run, the same for longer, or another one.

In: the run as it was written and as the training file has it now. A run is given more epochs, or more patience, and
goes on from its last checkpoint. A change of other keys that decide its weights is refused by name.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.data.moving.windows import with_windows
from training.run.run import CONFIG, SUMMARY, Run, made_of_a_finished_run, write_json
from training.split_config import MovingWindows, Range, ResolvedWindows, SplitConfig
from training.wording import counted

log = logging.getLogger(__name__)

# Keys that decide no weight: a run goes on with any values of them.
_FREE = ("checkpoint_seconds", "checkpoints_kept", "data.readers")
_LONGER = ("epochs", "early_stopping", "early_stopping.patience")
_SHOWN = 5
_CHARACTERS = 60

Difference = tuple[str, Any, Any]


def with_windows_of_run(config: TrainingConfig) -> TrainingConfig:
    """The training file with its windows of days resolved. A run of the same windows in its output folder says them,
    without one the data of now does."""
    split = config.data.split
    if not isinstance(split, MovingWindows) or not (config.output / CONFIG).is_file():
        return with_windows(config)
    of_run = Run.open(config.output).config.data.bounds
    if not isinstance(of_run, ResolvedWindows) or of_run.windows != split:
        return with_windows(config)  # another run, which `go_on_as` refuses by what differs
    log.info("%s: its run has the days up to %s", config.output, _last_value(of_run))
    return config.model_copy(update={"data": config.data.model_copy(update={"split": of_run})})


def _last_value(split: SplitConfig) -> object:
    last = split.validation if split.test is None else split.test
    return last.max if isinstance(last, Range) else last


def go_on_as(fresh: Run) -> None:
    """Make the folder's run the configured one. Raises ValueError, naming every key that differs with both
    values, where that is another run."""
    existing = Run.open(fresh.path)
    changed = list(_differences(existing.config.dump(), fresh.config.dump()))
    others = [change for change in changed if change[0] not in _FREE and not _is_longer(change, existing, fresh)]
    different = {
        "the configuration": others,
        "the schema": list(_differences(existing.schema.model_dump(mode="json"), fresh.schema.model_dump(mode="json"))),
        "the data": list(_differences(existing.fitted.model_dump(mode="json"), fresh.fitted.model_dump(mode="json"))),
    }
    if any(different.values()):
        raise another_run(fresh.path, {what: [*map(_change_text, found)] for what, found in different.items() if found})
    if not changed:
        return
    if any(key in _LONGER for key, _, _ in changed):
        _say_longer(existing.config, fresh.config)
        # Before the configuration: killed in between, this is done again.
        for stale in (SUMMARY, *made_of_a_finished_run()):
            (fresh.path / stale).unlink(missing_ok=True)
    write_json(fresh.path / CONFIG, fresh.config.dump())


def another_run(output: Path, different: Mapping[str, list[str]]) -> ValueError:
    """Message on a folder whose run differs, with the keys and values that are known."""
    shown = []
    for what, found in different.items():
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        shown.append(f"{what} differs" + (f" ({'; '.join(found[:_SHOWN])}{more})" if found else ""))
    return ValueError(
        f"{output}: holds a run from which {', '.join(shown)}; choose another output (--set output=...) or delete the "
        "folder"
    )


def _is_longer(change: Difference, existing: Run, fresh: Run) -> bool:
    key, before, now = change
    if key == "epochs":
        return bool(now > before)
    if key not in _LONGER:
        return False
    was, will = existing.config.early_stopping, fresh.config.early_stopping
    return was is not None and (will is None or will.patience > was.patience)


def _say_longer(before: TrainingConfig, now: TrainingConfig) -> None:
    if now.epochs == before.epochs:
        log.info("%s: its run goes on with other early stopping", now.output)
    else:
        log.info("%s: its run of %s goes on, to %d", now.output, counted(before.epochs, "epoch"), now.epochs)
    if now.optimizer.schedule == "cosine" and now.epochs != before.epochs:
        log.warning(
            "optimizer.schedule: cosine: until here the rates fell as over %s, from here as over %d; a run that "
            "had %d from the start would have other weights (a constant schedule gives the same)",
            counted(before.epochs, "epoch"), now.epochs, now.epochs,
        )  # fmt: skip


def _differences(one: Any, other: Any, key: str = "") -> Iterator[Difference]:
    if isinstance(one, list) and isinstance(other, list):
        one, other = _by_name(one), _by_name(other)
    if not isinstance(one, dict) or not isinstance(other, dict):
        if one != other:
            yield key, one, other
        return
    for name in {**one, **other}:
        yield from _differences(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))


def _by_name(values: list[Any]) -> Any:
    """A list of features or tasks by their names. Another list is as it is."""
    if values and all(isinstance(value, dict) and "name" in value for value in values):
        return {value["name"]: value for value in values}
    return values


def _change_text(change: Difference) -> str:
    key, before, now = change
    return f"{key}: {_shown(before)} there, {_shown(now)} here"


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:  # a vocabulary
        return f"{len(value):,} values"
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
