"""Metrics on a full disk: a value is never lost, never seen half, and shared again as soon as there is room."""

from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from service.metrics.shared_files import RoomyDict
from tests.service.metrics.small_disks import fill, small_disk


def key_of(number: int) -> str:
    key: str = mmap_key("a", "a_total", ["n"], [str(number)], "help " * 20)
    return key


def shared_values(file: Path) -> dict[str, float]:
    """Samples that another worker's scrape reads."""
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file))}  # type: ignore[no-untyped-call]


def test_values_wait_in_memory_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.metrics.shared_files._RETRY_SECONDS", 0.0)
    with small_disk(tmp_path / "disk", 2**21) as disk:
        counters = RoomyDict(str(disk / "counter_1.db"))
        for number in range(10):
            counters.write_value(key_of(number), float(number), 0.0)
        filler = fill(disk)
        for number in range(2_000):  # more than the file has room for: it would have to grow
            assert counters.read_value(key_of(number)) == (number if number < 10 else 0.0, 0.0)
            counters.write_value(key_of(number), number + 0.5, 0.0)
        found = shared_values(disk / "counter_1.db")
        assert 10 < len(found) < 2_000
        assert all(found[key_of(number)] == number + 0.5 for number in range(len(found)))
        # Another worker, which replaces one, has not even a file.
        others = RoomyDict(str(disk / "counter_2.db"))
        others.write_value(key_of(0), 7.0, 0.0)
        assert others.read_value(key_of(0)) == (7.0, 0.0)
        assert [path.name for path in disk.glob("counter_*")] == ["counter_1.db"]
        filler.unlink()
        for dictionary in (counters, others):
            dictionary.write_value(key_of(0), 8.0, 0.0)
        assert shared_values(disk / "counter_2.db") == {key_of(0): 8.0}
        expected = {key_of(number): number + 0.5 for number in range(1, 2_000)}
        assert shared_values(disk / "counter_1.db") == expected | {key_of(0): 8.0}
        for dictionary in (counters, others):
            dictionary.close()


def test_a_folder_that_is_gone_costs_samples_alone(tmp_path: Path) -> None:
    gone = RoomyDict(str(tmp_path / "absent" / "counter_1.db"))
    gone.write_value(key_of(1), 3.0, 0.0)
    assert gone.read_value(key_of(1)) == (3.0, 0.0)
    gone.close()
