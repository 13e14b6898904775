"""A line of the impression log, as the readers of the log have it: replay, and what makes Parquet of lines.

In: a line of JSON, of format 2 or of format 1, which knows neither the order answered nor the share kept. Out: the line
as it is (`Line`), and checked and decoded, the request that it describes (`Logged`), or what it says is lost (`Loss`).
"""

from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple

import msgspec


class Candidates(msgspec.Struct):
    """The candidates of a line. `features` are JSON, columns by name."""

    id: list[str]
    features: msgspec.Raw


class Hashes(msgspec.Struct):
    """Hashes in the place of values and ids: XXH3-64 of the user, of each candidate's id, of each candidate's
    features."""

    user: int
    candidate_id: list[int]
    features: list[int]


class PastEntry(msgspec.Struct, array_like=True, frozen=True):
    """An entry of a user's history: its value, and its time in Unix seconds."""

    value: int | str | float
    time: float


class Line(msgspec.Struct):
    """A line of the log, with `user` (JSON) and `candidates` or with `hashes`. `histories` are those that the state
    store had of the user, None where no state was kept or with `hashes`. Of format 1, `catalogue` says whether one gave
    features, not which."""

    format: Literal[1, 2]
    time: str
    request_id: str
    model: str
    model_version: str
    value_model: str
    value_model_version: str
    score: list[float]
    tasks: dict[str, list[float]]
    top_k: int | None = None
    catalogue: str | bool | None = None
    calibration: str | None = None
    policy: str | None = None
    policy_version: str | None = None
    experiments: dict[str, str] = {}
    epochs: dict[str, str] = {}
    fell_back: list[str] = []
    user_hash: str | None = None
    share: float | None = None
    raw: dict[str, list[float]] | None = None
    order: list[int] | None = None
    propensity: list[float] | None = None
    user: msgspec.Raw = msgspec.Raw()
    candidates: Candidates | None = None
    histories: dict[str, list[PastEntry]] | None = None
    hashes: Hashes | None = None


class Loss(msgspec.Struct):
    """A line that says how many requests before it are lost, and why."""

    format: Literal[2]
    time: str
    lost: Annotated[int, msgspec.Meta(ge=1)]
    reason: str


class Logged(NamedTuple):
    """A logged request: its line, and of that what is decoded, features of candidates as columns. Where the log has
    hashes, ids are those of the hashes in 16 hexadecimal digits, and there are no features."""

    line: Line
    ids: list[str]
    user: dict[str, Any]
    features: dict[str, list[Any]]


_line_decoder = msgspec.json.Decoder(Line)
_loss_decoder = msgspec.json.Decoder(Loss)
_user_decoder = msgspec.json.Decoder(dict[str, Any])
_features_decoder = msgspec.json.Decoder(dict[str, list[Any]])


def decode(text: bytes) -> Line | Loss:
    """The line that `text` is, its scores as many as its candidates. Raises ValueError saying what is wrong."""
    try:
        line = _line_decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        with suppress(ValueError, RecursionError):
            return _loss_decoder.decode(text)
        raise
    check(line)
    return line


def check(line: Line) -> None:
    """Raise ValueError where scores are not as many as candidates, or there are none of these, or the order answered is
    none of them."""
    if line.hashes is not None:
        rows, lengths = len(line.hashes.candidate_id), {"hashes.features": len(line.hashes.features)}
    elif line.candidates is not None and bytes(line.user):
        rows, lengths = len(line.candidates.id), {}
    else:
        raise ValueError("neither user and candidates nor hashes")
    if not rows:
        raise ValueError("no candidates")
    lengths["score"] = len(line.score)
    lengths |= {f"tasks.{name}": len(column) for name, column in line.tasks.items()}
    lengths |= {f"raw.{name}": len(column) for name, column in (line.raw or {}).items()}
    _check_lengths(rows, lengths)
    if line.format == 2:
        _check_answer(line, rows)


def _check_answer(line: Line, rows: int) -> None:
    if line.share is None or line.raw is None or line.order is None:
        raise ValueError("format 2 needs share, raw and order")
    if not 0 < line.share <= 1:
        raise ValueError(f"share: {line.share:g} is not in (0, 1]")
    places = set(line.order)
    if len(places) < len(line.order) or not places <= set(range(rows)):
        raise ValueError(f"order: needs row numbers of {rows} candidates, each once at most")
    if line.propensity is not None and len(line.propensity) != len(line.order):
        raise ValueError(f"propensity: {len(line.propensity)} values for {len(line.order)} places")


def logged(line: Line) -> Logged:
    """Content of a line. Raises ValueError saying what is wrong with its features."""
    if line.hashes is not None:
        return Logged(line, [f"{number:016x}" for number in line.hashes.candidate_id], {}, {})
    assert line.candidates is not None, "checked"
    try:
        user, features = _user_decoder.decode(line.user), _features_decoder.decode(line.candidates.features)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    lengths = {f"candidates.features.{name}": len(column) for name, column in features.items()}
    _check_lengths(len(line.candidates.id), lengths)
    return Logged(line, line.candidates.id, user, features)


def read_line(text: bytes) -> Logged | Loss:
    """The request of a line, or its loss. Raises ValueError saying what is wrong with it."""
    line = decode(text)
    return line if isinstance(line, Loss) else logged(line)


def _check_lengths(rows: int, lengths: dict[str, int]) -> None:
    for name, length in lengths.items():
        if length != rows:
            raise ValueError(f"{name}: {length} values for {rows} candidates")
