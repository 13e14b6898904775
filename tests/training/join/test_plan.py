"""join.yaml and the schema that it names: what fits, and what is refused by name."""

import re
from pathlib import Path

import pytest
import yaml

from tests.training.join.logs import JOIN, SCHEMA
from training.join.plan import Plan

ROOT = Path(__file__).parents[3]


def test_the_file_of_the_page_is_the_shipped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(
        r"^```yaml\n(schema: .*?)^```$", (ROOT / "docs/loop.md").read_text(), re.MULTILINE | re.DOTALL
    )
    shipped = Plan.load(Path("configs/join.yaml"))
    assert {**shipped.file.model_dump(by_alias=True)} == {
        **type(shipped.file).from_mapping(yaml.safe_load(block), "").model_dump(by_alias=True)
    }
    assert {"click", "play_time_ms", "position", "_weight", "_answer_play_time"} <= set(shipped.columns.names)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("is_click:", "is_clicked:"), "labels: unknown label 'is_clicked'; did you mean 'is_click'"),
        (("  best: {event: dwell, value: max}\n", ""), "no entry makes 'best', the label of task best"),
        (("features: {position: shown.position}", ""), "no entry makes 'position', a training_only feature"),
        (
            ("{event: click}", "{event: click, missing: null}"),
            "labels.is_click: missing: null needs a mask of task click",
        ),
        (
            ("value: last, missing: null", "value: sum"),
            "labels.stars: a task of classes takes value: first, last or max",
        ),
        (("value: last, missing: null", "value: last, missing: 4"), "missing 4 is no class of task rating"),
        (("out: ", "out: s3://"), "out: is a URL"),
        (("window: 30m", "window: soon"), "expected a whole number and its unit"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, changes: tuple[str, str], says: str) -> None:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    text = JOIN.format(folder=tmp_path)
    assert changes[0] in text
    (tmp_path / "join.yaml").write_text(text.replace(*changes))
    with pytest.raises(ValueError, match=re.escape(says)) as refused:
        Plan.load(tmp_path / "join.yaml")
    assert str(refused.value).startswith(f"{tmp_path / 'join.yaml'}: ")
