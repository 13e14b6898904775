"""Slots: every value of a network's parameters has one name, and what is written there is the network's."""

import pytest
import torch

from model.fusion.slots import Slots
from model.ranker import Network
from tests.model.fusion.cases import CASES, Case


def network_of(case: Case) -> Network:
    torch.manual_seed(0)
    return case.network((6, 3))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_slots_are_all_values_of_all_parameters_once(case: Case) -> None:
    network = network_of(case)
    slots: Slots = network.slots([f"t{task}" for task in range(case.tasks)])
    assert sum(slot.numel() for slot in slots.values()) == sum(value.numel() for value in network.parameters())
    for number, slot in enumerate(slots.values()):
        slot.fill_(number)
    # Numbers written twice would be missing here, values without a slot would not be whole.
    written = torch.cat([value.detach().flatten() for value in network.parameters()])
    numbers, counts = torch.unique(written, return_counts=True)
    assert numbers.tolist() == list(range(len(slots)))
    assert counts.tolist() == [slot.numel() for slot in slots.values()]


def test_names_say_whose_a_layer_is() -> None:
    config = {"kind": "adatt", "levels": [[6, 5], 4], "experts_per_task": [2, 1], "shared_experts": 1}
    names = set(network_of(Case(config, 2)).slots(["click", "like"]))
    assert {"level.0.expert.click.1.1.weight", "level.1.expert.shared.0.0.bias", "level.0.gate.shared.weight",
            "level.1.native.like", "tower.like.2.bias"} <= names  # fmt: skip
    assert not any("level.1.gate.shared" in name or "level.0.expert.like.1" in name for name in names)


def test_a_task_named_as_the_shared_unit_is_refused() -> None:
    case = Case({"kind": "ple", "levels": [4]}, 2)
    with pytest.raises(ValueError, match="a task is named 'shared'"):
        network_of(case).slots(["click", "shared"])
