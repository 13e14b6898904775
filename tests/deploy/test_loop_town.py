"""A town's days through the real service and the join: joined labels are the town's truth, to the last one."""

import json
import re
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deploy.loop.answered import answered_hours, values_by_version
from deploy.loop.arm import VALUE, Arm, value_of
from deploy.loop.asking import Backend, RefusedError
from deploy.loop.curves import Ledger, curves, regained, relative_difference
from deploy.loop.events import LABELS, is_joined
from deploy.loop.files import MODEL, SCHEMA, LoopFiles
from deploy.loop.nights import LOOP, Nights
from deploy.loop.processes import Commands, convert_log, loop_service, wait_for_logs
from deploy.loop.questions import BETTER, EXPLORE, WATCH_TIME, answer_exploration, files_beside
from deploy.loop.town import PLACES, Days, Town
from deploy.loop.users import load_users
from model.schema import FeedSchema
from tests.artifacts import publish_artifact
from training.datasets.feed_world import BINARY_TASKS, MAX_HISTORY, PROPENSITIES

KEY = "a key of the town"
TOWN = Town(seed=3, users=40, items=80, requests_per_day=60, candidates=15, shift_day=1)
POISONED = 1


class Lived:
    """A town after two days."""

    def __init__(self, files: LoopFiles, nights: Nights, refusal: str) -> None:
        self.files, self.nights, self.refusal = files, nights, refusal


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    """Two days, the second one poisoned, joined by the command."""
    files = LoopFiles(tmp_path_factory.mktemp("town") / "loop")
    files.write(TOWN.first_day(), KEY, files_beside(TOWN))
    request = TOWN.world().request(np.random.default_rng(0), 4)
    schema = yaml.safe_load(SCHEMA.read_text())
    item = next(feature for feature in schema["features"] if feature["name"] == "item_id")
    del item["vocabulary"], item["min_count"]  # which would have to be fitted
    item["buckets"] = 200
    publish_artifact(
        files.models,
        MODEL,
        schema=FeedSchema.from_mapping(schema, "town"),
        request=request,
        user="user_id",
    )
    commands = Commands(files.root / "commands.log")
    load_users(files, TOWN, commands.run)
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(stack.enter_context(loop_service(files)), MODEL, KEY))
        nights = Nights(TOWN, files, {LOOP: Arm(LOOP, backend, TOWN.users, by_id=True)}, POISONED, days=2)
        for day in range(2):
            night = nights.live_day(day)
        with pytest.raises(RefusedError) as refused:
            backend.send("POST", "/v1/rank", {"model": MODEL})
        wait_for_logs(files, night - timedelta(minutes=1))
        commands.run("training", "join", str(files.join), "--now", night.isoformat())
    convert_log(files, commands)
    return Lived(files, nights, str(refused.value))


