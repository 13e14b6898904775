"""Textfiles of metrics, as Prometheus' own parser reads them."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from training.textfile import Sample, write_textfile


def test_labels_of_any_text_are_read_back(tmp_path: Path) -> None:
    labels = {"model": 'a "b" \\ c\nd', "arm": "é世, x=\\n}"}
    samples = [Sample("first", labels, 1e-9), Sample("first", {"model": "e"}, 1_764_547_200)]
    write_textfile(tmp_path / "metrics.prom", {"first": "Of the first", "empty": "Of nothing"}, samples)
    families = {one.name: one for one in text_string_to_metric_families((tmp_path / "metrics.prom").read_text("utf-8"))}
    assert {name: (one.documentation, one.type) for name, one in families.items()} == {
        "first": ("Of the first", "gauge"),
        "empty": ("Of nothing", "gauge"),
    }
    assert [(one.labels, one.value) for one in families["first"].samples] == [
        (one.labels, one.value) for one in samples
    ]
    assert not families["empty"].samples
