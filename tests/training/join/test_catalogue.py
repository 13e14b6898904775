"""Features that a catalogue gave, against a slow loop over its items, and item files that are gone or changed."""

import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.impression_lines import stamp
from tests.training.join.logs import JOIN, SCHEMA, START, Logs, logs, write
from tests.training.join.loops import join_slowly
from tests.training.join.test_join import LAST, NOW, check, hashes_of, tie
from training.join.check import check as check_answers
from training.join.join import Settings, join
from training.join.plan import Plan
from training.publish.catalogue import build_catalogue
from training.publish.catalogue_append import append_to_catalogue

FEATURES = ("item_id", "topics", "age")
REQUEST = {
    "user": {"user_id": 1, "history": [7]},
    "candidates": {"id": ["v1"], "features": {"item_id": ["v1"], "topics": [["x"]], "age": [1.0]}},
}
Items = dict[str, dict[str, Any]]


def some_items(seed: int) -> Items:
    """Features of some of the ids that requests have."""
    draw = random.Random(seed)
    return {
        f"v{number}": {
            "item_id": draw.choice([f"v{number}", None]),
            "topics": draw.choice([None, [], ["música"], ["x", "y"]]),
            "age": draw.choice([None, 0.0, float(draw.randrange(99))]),
        }
        for number in draw.sample(range(60), 50)
    }


