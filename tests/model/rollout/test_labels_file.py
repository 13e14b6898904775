"""The labels file: what is written is what is read, whole and readable by others."""

import stat
from pathlib import Path

import yaml

from model.rollout.labels import FILE_NAME, Labels, LabelsFile

LABELS = {"stable": "3", "canary": {"version": "4", "share": 0.05}, "shadow": "5"}


def test_the_file_that_is_written_is_the_one_that_is_read(tmp_path: Path) -> None:
    file = LabelsFile(tmp_path / FILE_NAME)
    assert not file.poll()
    for entry in (LABELS, {"stable": "1"}, {}, {"shadow": "2", "canary": None}):
        labels = Labels.model_validate(entry)
        file.write(labels)
        assert file.poll()
        assert file.error is None
        assert file.last_valid == labels
        assert file.last_valid.document() == {label: value for label, value in entry.items() if value}
    assert not file.poll()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o644
    file.write(Labels.model_validate(LABELS))
    by_hand = {"stable": 3, "canary": {"version": 4, "share": 0.05}, "shadow": 5}
    assert yaml.safe_load((tmp_path / FILE_NAME).read_text()) == by_hand
