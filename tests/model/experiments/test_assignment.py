"""Assignment: by the documented recipe, sticky, even, and the same whatever else is in the file."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from scipy import stats

from model.experiments.assignment import Assignment, Experiments
from model.experiments.experiments_file import ExperimentsFile
from tests.deploy.programs import program

NOW = 1_800_000_000.0  # 2027-01-15
UNITS = [str(number) for number in range(20_000)]


def _experiment(name: str, first: int, last: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "layer": "ranking",
        "buckets": {"from": first, "to": last},
        "start": "2026-12-01",
        "horizon": "24h",
        "realised": {"click": 1.0},
        "arms": {"control": {"weight": 1}, "bold": {"weight": 2}, "bolder": {"weight": 1}},
        **changes,
    }


def _experiments(*each: dict[str, Any], holdout: bool = False) -> Experiments:
    layers = {"ranking": {"salt": "2026-11", "unit": "user_id"}, "second": {"salt": "2026-12", "unit": "user_id"}}
    held = {"layer": "second", "buckets": {"from": 9000, "to": 10000}, "since": "2026-01-01"}
    content: dict[str, Any] = {"layers": layers, "experiments": list(each)}
    return Experiments(ExperimentsFile.model_validate({**content, "holdout": held} if holdout else content))


def _of(unit: str | None) -> Callable[[str], str | None]:
    return lambda feature: unit if feature == "user_id" else None


def _arms(experiments: Experiments, unit: str, now: float = NOW) -> dict[str, str]:
    return {member.experiment: member.arm for member in experiments.assign(_of(unit), now).members}


def _bucket(salt: str, unit: str) -> int:
    return int(xxhash.xxh3_64_hexdigest(salt.encode() + b"\x00" + unit.encode()), 16) % 10_000


def test_an_arm_is_that_of_the_recipe() -> None:
    experiments = _experiments(_experiment("bold", 1000, 6000))
    for unit in [*UNITS[:2000], "Zoë", "", "a b"]:
        expected = {}
        if 1000 <= _bucket("2026-11", unit) < 6000:
            dealt = _bucket("bold", unit)
            # In the order of their names.
            expected = {"bold": "bold" if dealt < 5000 else "bolder" if dealt < 7500 else "control"}
        assert _arms(experiments, unit) == expected


def test_nobody_moves_when_others_come_go_or_change_places() -> None:
    one, other = _experiment("bold", 0, 5000), _experiment("other", 5000, 8000)
    beside = _experiment("beside", 0, 10_000, layer="second")
    arms = dict(reversed(one["arms"].items()))
    alone = [_arms(_experiments(one), unit).get("bold") for unit in UNITS[:3000]]
    for file in ([one, other, beside], [beside, other, {**one, "arms": arms}], [{**other, "end": "2026-12-20"}, one]):
        experiments = _experiments(*file)
        assert [_arms(experiments, unit).get("bold") for unit in UNITS[:3000]] == alone


def test_arms_have_their_shares_and_layers_are_independent() -> None:
    experiments = _experiments(_experiment("bold", 0, 10_000), _experiment("beside", 0, 10_000, layer="second"))
    found = [_arms(experiments, unit) for unit in UNITS]
    counts = Counter(arms["bold"] for arms in found)
    shares = experiments["bold"].shares
    assert shares == {"bold": 0.5, "bolder": 0.25, "control": 0.25}
    expected = [share * len(UNITS) for share in shares.values()]
    # Units are fixed, so that this is one draw: of all such draws one in a thousand would fail.
    assert stats.chisquare([counts[arm] for arm in shares], expected).pvalue > 0.001
    table = Counter((arms["bold"], arms["beside"]) for arms in found)
    crossed = np.array([[table[one, other] for other in shares] for one in shares])
    assert stats.chi2_contingency(crossed).pvalue > 0.001


def test_an_experiment_begins_and_ends_at_its_times() -> None:
    experiments = _experiments(_experiment("bold", 0, 10_000, start="2026-12-01", end="2026-12-02"))
    start = 1_796_083_200.0  # 2026-12-01T00:00Z
    assert [bool(_arms(experiments, "17", start + after)) for after in (-0.001, 0, 86_399.9, 86_400)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_request_that_names_what_an_experiment_sets_leaves_it() -> None:
    arms = {"control": {}, "treatment": {"value_model": "discovery"}}
    versions = {"control": {}, "treatment": {"version": "canary"}}
    experiments = _experiments(
        _experiment("values", 0, 10_000, arms=arms), _experiment("versions", 0, 10_000, layer="second", arms=versions)
    )
    named = experiments.assign(_of("17"), NOW, {"value_model"})
    assert [member.experiment for member in named.members] == ["versions"]
    assert named.left_out == (("values", "named"),)
    assert named.skips_canary
    assert not experiments.assign(_of("17"), NOW, {"policy"}).left_out
    assert experiments.assign(_of(None), NOW) == Assignment((), (("values", "no_unit"), ("versions", "no_unit")), False)


def test_what_the_arms_of_a_request_set_is_found() -> None:
    both = {"control": {}, "treatment": {"value_model": "discovery", "version": 4}}
    experiments = _experiments(_experiment("bold", 0, 10_000, arms=both))
    by_arm = {
        member.arm: assigned
        for unit in UNITS[:50]
        for assigned in [experiments.assign(_of(unit), NOW)]
        for member in assigned.members
    }
    assert {arm: assigned.setting("version") is None for arm, assigned in by_arm.items()} == {
        "control": True,
        "treatment": False,
    }
    version = by_arm["treatment"].setting("version")
    assert version is not None
    assert version[0] == "4"
    assert all(assigned.skips_canary for assigned in by_arm.values())
    assert experiments.versions == ["4"]


def test_the_holdout_is_in_no_experiment_of_any_layer() -> None:
    experiments = _experiments(_experiment("bold", 0, 10_000), holdout=True)
    for unit in UNITS[:3000]:
        arms = _arms(experiments, unit)
        if _bucket("2026-12", unit) >= 9000:
            assert arms == {"holdout": "held"}
        else:
            assert arms["holdout"] == "rest"
            assert "bold" in arms
    assert experiments.assign(_of(None), NOW).left_out == (("holdout", "no_unit"), ("bold", "no_unit"))


def test_what_changes_arms_begins_an_epoch_and_nothing_else_does() -> None:
    first = _experiments(_experiment("bold", 0, 5000))
    same = _experiments(_experiment("bold", 0, 5000, end="2027-03-01", horizon="7d"), _experiment("other", 5000, 6000))
    assert same.epochs["bold"] == first.epochs["bold"]
    assert same.version != first.version
    arms = {"control": {"weight": 1}, "bold": {"weight": 1}, "bolder": {"weight": 1}}
    changes: list[dict[str, Any]] = [
        {"buckets": {"from": 0, "to": 6000}},
        {"salt": "again"},
        {"layer": "second"},
        {"arms": arms},
        {"arms": {**arms, "bold": {"weight": 1, "policy": "diverse"}}},
    ]
    epochs = {_experiments(_experiment("bold", 0, 5000, **change)).epochs["bold"] for change in changes}
    assert len(epochs | {first.epochs["bold"]}) == len(changes) + 1


def test_the_page_has_the_numbers_of_its_rule() -> None:
    page = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (2026-11|bold_likes) \| (\S+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    assert [int(number) for _, _, number in rows] == [_bucket(salt, unit) for salt, unit, _ in rows]
    text = re.search(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert text is not None
    experiments = Experiments.from_bytes(text[1].encode(), "docs/experiments.md")
    now = experiments["bold_likes"].experiment.start.timestamp()
    arms = {unit: _arms(experiments, unit, now).get("bold_likes") for unit in ("17", "Zoë", "user-000042")}
    assert arms == {"17": None, "Zoë": "treatment", "user-000042": None}


def test_another_language_finds_the_same_numbers() -> None:
    pairs = [(salt, unit) for salt in ("2026-11", "bold_likes") for unit in ("17", "Zoë", "user-000042", *UNITS[:40])]
    # XXH3-64 has a rule for each class of lengths, and a salt and a unit of many letters may have thousands of bytes.
    text = "".join(UNITS[:2000])
    pairs += [("s", text[:length]) for length in (*range(300), 510, 511, 512, 1022, 1023, 1024, 1025, 2046, 4000)]
    run = subprocess.run(
        [program("java", "default-jdk-headless"), str(Path(__file__).parent / "Buckets.java")],
        input="".join(f"{salt}\t{unit}\n" for salt, unit in pairs).encode(),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert [int(line) for line in run.stdout.split()] == [_bucket(salt, unit) for salt, unit in pairs]
