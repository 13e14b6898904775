"""Requests of the impression log (format 2) -> Arrow columns that a join computes with.

In: a file of JSON lines, or the Parquet that the service makes of them. Out: tables of requests and of the candidates
that were answered. Features are checked and typed by the code that reads requests (model.features.kinds). What is no
request is counted as a bad line. A line that the join must not use ends it: one of format 1, or of hashes.

Shapes: R requests, K answered candidates of all of them, B rows of a feature.
"""

from collections.abc import Iterator, Set
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.retries import first_line
from training.join.catalogue.generations import Generations
from training.join.faults import BadLines
from training.join.plan import Plan
from training.join.requests.columns import ColumnReader, Columns
from training.join.requests.line import Decoders, Line, check_scalars
from training.join.requests.tables import Read, candidate_table, hours_of, request_table
from training.join.sources import Source, SourceFile, blocks

FORMAT = 2
# Requests that become columns together.
_BATCH_REQUESTS = 4096
_BATCH_BYTES = 8 * 2**20
_PARQUET_ROWS = 256


class _Given(NamedTuple):
    """A line, by its number. `text` is None of one that was read whole."""

    number: int
    line: Line
    text: bytes | None
    num_bytes: int


class ImpressionReader:
    """Reader of the impressions of one model: of `model`, or where that is None of the only one that the log has."""

    def __init__(
        self, plan: Plan, model: str | None, bad: BadLines, generations: Generations, forgotten: Set[str] = frozenset()
    ) -> None:
        """`forgotten` are the hashes of users whose requests are left out."""
        self.model = model
        self.other_models = 0
        self.forgotten = 0
        self._forgotten = forgotten
        self._plan = plan
        self._bad = bad
        self._generations = generations
        self._decoders = Decoders(plan)
        self._columns = ColumnReader(plan, self._decoders)

    def batches(self, source: Source, file: SourceFile) -> Iterator[Read]:
        """The requests of a file. `_r` counts from 0 in each batch. Raises ValueError for a file that cannot be read
        at all, or that the join must not use, GoneError for one that was removed."""
        with source.opened(file) as (now, opened):
            place = source.shown(now)
            lines = self._parquet_lines(opened, place) if now.is_parquet else self._lines(opened, place)
            yield from self._read_lines(lines, place)

    def _read_lines(self, lines: Iterator[_Given], place: str) -> Iterator[Read]:
        waiting: list[_Given] = []
        size = 0
        for given in lines:
            number, line, _, num_bytes = given
            self._refuse_other_formats(line, place, number)
            if line.model is not None and line.model != self._model_of(line, place, number):
                self.other_models += 1
                continue
            if line.user_hash in self._forgotten:
                self.forgotten += 1
                continue
            if line.catalogue:
                self._open_catalogue(line, place, number)
            waiting.append(given)
            size += num_bytes
            if len(waiting) >= _BATCH_REQUESTS or size >= _BATCH_BYTES:
                yield from self._converted(waiting, place)
                waiting, size = [], 0
                self._generations.release()
        yield from self._converted(waiting, place)

    def _lines(self, opened: BinaryIO, place: str) -> Iterator[_Given]:
        for block in blocks(opened):
            for number in block.too_long:
                self._bad.add(place, number, "a line too long to be a request")
            numbered = [(number, text) for number, text in enumerate(block.lines, block.first) if text.strip()]
            try:
                lines = self._decoders.scalars.decode_lines(b"\n".join(text for _, text in numbered))
            except (msgspec.MsgspecError, RecursionError):
                yield from self._one_by_one(numbered, place)
                continue
            for (number, text), line in zip(numbered, lines, strict=True):
                yield _Given(number, line, text, len(text))

    def _one_by_one(self, numbered: list[tuple[int, bytes]], place: str) -> Iterator[_Given]:
        for number, text in numbered:
            try:
                yield _Given(number, self._decoders.scalars.decode(text), text, len(text))
            except (msgspec.MsgspecError, RecursionError) as error:
                self._bad.add(place, number, f"no request ({error})")

    def _parquet_lines(self, opened: BinaryIO, place: str) -> Iterator[_Given]:
        """The rows of the service's own Parquet (service/impressions/parquet.py), whose features are JSON."""
        number = 0
        try:
            for batch in pq.ParquetFile(opened).iter_batches(_PARQUET_ROWS, use_threads=False):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    try:
                        yield _Given(number, self._of_row(row), None, batch.nbytes // batch.num_rows)
                    except (msgspec.MsgspecError, RecursionError, KeyError) as error:
                        self._bad.add(place, number, f"no request ({error})")
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{place}: not a readable Parquet file ({first_line(error)})") from None

    def _of_row(self, row: dict[str, Any]) -> Any:
        row["time"] = row["time"].isoformat()
        row.setdefault("format", 1)
        if row.get("lost") is None and row.get("user") is not None:
            row["user"] = msgspec.json.decode(row["user"])
            features = msgspec.json.decode(row["features"])
            row["candidates"] = {"id": row["candidate_id"], "features": features}
            row["tasks"] = {output: _digits(answers) for output, answers in row["tasks"].items()}
        elif row.get("lost") is None:
            row["hashes"] = True
        return msgspec.convert(row, self._decoders.whole_type)

    def _refuse_other_formats(self, line: Line, place: str, number: int) -> None:
        if line.format != FORMAT:
            raise ValueError(
                f"{place}:{number}: a line of format {line.format}, which does not say what share of requests was "
                f"kept nor the order answered; the join reads format {FORMAT}: move older files out of the log"
            )
        if line.hashes is not None:
            raise ValueError(
                f"{place}:{number}: has hashes in the place of features, so no row can be made of it; log values"
            )

    def _open_catalogue(self, line: Line, place: str, number: int) -> None:
        try:
            self._generations.open(line)
        except ValueError as error:
            raise ValueError(f"{place}:{number}: {error}") from None

    def _model_of(self, line: Line, place: str, number: int) -> str | None:
        """The model that is joined."""
        if self.model is None:
            self.model = line.model
        elif self._plan.file.model is None and line.model is not None and line.model != self.model:
            raise ValueError(
                f"{place}:{number}: an impression of model {line.model!r} beside those of {self.model!r}; write "
                f"`model:` into {self._plan.path}, a join is of one model"
            )
        return self.model

    def _converted(self, given: list[_Given], place: str) -> Iterator[Read]:
        """Lines as columns. Where one of them is at fault it is found by halving."""
        if not given:
            return
        try:
            yield self._read(given)
        except ValueError as error:
            if len(given) == 1:
                self._bad.add(place, given[0].number, str(error))
                return
            middle = len(given) // 2
            yield from self._converted(given[:middle], place)
            yield from self._converted(given[middle:], place)

    def _read(self, given: list[_Given]) -> Read:
        time_B, hour_B = hours_of([one.line for one in given])
        lost: dict[int, int] = {}
        rows = []
        for row, (one, hour) in enumerate(zip(given, hour_B.tolist(), strict=True)):
            if one.line.lost is not None:
                lost[hour] = lost.get(hour, 0) + one.line.lost
            else:
                check_scalars(one.line)
                rows.append(row)
        time_R, hour_R = time_B[rows], hour_B[rows]
        lines = [given[row].line for row in rows]
        columns = self._columns_of([given[row] for row in rows])
        requests = request_table(self._plan, lines, columns, time_R, hour_R)
        return Read(requests, candidate_table(self._plan, lines, columns, hour_R, self._generations), lost)

    def _columns_of(self, requests: list[_Given]) -> Columns:
        texts = [one.text for one in requests if one.text is not None]
        found = self._columns.of_text(texts) if texts and len(texts) == len(requests) else None
        if found is not None:
            return found
        try:
            whole = [one.line if one.text is None else self._decoders.whole.decode(one.text) for one in requests]
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"no request ({error})") from None
        return self._columns.of_lines(whole)


def _digits(answers: list[float | None]) -> list[float | None]:
    """Answers of Parquet, which has 32 bits of each, as the line of JSON has them: by their shortest digits."""
    digits: list[float | None] = pa.array(answers, pa.float32()).cast(pa.string()).cast(pa.float64()).to_pylist()
    return digits