def write_items(path: Path, items: Items, ids: pa.Array | None = None) -> Path:
    """The items as a file, some in each row group."""
    table = pa.table({
        "id": pa.array(list(items)) if ids is None else ids,
        "age": pa.array([one["age"] for one in items.values()], pa.float64()),
        "topics": pa.array([one["topics"] for one in items.values()], pa.list_(pa.string())),
        "item_id": pa.array([one["item_id"] for one in items.values()], pa.string()),
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=17)
    return path


def published(folder: Path, versions: int = 1) -> Path:
    """The newest of some versions of the logs' model."""
    (folder / "feed.yaml").write_text(SCHEMA, encoding="utf-8")
    schema = FeedSchema.from_yaml(folder / "feed.yaml")
    for _ in range(versions):
        path = publish_artifact(folder / "models", "feed", schema=schema, request=REQUEST)
    return path


def by_catalogue(line: dict[str, Any], generation: str, draw: random.Random) -> dict[str, Any]:
    """The request as a client sends it that knows some features, or none."""
    ids, given = line["candidates"]["id"], line["candidates"]["features"]
    features = {
        name: [value if draw.random() < 0.3 else None for value in given[name]]
        for name in FEATURES
        if draw.random() < 0.5
    }
    if "topics" in features:
        features["topics"][0] = []  # no topics, said by the request, which is not the same as nothing said
    return {**line, "catalogue": generation, "candidates": {"id": ids, "features": features}}


def filled(line: dict[str, Any], items: Items) -> dict[str, Any]:
    """The request with the features that its answer was made of, one by one."""
    ids, given = line["candidates"]["id"], line["candidates"]["features"]
    features: dict[str, list[Any]] = {}
    for name in FEATURES:
        features[name] = []
        for row, one in enumerate(ids):
            value = given[name][row] if name in given else None
            if value is None and one in items:
                value = items[one][name]
            features[name].append(value)
    return {**line, "candidates": {"id": ids, "features": features}}


def renamed(made: Logs, ids: Callable[[str], str]) -> Logs:
    """The logs with other ids of candidates."""
    requests = [
        {**line, "candidates": {**line["candidates"], "id": list(map(ids, line["candidates"]["id"]))}}
        for line in made.requests
    ]
    return Logs(requests, [{**event, "id": ids(event["id"])} for event in made.events])


@pytest.mark.parametrize("is_integer", [False, True])
def test_rows_have_the_features_of_the_generation_that_answered(tmp_path: Path, is_integer: bool) -> None:
    """Of generations that are removed too, and only where the request says nothing."""
    version = published(tmp_path, versions=3)
    generations = {}
    for number in range(1, 5):
        items = some_items(number)
        ids = pa.array([int(one[1:]) for one in items], pa.int64()) if is_integer else None
        built = build_catalogue(version, write_items(tmp_path / f"items-{number}.parquet", items, ids))
        assert built.name == str(number)
        generations[str(number)] = {one[1:]: items[one] for one in items} if is_integer else items
    assert not (version.parent / "derived/3/catalogue/1").exists()
    made = logs(150, 4, seed=51)
    if is_integer:
        made = renamed(made, lambda one: one.removeprefix("v"))
    draw = random.Random(51)
    requests = [
        line if draw.random() < 0.2 else by_catalogue(line, draw.choice("1234"), draw) for line in made.requests
    ]
    plan = Plan.load(write(tmp_path, made._replace(requests=requests), join=JOIN + "models: {folder}/models\n"))
    join(plan, NOW)
    slow = [filled(line, generations[line["catalogue"]]) if line["catalogue"] else line for line in requests]
    assert sum(line != one for line, one in zip(requests, slow, strict=True)) > 80
    check(plan.out, join_slowly(made._replace(requests=slow), "shown", LAST, tie))
    assert sum(pq.read_metadata(path).num_rows for path in plan.out.glob("date=*/*")) > 100
    assert not list((plan.out / "_join").glob(".items*"))


def test_rows_have_the_features_of_the_newest_file_that_has_an_item(tmp_path: Path) -> None:
    """Items that were appended, replaced and removed, as each generation had them."""
    version = published(tmp_path, versions=3)
    build_catalogue(version, write_items(tmp_path / "items-1.parquet", some_items(1)))
    generations = {"1": some_items(1)}
    for number in range(2, 13):  # beyond the first merge
        draw = random.Random(number)
        new = {one: features for one, features in some_items(number).items() if draw.random() < 0.2}
        items = write_items(tmp_path / f"items-{number}.parquet", new)
        before = generations[str(number - 1)]
        gone = draw.sample([one for one in before if one not in new], 3)
        pq.write_table(pa.table({"id": gone}), tmp_path / f"gone-{number}.parquet")
        assert append_to_catalogue(version, items, tmp_path / f"gone-{number}.parquet").name == str(number)
        generations[str(number)] = {one: features for one, features in {**before, **new}.items() if one not in gone}
    made = logs(150, 4, seed=53)
    draw = random.Random(53)
    requests = [by_catalogue(line, str(draw.randint(1, 12)), draw) for line in made.requests]
    plan = Plan.load(write(tmp_path, made._replace(requests=requests), join=JOIN + "models: {folder}/models\n"))
    join(plan, NOW)
    slow = [filled(line, generations[line["catalogue"]]) for line in requests]
    check(plan.out, join_slowly(made._replace(requests=slow), "shown", LAST, tie))
    assert sum(pq.read_metadata(path).num_rows for path in plan.out.glob("date=*/*")) > 100


def test_rows_answered_by_a_catalogue_are_answered_again(tmp_path: Path) -> None:
    """`join --check` scores the raw values that the join found, and the version answered by sums of encoded ones."""
    version = published(tmp_path)
    scorer = Scorer.load(version)
    items = some_items(1)
    scorer.catalogue = scorer.open_catalogue(build_catalogue(version, write_items(tmp_path / "items.parquet", items)))
    made = logs(40, 4, seed=31, hours=1)
    draw = random.Random(31)
    requests = []
    for line in made.requests:
        line = by_catalogue(line, "1", draw)
        ids, features = line["candidates"]["id"], line["candidates"]["features"]
        rows = len(ids)
        columns = scorer.encoder.columns("candidate", features, rows)
        nulls = {name: pa.array(features[name]).is_null().to_numpy(False) for name in features if name == "topics"}
        named = scorer.name(ids, columns, nulls)
        assert named is not None
        assert named.uses_catalogue
        request = scorer.encoder.encode("request", scorer.encoder.request_columns(line["user"]), 1, as_served=True)
        answers_NO = scorer.score(request, named).answers_NO
        tasks = {output: answers_NO[:, place].tolist() for place, output in enumerate(scorer.outputs)}
        requests.append({**line, "model_version": "1", "tasks": tasks})
    shown = [
        {"received": stamp(START + timedelta(hours=1)), "model": "feed", "request_id": line["request_id"],
         "id": one, "type": "shown", "time": line["time"], "position": 0}
        for line in requests for one in line["candidates"]["id"]
    ]  # fmt: skip
    plan = Plan.load(write(tmp_path, Logs(requests, shown), join=JOIN + "models: {folder}/models\n"))
    join(plan, Settings(now=START + timedelta(hours=4)))
    checked = check_answers(plan, tmp_path / "models" / "feed")
    assert checked.rows > 100
    assert (checked.differing, checked.left_out) == (0, {})


def _changed(folder: Path) -> None:
    write_items(folder / "items.parquet", some_items(2))


def _unnamed(folder: Path) -> None:
    path = folder / "models/feed/derived/1/catalogue/1/manifest.json"
    path.chmod(0o644)
    content = json.loads(path.read_text())
    del content["sources"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "line", "says"),
    [
        (lambda folder: (folder / "items.parquet").unlink(), {}, r"items\.parquet: not a readable .* \(No such file"),
        (_changed, {}, r"items\.parquet: is not the file that generation 1 of the catalogue was built of"),
        (_unnamed, {}, r"manifest\.json: does not say which files its items came from"),
        (lambda folder: None, {"catalogue": "7"}, "catalogue: has no generation 7"),
        (lambda folder: None, {"catalogue": "../1"}, "not a generation of a catalogue"),
        (lambda folder: None, {"model_version": None}, "no model, version and generation say which"),
    ],
)  # fmt: skip
def test_items_that_are_not_those_that_answered_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], line: dict[str, Any], says: str
) -> None:
    build_catalogue(published(tmp_path), write_items(tmp_path / "items.parquet", some_items(1)))
    made = logs(9, 2, seed=52)
    requests = [{**one, "model_version": "1", "catalogue": "1", **line} for one in made.requests]
    plan = Plan.load(write(tmp_path, made._replace(requests=requests), join=JOIN + "models: {folder}/models\n"))
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says) as refused:
        join(plan, NOW)
    assert f"{tmp_path}/impressions/impressions-0.jsonl:1: " in str(refused.value)
    assert hashes_of(plan.out) == {}


def test_item_files_that_were_moved_are_found_where_the_file_says(tmp_path: Path) -> None:
    build_catalogue(published(tmp_path), write_items(tmp_path / "items.parquet", some_items(1)))
    made = logs(60, 4, seed=52)
    requests = [{**one, "model_version": "1", "catalogue": "1"} for one in made.requests]
    keys = "models: {folder}/models\nitems: {folder}/moved\n"
    plan = Plan.load(write(tmp_path, made._replace(requests=requests), join=JOIN + keys))
    (tmp_path / "moved").mkdir()
    (tmp_path / "items.parquet").rename(tmp_path / "moved/items.parquet")
    assert join(plan, NOW).hours
    with pytest.raises(ValueError, match="items goes with models"):
        Plan.load(write(tmp_path / "other", made, join=JOIN + "items: {folder}/moved\n"))