def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Joined rows by request and candidate."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("date=*/*.parquet")):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            key = (row["_request_id"], row["_candidate_id"])
            assert key not in found, f"{key} is there twice"
            found[key] = row
    return found


def test_joined_labels_are_the_truth_to_the_last_one(lived: Lived) -> None:
    joined = rows(lived.files.joined)
    truth = [row for path in sorted((lived.files.root / "truth").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert len(truth) == 2 * TOWN.requests_per_day * PLACES
    assert joined.keys() == {(row["request_id"], row["id"]) for row in truth}
    for row in truth:
        found = joined[row["request_id"], row["id"]]
        assert {label: found[label] for label in LABELS} == {label: row[label] for label in LABELS}
        assert (found["position"], found["user_id"]) == (row["position"], row["user_id"])


def test_features_of_users_are_what_was_loaded_and_clicked(lived: Lived) -> None:
    """Requests name their users alone. Histories by a slow loop over what was reported, by hour and place."""
    joined = rows(lived.files.joined)
    truth = [row for path in sorted((lived.files.root / "truth").iterdir()) for row in pq.read_table(path).to_pylist()]
    world = TOWN.world()
    hour_of = {row["request_id"]: (row["request_id"][:3], row["hour"]) for row in truth}
    clicks = sorted(
        (hour_of[row["request_id"]], row["position"], row["request_id"], row["user_id"], row["id"])
        for row in truth
        if row["click"]
    )
    longest = 0
    for (request, _), row in joined.items():
        user = row["user_id"]
        history = [item for hour, _, _, who, item in clicks if who == user and hour < hour_of[request]]
        assert row["history"] == history[-MAX_HISTORY:]
        assert row["user_activity"] == (None if world.activity_is_null[user] else world.activity[user])
        longest = max(longest, len(history))
    assert longest > MAX_HISTORY  # so that one had to go


def test_orders_are_those_of_the_arms_but_where_places_were_drawn(lived: Lived) -> None:
    """The log has what any other order would have been made of. Answers have the digits of the log."""
    explored = total = 0
    arm_of = {key[0]: json.loads(row["_experiments"] or "{}") for key, row in rows(lived.files.joined).items()}
    arms = set()
    for hour in answered_hours(lived.files.impressions, Days(TOWN), range(2)):
        orders = {"treatment": hour.order_by(VALUE), "control": hour.order_by(WATCH_TIME), None: hour.order_by(VALUE)}
        for r, request_id in enumerate(hour.visits.ids):
            arm = arm_of[request_id].get(BETTER)
            arms.add(arm)
            if not hour.explored_R[r]:
                assert hour.order_RK[r].tolist() == orders[arm][r].tolist()
        explored, total = explored + int(hour.explored_R.sum()), total + len(hour.visits.ids)
    assert arms == {"treatment", "control", None}  # the experiment ends before the last hour
    share = EXPLORE["share"]
    # Four standard deviations of a binomial variable.
    assert abs(explored - share * total) <= 4 * (total * share * (1 - share)) ** 0.5
    assert total == 2 * TOWN.requests_per_day


def test_values_of_a_version_are_those_of_its_requests(lived: Lived) -> None:
    days = Days(TOWN)
    found = values_by_version(answered_hours(lived.files.impressions, days, range(2)), VALUE)
    logs = [pq.read_table(path) for path in lived.files.impressions.glob("*.parquet")]
    lines = {line["request_id"]: line for log in logs for line in log.to_pylist()}
    for day in range(2):
        expected: dict[str, float] = {}
        for visits in (days.visits(day, hour) for hour in range(24)):
            for r, request_id in enumerate(visits.ids):
                line = lines[request_id]
                order_RK = np.tile(line["order"], (len(visits.ids), 1))
                value = visits.expected(order_RK, VALUE)[r].sum()
                expected[line["model_version"]] = expected.get(line["model_version"], 0.0) + value
        of_day = found[(TOWN.first_day() + timedelta(days=day)).date()]
        assert {version: sum(values) for version, values in of_day.items()} == pytest.approx(expected)


def test_the_price_of_exploration_is_what_the_town_knows(lived: Lived) -> None:
    """Of the last day alone, request by request. The estimates are of its logs."""
    commands: list[tuple[str, ...]] = []

    def status(*command: str) -> int:
        commands.append(command)
        Path(command[command.index("--json") + 1]).write_text(json.dumps({"estimate": {"places": len(commands)}}))
        return 0

    found = answer_exploration(lived.files, TOWN, range(1, 2), status, seed=0)
    drawn, own, first = 0.0, 0.0, []
    for hour in answered_hours(lived.files.impressions, Days(TOWN), range(1, 2)):
        worth = {name: hour.visits.expected(one, VALUE) for name, one in
                 (("drawn", hour.order_RK), ("own", hour.order_by(VALUE)))}  # fmt: skip
        for r, explores in enumerate(hour.explored_R.tolist()):
            first.append(worth["own"][r, 0] + worth["own"][r, 1])
            if explores:
                drawn, own = drawn + worth["drawn"][r].sum(), own + worth["own"][r].sum()
    assert found["price"]["mean"] == pytest.approx(drawn / own - 1)
    assert found["price"]["low"] < found["price"]["high"]
    assert found["true"] == pytest.approx(np.mean(first))
    assert (found["requests"], found["explored"] > 0) == (TOWN.requests_per_day, True)
    assert (found["estimate"], found["estimate_of_watch_time"]) == ({"places": 1}, {"places": 2})
    logs = [Path(text).name for text in commands[0] if text.endswith(".parquet")]
    assert logs
    assert all(name.startswith("impressions-20240116T") for name in logs)


def test_expected_values_are_what_users_do_on_average() -> None:
    """Labels of many hours against their expected number: four standard deviations, of a variance below the mean."""
    done = expected = 0.0
    for hour in range(24):
        visits = Days(TOWN).visits(0, hour)
        order_RK = np.tile(np.arange(PLACES)[::-1], (len(visits.ids), 1))
        expected += visits.expected(order_RK, {"click": 1.0, "like": 1.0}).sum()
        shown = visits.shown(order_RK)
        done += shown.labels["click"].sum() + shown.labels["like"].sum()
    assert abs(done - expected) <= 4 * expected**0.5


def test_a_relative_difference_is_worked_out_by_hand() -> None:
    """Two users: the one gets 2 in place of 1 a request, the other 4 in place of 4. Resamples have either or both."""
    one, other = Ledger(1, 2), Ledger(1, 2)
    for ledger, values in ((one, [2.0, 4.0]), (other, [1.0, 4.0])):
        ledger.take_requests(0, np.array([0, 1]), np.array(values))
    assert relative_difference(one, other, 0) == {"mean": pytest.approx(0.2), "low": 0.0, "high": 1.0}


def test_one_other_label_feature_or_row_is_seen(lived: Lived, tmp_path: Path) -> None:
    assert lived.nights.are_joined()
    path = sorted((lived.files.root / "truth").iterdir())[0]
    truth, joined = pq.read_table(path), lived.files.joined / path.stem
    label = truth.column_names.index("like")
    likes = truth.column(label).to_pylist()
    other = truth.set_column(label, "like", pa.array([1 - likes[0], *likes[1:]]))
    place = truth.column_names.index("history")
    histories = truth.column(place).to_pylist()
    older = truth.set_column(place, "history", pa.array([*histories[:-1], histories[-1][1:]], pa.list_(pa.string())))
    assert histories[-1], "a history that can be shorter"
    for number, changed in enumerate((other, older, truth.slice(1), pa.concat_tables([truth, truth.slice(0, 1)]))):
        pq.write_table(changed, tmp_path / f"{number}.parquet")
        assert not is_joined(tmp_path / f"{number}.parquet", joined)


def test_the_poisoned_day_reports_the_opposite(lived: Lived) -> None:
    means = {
        day: np.mean([row["click"] for key, row in rows(lived.files.joined).items() if key[0].startswith(f"d{day:02}")])
        for day in range(2)
    }
    assert means[0] < 0.45 < 0.55 < means[1]


def test_every_user_clicks_by_the_laws(lived: Lived) -> None:
    """The rate of clicks by place falls as the propensities do, whatever ranks."""
    visits = [Days(TOWN).visits(0, hour) for hour in range(24)]
    places = np.zeros(PLACES)
    expected = np.zeros(PLACES)
    for one in visits:
        order_RK = np.tile(np.arange(PLACES), (len(one.ids), 1))
        at_top = one.at_top.click_at_top.reshape(one.items_RN.shape)[:, :PLACES]
        places += one.shown(order_RK).labels["click"].sum(axis=0)
        expected += (at_top * np.array(PROPENSITIES)).sum(axis=0)
    # Sums of independent Bernoulli variables: four standard deviations, whose variance is below the mean.
    assert (np.abs(places - expected) <= 4 * np.sqrt(expected)).all()


def test_the_same_chance_serves_every_order() -> None:
    visits = Days(TOWN).visits(0, 20)
    order_RK = np.tile(np.arange(PLACES), (len(visits.ids), 1))
    straight, turned = visits.shown(order_RK), visits.shown(order_RK[:, ::-1])
    for task in BINARY_TASKS:
        if task != "click":  # of which the place decides too
            assert (straight.labels[task] == turned.labels[task][:, ::-1]).all()
    assert (straight.play_time_ms_RK == turned.play_time_ms_RK[:, ::-1]).all()
    by_hand = [sum(VALUE[task] * int(straight.labels[task][r].sum()) for task in VALUE) for r in range(len(visits.ids))]
    assert value_of(straight).tolist() == by_hand
    turned_round = straight.inverted(["click"])
    assert (turned_round.labels["click"] == 1 - straight.labels["click"]).all()
    assert turned_round.labels["like"] is straight.labels["like"]


def test_tastes_shift_and_nothing_else() -> None:
    before, after = TOWN.world(), TOWN.world().with_other_tastes(TOWN.tastes())
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, TOWN.users, 4000), rng.integers(0, TOWN.items, 4000)
    zeros = np.zeros(4000, np.int64)
    click = [w.outcomes(users, items, zeros, zeros, zeros, np.zeros(4000)).affinity_BT[:, 0] for w in (before, after)]
    assert click[0].std() == pytest.approx(click[1].std(), rel=0.25)
    assert abs(np.corrcoef(click[0], click[1])[0, 1]) < 0.35  # habits of users stay
    assert before.request(np.random.default_rng(2), 10) == after.request(np.random.default_rng(2), 10)


def test_a_refusal_is_said_in_the_services_words(lived: Lived) -> None:
    assert re.match("POST /v1/rank: 422 .*user", lived.refusal)


def test_the_share_regained_is_worked_out_by_hand() -> None:
    """Three users, two days: static 2 a request, cold 4, the loop 3.5 on the second day."""
    ledgers = {name: Ledger(2, 3) for name in ("static", "cold", "loop")}
    for name, values in {"static": (2.0, 2.0), "cold": (4.0, 4.0), "loop": (2.0, 3.5)}.items():
        for day, value in enumerate(values):
            ledgers[name].take_requests(day, np.array([0, 1, 2, 0]), np.full(4, value))
    found = curves(ledgers, 0)
    assert [day["mean"] for day in found["loop"]] == [2.0, 3.5]
    assert found["cold"][1] == {"mean": 4.0, "low": 4.0, "high": 4.0}
    (first, second) = regained(ledgers, [0, 1], 0)
    assert first == {"day": 0, "mean": 0.0, "low": 0.0, "high": 0.0}
    assert second["mean"] == second["low"] == second["high"] == 0.75
