"""Requests that Arrow reads in one pass, against the same lines read whole by the code that checks requests."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.training.join.logs import START, Logs, request, write
from training.join.catalogue.generations import Generations
from training.join.faults import BadLines
from training.join.impression_lines import ImpressionReader
from training.join.plan import Plan
from training.join.requests.columns import ColumnReader, Columns
from training.join.requests.tables import Read
from training.join.sources import Source

# Parts of a line, each with what it must not be, or may be in other words. `OLD` stands for what is there.
_OLD = "OLD"
_SCALARS = (
    "null", "true", "1.0", "1e2", "-0", "12", '"12"', '"012"', "1e999", "-1e999", "9223372036854775808", "{}", "[]",
    "[1]", "[[1]]", "123456789012345678901", '"\\ud800"', '"\\udc00"', '"\\u00e9\\ud83d\\ude00"',
)  # fmt: skip
_LISTS = ("null", "[]", "[null]", "[OLD, OLD]", "{}", "[[], []]", "true", '"x"', "[1e999]", "[true]", '["1", 1]')


def _texts(draw: random.Random) -> list[bytes]:
    """Lines of which each has another fault, or none, among good ones."""
    found = []
    for number in range(400):
        ids = [f"v{draw.randrange(60)}" for _ in range(draw.randint(1, 6))]
        line: Any = request(2 * number, START, ids, draw)
        features, user = line["candidates"]["features"], line["user"]
        lists = [(features, name) for name in features]
        lists += [(line, "score"), (line, "order"), (line, "propensity"), (line["candidates"], "id"), (user, "history")]
        lists += [(line["tasks"], "like"), (line["tasks"], "rating.good")]
        structs = [(line, "user"), (line, "candidates"), (line, "tasks"), (line["candidates"], "features")]
        scalars = [(user, "user_id"), (line, "request_id"), (line, "experiments"), (line, "share")]
        kind = draw.randrange(5)
        holder, key = draw.choice([lists, structs, scalars, lists, scalars][kind])
        old = json.dumps(holder[key])
        if kind == 0 and draw.random() < 0.2:
            del holder[key]
        elif kind == 3 and isinstance(holder[key], list) and holder[key]:
            holder[key][draw.randrange(len(holder[key]))] = _OLD
        elif kind < 3:
            holder[key] = _OLD
        text = json.dumps(line, ensure_ascii=draw.random() < 0.5)
        value = draw.choice(_LISTS if kind < 2 else _SCALARS)
        text = text.replace(json.dumps(_OLD), value.replace(_OLD, old))
        if draw.random() < 0.05:  # a key twice
            text = text[:-1] + f', "score": {json.dumps(line["score"])}, "user": {json.dumps(user)}}}'
        found.append(text.encode("utf-8", "surrogatepass"))
    found += [b"{", b"", b"[]", b"\xff", b"nul", b'{"format": 2, "time": "2026-11-29T20:00:00Z", "lost": 3}']
    found += [found[0].replace(b"v", b"\xff\xfe"), b"[" * 100_000]
    draw.shuffle(found)
    return found


def _read(plan: Plan, folder: Path, texts: list[bytes]) -> tuple[list[Read], BadLines]:
    for old in (folder / "impressions").iterdir():
        old.unlink()
    (folder / "impressions" / "impressions-0.jsonl").write_bytes(b"\n".join(texts))
    bad = BadLines()
    source = Source(plan.file.impressions, "events-")
    return list(ImpressionReader(plan, "feed", bad, Generations(plan)).batches(source, source.files()[0])), bad


def _rows(reads: list[Read]) -> list[Any]:
    """Requests with their candidates, however lines came in batches."""
    found = []
    for read in reads:
        candidates: dict[int, list[Any]] = {}
        for row in read.candidates.to_pylist():
            candidates.setdefault(row["_r"], []).append(row | {"_r": 0})
        found += [(row | {"_r": 0}, candidates.get(row["_r"], [])) for row in read.requests.to_pylist()]
    return found


def test_arrow_reads_lines_as_the_checks_of_requests_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line at a time, so that each is offered to Arrow alone, and all of them as one file."""
    plan = Plan.load(write(tmp_path, Logs([], [])))
    texts = _texts(random.Random(8))
    taken: list[bool] = []
    original = ColumnReader.of_text

    def noted(self: ColumnReader, some: list[bytes]) -> Columns | None:
        found = original(self, some)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(ColumnReader, "of_text", noted)
    alone = [_read(plan, tmp_path, [text]) for text in texts]
    by_arrow = sum(taken)
    together, bad = _read(plan, tmp_path, texts)
    monkeypatch.setattr(ColumnReader, "of_text", lambda self, some: None)
    for text, (reads, bad_alone) in zip(texts, alone, strict=True):
        expected, bad_whole = _read(plan, tmp_path, [text])
        assert _rows(reads) == _rows(expected), text
        assert bad_alone.count == bad_whole.count, text
    expected, bad_whole = _read(plan, tmp_path, texts)
    assert _rows(together) == _rows(expected)
    assert bad.by_file == bad_whole.by_file
    rows = len(_rows(expected))
    # Neither all lines nor none are good, and neither all of them nor none are Arrow's.
    assert 50 < rows < len(texts) - 50
    assert 50 < by_arrow < len(texts) - 50


def test_a_good_log_is_read_by_arrow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(9)
    plan = Plan.load(write(tmp_path, Logs([], [])))
    monkeypatch.setattr(ColumnReader, "of_lines", None)
    texts = [json.dumps(request(2 * number, START, ["a", "b", "c"], draw)).encode() for number in range(50)]
    reads, bad = _read(plan, tmp_path, texts)
    assert (len(_rows(reads)), bad.count) == (50, 0)
