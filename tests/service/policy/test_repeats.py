"""Repeated ids of explored requests."""

from service.policy.repeats import RepeatedIds


def test_an_id_that_came_before_is_repeated_under_the_same_version() -> None:
    ids = RepeatedIds()
    assert [ids.take_id("r-1", "v") for _ in range(1_000)] == [False] + [True] * 999
    assert not ids.take_id("r-1", "w")
    assert not ids.take_id("\ud800", "v")
    assert ids.take_id("\ud800", "v")


def test_ids_that_never_came_are_not_repeated() -> None:
    ids = RepeatedIds()
    assert not any(ids.take_id(f"r-{number}", "v") for number in range(200_000))
    # Of the newest, all but those whose slot a later one has taken: after n ids in s slots each is there with
    # probability (1 - 1/s)^(later ones).
    kept = sum(ids.take_id(f"r-{number}", "v") for number in range(199_000, 200_000))
    assert kept > 950
