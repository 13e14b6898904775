"""The frozen file: what the trials chose, written once, before the test day is read.

    comparison: kuairand_rolling
    chosen: adatt_sp                # the best method beside the baseline
    commits: [9f2c01ab3d4e]         # at which the trials ended
    methods: {adatt_sp: {trial: 4, of: 6, failed: 0, point: {...}, means: {...}, training: {...}}, ...}

In: ended trials. Out: YAML for a commit. A frozen file is never replaced. A reading trains what it says, and refuses
where the comparison's file, or a training file or schema behind it, has changed.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from model.strict_yaml import Name, StrictModel, read_yaml
from model.untrusted_files import DOCUMENT_BYTES, read_bytes
from training.compare.measures import METRICS
from training.compare.plans import WHERE
from training.config import TrainingConfig
from training.rolling.choosing import Trials, loss_of, mean_of, trials_file
from training.rolling.rolling_file import RollingFile, load_rolling
from training.run.run import write_text
from training.split_config import Day

HEAD = "# What trials on rolling days chose, frozen by `python -m training rolling freeze`. It is not edited by hand.\n"
Json = dict[str, Any]


class FrozenMethod(StrictModel):
    """A method as it is frozen: its best trial, its means over the folds, and its whole training configuration."""

    trial: int
    of: int
    failed: int
    point: dict[str, Any]
    means: dict[str, float]
    training: dict[str, Any]


class Frozen(StrictModel):
    """A frozen comparison."""

    comparison: Name
    file: Path
    file_sha256: str
    schemas_sha256: str
    trials_sha256: str
    commits: tuple[str, ...]
    frozen: Day
    test: Day
    chosen: str
    # How leaks were looked for, where the choice was implausibly far ahead.
    leaks: str | None = None
    methods: dict[str, FrozenMethod]


def freeze(path: Path, out: Path, leaks: str | None) -> Frozen:
    """Freeze what the trials of a comparison's file chose. Raises ValueError for trials that have not ended, an `out`
    that is there, and a choice that is implausibly far ahead without words about leaks."""
    if out.exists():
        raise ValueError(f"{out}: is there already, and a frozen file is never replaced; name another one")
    file = load_rolling(path, {})
    trials = Trials(file)
    trials.refuse_unended()
    best = {}
    for name in file.method_names:
        found = trials.best(name)
        if found is None:
            raise ValueError(f"{trials.path}: every trial of {name} has failed ({trials.of(name)[0]['fault']})")
        best[name] = found
    chosen = min((name for name in best if name != file.baseline), key=lambda name: loss_of(file, best[name]) or 0.0)
    _refuse_implausible(file, best[chosen], best[file.baseline], chosen, leaks)
    frozen = Frozen(
        comparison=file.name,
        file=path,
        file_sha256=_sha256(path),
        schemas_sha256=_schemas_sha256(file),
        trials_sha256=_sha256(trials_file(file)),
        commits=tuple(dict.fromkeys(trial["commit"] for name in best for trial in trials.of(name))),
        frozen=datetime.now(UTC).date(),
        test=file.days.test,
        chosen=chosen,
        leaks=leaks,
        methods={
            name: FrozenMethod(
                trial=trial["number"],
                of=len(trials.of(name)),
                failed=sum("fault" in one for one in trials.of(name)),
                point=trial["point"],
                means={metric: mean_of(file, trial, metric) or 0.0 for metric in file.metrics},
                training=_training(file, name, trial["point"]),
            )
            for name, trial in best.items()
        },
    )
    content = yaml.safe_dump(frozen.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120)
    write_text(out, HEAD + content)
    return frozen


def load_frozen(path: Path) -> tuple[Frozen, RollingFile]:
    """A frozen file and its comparison. Raises ValueError where anything behind it has changed since."""
    frozen = Frozen.from_mapping(read_yaml(path), str(path))
    file = load_rolling(frozen.file, {})
    if _sha256(frozen.file) != frozen.file_sha256:
        raise ValueError(f"{frozen.file}: has changed since {path} was frozen; restore it")
    if frozen.chosen not in frozen.methods or set(frozen.methods) != set(file.method_names):
        raise ValueError(f"{path}: has other methods than {frozen.file}; restore it")
    if _schemas_sha256(file) != frozen.schemas_sha256:
        raise ValueError(f"{path}: a schema of {frozen.file} has changed since it was frozen; restore it")
    for name, method in frozen.methods.items():
        if _training(file, name, method.point) != method.training:
            raise ValueError(f"{path}: the training file of {name} has changed since it was frozen; restore it")
    return frozen, file


def sha256_of_frozen(path: Path) -> str:
    """The hash by which the list of readings names a frozen file."""
    return _sha256(path)


def _refuse_implausible(file: RollingFile, chosen: Json, base: Json, name: str, leaks: str | None) -> None:
    for metric in file.metrics:
        one, other = mean_of(file, chosen, metric), mean_of(file, base, metric)
        assert one is not None, "a best trial has values"
        assert other is not None, "a best trial has values"
        ahead = (one - other) * (1 if METRICS[metric].better == "higher" else -1)
        if ahead > file.plausible and leaks is None:
            raise ValueError(
                f"{name}: is ahead of {file.baseline} by {ahead:.4f} of mean {METRICS[metric].title}, more than "
                f"{file.plausible:g} (plausible): look for a leak first, then say how with --leaks WORDS"
            )


def _training(file: RollingFile, name: str, point: Json) -> Json:
    """A method's training configuration on the test day, without where it runs and reads."""
    method = file.method(name)
    config: TrainingConfig = file.final_config(method, file.seeds[0], point)
    content = {key: value for key, value in config.dump().items() if key not in WHERE}
    content["data"] = {key: value for key, value in content["data"].items() if key != "path"}
    # As YAML reads it again, dates as text.
    found: Json = json.loads(json.dumps(content, default=str))
    return found


def _schemas_sha256(file: RollingFile) -> str:
    """Of all methods' feed schemas."""
    schemas = []
    for method in file.methods:
        config = file.final_config(method, file.seeds[0], {})
        schemas.append(config.feed_schema().model_dump_json(exclude_none=True))
    return hashlib.sha256("\n".join(schemas).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, DOCUMENT_BYTES)).hexdigest()
