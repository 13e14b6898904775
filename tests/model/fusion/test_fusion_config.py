"""The configuration of fusion networks: it survives a file, and each mistake is named with what would be right."""

import copy
import json
import re
from typing import Any

import pytest
import torch

from model.fusion import KINDS, build_network
from model.fusion.adatt import AdaTT
from model.fusion.cross_stitch import CrossStitch
from model.fusion.mmoe import MMoE
from model.fusion.no_sharing import NoSharing
from model.fusion.ple import PLE
from model.fusion.routing import FixedRouting
from model.fusion.shared_bottom import SharedBottom
from model.ranker import NetworkConfig
from tests.model.fusion.cases import CASES, INPUT_WIDTH, Case, rows_of

all_networks = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def refusal(fusion: object) -> str:
    """The message that answers a faulty `fusion:` section."""
    with pytest.raises(ValueError, match=r"^network\.yaml: ") as caught:
        NetworkConfig.from_mapping({"fusion": fusion}, "network.yaml")
    return str(caught.value)


@all_networks
def test_configuration_survives_a_file(case: Case) -> None:
    network = NetworkConfig(fusion=case.parsed, tower=(3,))
    for stored in (network.model_dump(), json.loads(network.model_dump_json())):
        again = NetworkConfig.from_mapping(stored, "manifest.json")
        assert again == network
        torch.manual_seed(0)
        built = case.ready(build_network(again.fusion, INPUT_WIDTH, case.tasks, case.given))
        assert torch.equal(built(rows_of(3)), case.build(seed=0)(rows_of(3)))


def test_every_kind_is_in_the_contract_suite() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert {case.kind for case in CASES.values()} == set(KINDS)


@all_networks
def test_the_users_mapping_stays_as_it_is(case: Case) -> None:
    mapping = copy.deepcopy(dict(case.config))
    before = copy.deepcopy(mapping)
    config = NetworkConfig.from_mapping({"fusion": mapping}, "network.yaml").fusion
    for _ in range(2):
        build_network(config, INPUT_WIDTH, case.tasks, case.given)
    assert mapping == before


def test_the_callers_lists_stay_as_they_are() -> None:
    widths, levels, counts, routes = [6, 4], [[6, 5], [4]], [2, 1, 3], [[1, 0, 1], [0, 0, 2]]
    AdaTT(INPUT_WIDTH, levels, counts, shared_experts=2)
    PLE(INPUT_WIDTH, levels, counts, 2)
    MMoE(INPUT_WIDTH, levels, 3, 3)
    CrossStitch(INPUT_WIDTH, levels, 3)
    NoSharing(INPUT_WIDTH, widths, 3)
    SharedBottom(INPUT_WIDTH, widths, 3)
    FixedRouting(INPUT_WIDTH, widths, routes)
    assert widths == [6, 4]
    assert levels == [[6, 5], [4]]
    assert counts == [2, 1, 3]
    assert routes == [[1, 0, 1], [0, 0, 2]]


@pytest.mark.parametrize(("kind", "nearest"), [
    ("adat", "adatt"), ("MMOE", None), ("ml-mmoe", "ml_mmoe"), ("cross-stitch", "cross_stitch"),
    ("shared", "shared_bottom"), ("fixed_routing", "fixed_random_routing"), ("transformer", None), (3, None),
    (["ple"], None), (None, None), (True, None),
])  # fmt: skip
def test_unknown_kind_names_the_nearest_and_all(kind: object, nearest: str | None) -> None:
    message = refusal({"kind": kind, "levels": [4]})
    assert f"unknown kind '{kind}'" in message
    assert ", ".join(KINDS) in message
    if nearest is not None:
        assert f"did you mean '{nearest}'?" in message


def test_missing_kind_names_all() -> None:
    message = refusal({"levels": [4]})
    assert "key 'kind' is missing" in message
    assert ", ".join(KINDS) in message


@all_networks
def test_unknown_key_names_the_nearest(case: Case) -> None:
    assert "unknown key 'level'; did you mean 'levels'?" in refusal({**case.config, "level": [4]})
    # A key of another network is unknown too: it would have no effect.
    stranger = "num_modules" if case.kind in ("adatt", "adatt_sp", "ple") else "experts_per_task"
    assert f"unknown key '{stranger}'" in refusal({**case.config, stranger: 2})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [None, [], [[]], [0], [4, -1], [[4, 0]], [2.5], ["wide"], "4", [True], [[4, True]]])
def test_levels_are_widths(kind: str, levels: object) -> None:
    sizes: dict[str, Any] = {"mmoe": {"num_experts": 2}, "ml_mmoe": {"num_experts": 2}}
    sizes["fixed_random_routing"] = sizes["learned_routing"] = {"num_modules": 2}
    message = refusal({"kind": kind, "levels": levels, **sizes.get(kind, {})})
    assert "levels" in message
    assert "num_" not in message
    assert ("no level" in message) == (levels == []), "emptiness is named where it is the fault, and there alone"


@pytest.mark.parametrize(("fusion", "message"), [
    ({"kind": "mmoe", "levels": [4]}, "num_experts: Field required"),
    ({"kind": "ml_mmoe", "levels": [4], "num_experts": 0}, r"num_experts.*greater than 0 \(got 0\)"),
    ({"kind": "ple", "levels": [4], "shared_experts": -1}, r"shared_experts.*greater than or equal to 0 \(got -1\)"),
    ({"kind": "ple", "levels": [4], "experts_per_task": [1, 0]}, r"experts_per_task.*greater than 0 \(got 0\)"),
    ({"kind": "fixed_random_routing", "levels": [4]}, "num_modules: Field required"),
    ({"kind": "fixed_random_routing", "levels": [4], "num_modules": 0}, r"num_modules.*greater than 0 \(got 0\)"),
    ({"kind": "fixed_random_routing", "levels": [4], "num_modules": 2, "seed": -1}, r"seed.*\(got -1\)"),
    ({"kind": "fixed_random_routing", "levels": [[4, 3], 2], "num_modules": 2, "routed": [0, 3]},
     "routed: there is no layer 3; the network has layers 0 to 2"),
    ({"kind": "fixed_random_routing", "levels": [4], "num_modules": 2, "routed": [-1]}, "there is no layer -1"),
    ({"kind": "learned_routing", "levels": [4]}, "num_modules: Field required"),
    ({"kind": "learned_routing", "levels": [4], "num_modules": 2, "routed": [1]}, "there is no layer 1"),
    ({"kind": "learned_routing", "levels": [4], "num_modules": 2, "policy": "clipped"}, "policy: .*'clip'"),
    ({"kind": "learned_routing", "levels": [4], "num_modules": 2, "reward_history": 0}, r"reward_history.*\(got 0\)"),
    ({"kind": "learned_routing", "levels": [4], "num_modules": 2, "learner": "wpl"}, "learner: .*'wpl'"),
])  # fmt: skip
def test_sizes_that_make_no_network_are_refused(fusion: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(fusion))


@pytest.mark.parametrize("kind", ["ple", "adatt", "adatt_sp"])
@pytest.mark.parametrize("counts", [[], [2, 1], [1, 1, 1, 1]])
def test_expert_counts_must_fit_the_tasks(kind: str, counts: list[int]) -> None:
    fusion = {"kind": kind, "levels": [4], "experts_per_task": counts}
    config = NetworkConfig.from_mapping({"fusion": fusion}, "network.yaml").fusion
    with pytest.raises(ValueError, match=f"experts_per_task has {len(counts)} entries for 3 tasks"):
        build_network(config, INPUT_WIDTH, 3)
