"""The report of `make bench-workers`: ratios are those of the turn's own figures."""

from benchmarks.workers import FLAGS, ONE, body_of


def test_ratios_are_taken_within_a_turn() -> None:
    keys = ("server_cpu_ms", "client_cpu_ms", "requests_per_second", "p50_ms", "p99_ms")
    spent = {name: [2.0, 4.0] if name == ONE else [3.0, 4.0] for name in FLAGS}
    data = {
        "note": "a note",
        "blocks": {name: [dict.fromkeys(keys, one) for one in seen] for name, seen in spent.items()},
        "growth_cpu_ms": {"100": [1.0, 2.0], "1000": [9.0, 22.0]},
        "resident_mib": [300.0, 310.0],
        "batches_cpu_ms": {"10": {"one_by_one": 6.0, "together": 4.0}},
    }
    text = "\n".join(body_of(data))
    assert text.startswith("a note")
    assert f"| {ONE} | 3.00 | 3.00 | 3.00 | 3.00 | 3.00 | 1.00 (1.00 to 1.00) |" in text
    assert text.count("1.25 (1.00 to 1.50)") == len(FLAGS) - 1
    assert "by the factor 1.00 (0.90 to 1.10)" in text
    assert "| 10 | 6.00 | 4.00 | 1.50 |" in text
