"""The feed schema: every rule, each with the message that names the place, and the traps of YAML 1.1."""

import re
from pathlib import Path

import pytest

from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.kinds import NumberFeature
from model.schema import Attention, FeedSchema, Table
from model.tasks import BinaryTask, RegressionTask
from tests.model.feeds import FEED, everything, schema_of, write

ITEM = "{name: item, side: candidate, kind: id, buckets: 5, dim: 4}"
CLICK = "{name: click, kind: binary, label: clicked}"
SHORT_LIST = "{name: b, kind: id_list, table: item, max_length: 3"
LONG_LIST = "{name: b, kind: id_list, table: item, max_length: 51"
OWN_LIST = "{name: b, kind: id_list, buckets: 9, dim: 4, max_length: 3"


def feed(*features: str, tasks: str = CLICK, item: str = ITEM) -> str:
    """A feed of `item`, the features given, and `tasks`, as YAML."""
    lines = "".join(f"  - {feature}\n" for feature in (item, *features) if feature)
    return f"name: feed\nfeatures:\n{lines}tasks: [{tasks}]\n"


# The example of the contract that users copy from.
DOCUMENTED = """
name: kuairand
features:
  - {name: user_id,   side: user,      kind: id,      buckets: 100_000, dim: 16}
  - {name: history,   side: user,      kind: id_list, table: video_id, max_length: 50, pooling: mean}   # shares a table
  - {name: tab,       side: context,   kind: id,      vocabulary: [0, 1, 2, 4, 6], dim: 4}
  - {name: video_id,  side: candidate, kind: id,      buckets: 20_000, dim: 16}
  - {name: duration_ms, side: candidate, kind: number, transform: log1p, missing: 0}
  - {name: position,  side: training_only, kind: number, serving_value: 0}
tasks:
  - {name: click,     kind: binary,     label: is_click}
  - {name: like,      kind: binary,     label: is_like, loss_weight: 1.0, mask: null, negative_sampling_rate: 1.0}
  - {name: play_time, kind: regression, label: play_time_ms, transform: log1p}
"""


def test_the_documented_example_is_read(tmp_path: Path) -> None:
    schema = FeedSchema.from_yaml(write(tmp_path / "kuairand.yaml", DOCUMENTED))
    assert schema.tables == (
        Table("user_id", 16, "int64", 100_000, None, 1, ("user_id",)),
        Table("tab", 4, "int64", None, (0, 1, 2, 4, 6), 1, ("tab",)),
        Table("video_id", 16, "int64", 20_000, None, 1, ("history", "video_id")),
    )
    assert [feature.name for feature in schema.block("request")] == ["user_id", "history", "tab", "position"]
    assert [feature.name for feature in schema.requested("request")] == ["user_id", "history", "tab"]
    assert [feature.name for feature in schema.block("candidate")] == ["video_id", "duration_ms"]
    click, like, play_time = schema.tasks
    assert click == BinaryTask(name="click", kind="binary", label="is_click")
    assert like == BinaryTask(name="like", kind="binary", label="is_like")
    assert play_time == RegressionTask(name="play_time", kind="regression", label="play_time_ms", transform="log1p")
    assert schema.columns() == (
        *("user_id", "history", "tab", "video_id", "duration_ms", "position"),
        *("is_click", "is_like", "play_time_ms"),
    )


def test_every_task_has_its_columns_among_the_outputs(tmp_path: Path) -> None:
    schema = FeedSchema.from_yaml(write(tmp_path / "kuairand.yaml", DOCUMENTED))
    assert schema.outputs == ("click", "like", "play_time")
    columns = range(len(schema.outputs))
    assert [(name, *columns[place]) for name, place in schema.output_slices.items()] == [
        ("click", 0),
        ("like", 1),
        ("play_time", 2),
    ]


def test_a_schema_survives_the_manifest() -> None:
    schema = everything()
    assert FeedSchema.from_mapping(schema.model_dump(mode="json", exclude_none=True), "manifest") == schema


@pytest.mark.parametrize(("transform", "steps"), [
    ("none", ()), ("null", ()), ("[]", ()), ("log1p", ("log1p",)), ("[log1p, standardise]", ("log1p", "standardise")),
])  # fmt: skip
def test_transforms_are_one_or_many(transform: str, steps: tuple[str, ...]) -> None:
    feature = schema_of(feed(f"{{name: n, side: user, kind: number, transform: {transform}}}")).features[1]
    assert isinstance(feature, NumberFeature)
    assert feature.transform == steps


def test_masks_are_columns_that_training_reads_once() -> None:
    tasks = (
        CLICK + ", {name: like, kind: binary, label: clicked, mask: m}, {name: y, kind: regression, label: y, mask: m}"
    )
    assert schema_of(feed(tasks=tasks)).columns() == ("item", "clicked", "m", "y")


@pytest.mark.parametrize(("feature", "message"), [
    # one source of rows
    ("{name: b, side: user, kind: id, dim: 4}", "'b' needs exactly one of buckets, vocabulary, slots, table; got"),
    ("{name: b, side: user, kind: id, buckets: 3, vocabulary: [1], dim: 4}", "got ['buckets', 'vocabulary']"),
    ("{name: b, side: user, kind: id, buckets: 3, table: item}", "got ['buckets', 'table']"),
    ("{name: b, side: user, kind: id, buckets: 3, slots: 3, dim: 4}", "got ['buckets', 'slots']"),
    ("{name: b, side: user, kind: id, slots: 3, hashes: 2, dim: 4}", "hashes applies to buckets alone"),
    ("{name: b, side: user, kind: id, slots: 3, min_count: 2, dim: 4}", "min_count applies to `vocabulary: fit"),
    ("{name: b, side: user, kind: id, slots: 0, dim: 4}", "features.1.id.slots"),
    ("{name: b, side: user, kind: id, slots: 2147483647, dim: 4}", "features.1.id.slots"),
    ("{name: b, side: user, kind: id, table: item, dim: 4}", "feature 'b' takes dim from table 'item'; remove it"),
    ("{name: b, side: user, kind: id, table: item, dtype: int64}", "takes dtype from table 'item'"),
    ("{name: b, side: user, kind: id, table: item, min_count: 2}", "takes min_count from table 'item'"),
    ("{name: b, side: user, kind: id, table: itme}", "feature 'b': table 'itme' must be an id or id_list feature"),
    ("{name: b, side: user, kind: id, table: b}", "feature 'b': table 'b' must be"),
    # sizes
    ("{name: b, side: user, kind: id, buckets: 3}", "feature 'b' needs dim"),
    ("{name: b, side: user, kind: id, buckets: 3, dim: 6}", "feature 'b': dim must be a multiple of 4"),
    ("{name: b, side: user, kind: id, buckets: 3, dim: 0}", "features.1.id.dim"),
    ("{name: b, side: user, kind: id, buckets: 3, dim: 1028}", "features.1.id.dim"),
    ("{name: b, side: user, kind: id, buckets: 0, dim: 4}", "features.1.id.buckets"),
    ("{name: b, side: user, kind: id, buckets: 2147483647, dim: 4}", "features.1.id.buckets"),
    ("{name: b, side: user, kind: id, buckets: on, dim: 4}", "buckets: got true or false"),
    # vocabularies
    ("{name: b, side: user, kind: id, vocabulary: [], dim: 4}", "feature 'b': vocabulary is empty"),
    ("{name: b, side: user, kind: id, vocabulary: [1, 2, 1], dim: 4}", "feature 'b': vocabulary holds 1 2 times"),
    ("{name: b, side: user, kind: id, vocabulary: [a], dim: 4}", "feature 'b': dtype int64 does not fit 'a'"),
    ("{name: b, side: user, kind: id, dtype: string, vocabulary: [1], dim: 4}", "dtype string does not fit 1"),
    ("{name: b, side: user, kind: id, vocabulary: [9223372036854775808], dim: 4}", "808 is not an int64"),
    ("{name: b, side: user, kind: id, vocabulary: [1, a], dim: 4}", "int64 ids alone or strings alone"),
    ("{name: b, side: user, kind: id, vocabulary: [1.0], dim: 4}", "int64 ids alone or strings alone"),
    ("{name: b, side: user, kind: id, vocabulary: [null], dim: 4}", "int64 ids alone or strings alone"),
    ("{name: b, side: user, kind: id, vocabulary: [2022-05-06], dim: 4}", "int64 ids alone or strings alone"),
    ("{name: b, side: user, kind: id, dtype: string, vocabulary: [maybe, no], dim: 4}", "YAML reads yes, no"),
    ("{name: b, side: user, kind: id, vocabulary: fited, dim: 4}", "a list of ids, or the word fitted (got 'fited')"),
    ("{name: b, side: user, kind: id, vocabulary: [1], min_count: 2, dim: 4}", "min_count applies to `vocabulary: fit"),
    ("{name: b, side: user, kind: id, buckets: 9, min_count: 2, dim: 4}", "min_count applies to `vocabulary: fit"),
    ("{name: b, side: user, kind: id, vocabulary: fitted, min_count: 0, dim: 4}", "features.1.id.min_count"),
    # kinds, sides, names, keys
    ("{name: b, side: user, kind: idd, buckets: 3, dim: 4}", "features.1: unknown kind 'idd'; did you mean 'id'"),
    ("{name: b, side: user, buckets: 3, dim: 4}", "features.1: key 'kind' is missing; it names the feature"),
    ("{name: b, side: usr, kind: id, buckets: 3, dim: 4}", "features.1.id.side"),
    ("{name: b, side: user, kind: id, bukets: 3, dim: 4}", "1.id: unknown key 'bukets'; did you mean 'buckets'"),
    ("{name: b, side: user, kind: id, buckets: 3, dim: 4, dtype: float}", "features.1.id.dtype"),
    ("{name: 'b.c', side: user, kind: id, buckets: 3, dim: 4}", "features.1.id.name"),
    ("{name: '', side: user, kind: id, buckets: 3, dim: 4}", "features.1.id.name"),
    ("{name: \"b\\n\", side: user, kind: id, buckets: 3, dim: 4}", "features.1.id.name"),
    ("{name: 7, side: user, kind: id, buckets: 3, dim: 4}", "features.1.id.name"),
    ("{side: user, kind: id, buckets: 3, dim: 4}", "features.1.id.name: Field required"),
    ("{name: item, side: user, kind: id, buckets: 3, dim: 4}", "feature 'item' is defined 2 times"),
    ("{name: clicked, side: user, kind: id, buckets: 3, dim: 4}", "clicked: a label or mask column cannot be"),
    ("banana", "features.1"),
    # lists
    ("{name: b, side: user, kind: id_list, table: item}", "features.1.id_list.max_length: Field required"),
    ("{name: b, side: user, kind: id_list, table: item, max_length: 0}", "features.1.id_list.max_length"),
    ("{name: b, side: user, kind: id_list, table: item, max_length: 10001}", "features.1.id_list.max_length"),
    ("{name: b, side: user, kind: id_list, table: item, max_length: yes}", "max_length: got true or false"),
    ("{name: b, side: user, kind: id_list, table: item, max_length: 3, pooling: max}", "features.1.id_list.pooling"),
    ("{name: b, side: training_only, kind: id_list, table: item, max_length: 3}", "features.1.id_list.side"),
    (f"{SHORT_LIST}, side: candidate, pooling: attention}}", "so its side is user or context"),
    (f"{SHORT_LIST}, side: user, attention: dot}}", "attention applies to `pooling: attention` alone"),
    (f"{SHORT_LIST}, side: user, query: item}}", "query applies to `pooling: attention` alone"),
    (f"{SHORT_LIST}, side: user, pooling: attention, attention: dott}}", "features.1.id_list.attention"),
    (f"{LONG_LIST}, side: user, pooling: attention, attention: mlp}}", "takes lists of 50 at most, got max_length 51"),
    (f"{SHORT_LIST}, side: user, pooling: attention, query: c}}", "got query 'c': name one of item as query"),
    (f"{OWN_LIST}, side: user, pooling: attention}}", "reads table 'b', and none does; give such an id"),
    # numbers
    ("{name: b, side: user, kind: number, transform: log}", "features.1.number.transform"),
    ("{name: b, side: user, kind: number, transform: [log1p, none]}", "features.1.number.transform"),
    ("{name: b, side: user, kind: number, missing: .nan}", "features.1.number.missing"),
    ("{name: b, side: user, kind: number, missing: -.inf}", "features.1.number.missing"),
    ("{name: b, side: user, kind: number, missing: null}", "features.1.number.missing"),
    ("{name: b, side: user, kind: number, missing: no}", "missing: got true or false"),
    ("{name: b, side: user, kind: number, dim: 4}", "unknown key 'dim'"),
    # serving values
    ("{name: b, side: training_only, kind: number}", "'b' is training_only and needs serving_value"),
    ("{name: b, side: training_only, kind: id, buckets: 3, dim: 4}", "'b' is training_only and needs serving_value"),
    ("{name: b, side: user, kind: number, serving_value: 1}", "'b': serving_value applies to side training_only"),
    ("{name: b, side: training_only, kind: number, serving_value: .inf}", "features.1.number.serving_value"),
    ("{name: b, side: training_only, kind: id, buckets: 3, dim: 4, serving_value: x}", "of dtype int64, got 'x'"),
    ("{name: b, side: training_only, kind: id, dtype: string, buckets: 3, dim: 4, serving_value: 1}", "string, got 1"),
    ("{name: b, side: training_only, kind: id, table: item, serving_value: x}", "must be of dtype int64, got 'x'"),
    ("{name: b, side: training_only, kind: id, table: item, serving_value: on}", "serving_value: got true or false"),
    ("{name: b, side: training_only, kind: id, table: item, serving_value: 9223372036854775808}", "is not an int64"),
])  # fmt: skip
def test_faults_of_a_feature_are_named(tmp_path: Path, feature: str, message: str) -> None:
    path = write(tmp_path / "feed.yaml", feed(feature))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        FeedSchema.from_yaml(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("task", "message"), [
    ("", "tasks"),
    ("{kind: binary, label: x}", "tasks.0.binary.name"),
    ("{name: click, label: x}", "tasks.0: key 'kind' is missing; it names the task's type: binary, regression"),
    ("{name: click, kind: rank, label: x}", "tasks.0: unknown kind 'rank'; valid kinds: binary, regression"),
    ("{name: click, kind: binary}", "tasks.0.binary.label"),
    ("{name: click, kind: binary, label: ''}", "tasks.0.binary.label"),
    ("{name: click, kind: binary, label: x, transform: log1p}", "unknown key 'transform'"),
    ("{name: click, kind: binary, label: x, loss_weight: -1}", "tasks.0.binary.loss_weight"),
    ("{name: click, kind: binary, label: x, loss_weight: .inf}", "tasks.0.binary.loss_weight"),
    ("{name: click, kind: binary, label: x, loss_weight: yes}", "loss_weight: got true or false"),
    ("{name: click, kind: binary, label: x, negative_sampling_rate: 0}", "tasks.0.binary.negative_sampling_rate"),
    ("{name: click, kind: binary, label: x, negative_sampling_rate: 1.01}", "tasks.0.binary.negative_sampling_rate"),
    ("{name: y, kind: regression, label: x, negative_sampling_rate: 0.5}", "unknown key 'negative_sampling_rate'"),
    ("{name: y, kind: regression, label: x, transform: sqrt}", "tasks.0.regression.transform"),
    ("{name: score, kind: binary, label: x}", "a task cannot be named 'score'"),
    (f"{CLICK}, {CLICK}", "task 'click' is defined 2 times"),
    ("{name: click, kind: binary, label: item}", "item: a label or mask column cannot be a feature"),
    ("{name: click, kind: binary, label: x, mask: item}", "item: a label or mask column cannot be a feature"),
])  # fmt: skip
def test_faults_of_a_task_are_named(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FeedSchema.from_yaml(write(tmp_path / "feed.yaml", feed(tasks=task)))


@pytest.mark.parametrize(("text", "message"), [
    (feed(item="{name: u, side: user, kind: id, buckets: 5, dim: 4}"), "no feature on side candidate"),
    ("name: feed\nfeatures: []\ntasks: []", "features: "),
    ("name: feed", "features: Field required"),
    ("features: 3\n" + feed(), "key 'features' is given twice"),
    (feed() + "task: 3\n", "unknown key 'task'; did you mean 'tasks'"),
    (feed().replace("name: feed", "name: my feed"), "name: "),
    (feed("{name: b, side: user, kind: id, vocabulary: [010], dim: 4}"), "010 would not be read as written"),
    (feed("{name: b, side: user, kind: id, buckets: 3, buckets: 4, dim: 4}"), "key 'buckets' is given twice"),
    (
        feed("{name: a, side: user, kind: id, table: item}", "{name: b, side: user, kind: id, table: a}"),
        "feature 'b': table 'a' must be an id or id_list feature that has its own table",
    ),
    (
        feed("{name: n, side: user, kind: number}", "{name: b, side: user, kind: id, table: n}"),
        "feature 'b': table 'n' must be an id or id_list feature that has its own table",
    ),
])  # fmt: skip
def test_faults_of_a_feed_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FeedSchema.from_yaml(write(tmp_path / "feed.yaml", text))


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = feed(
        "{name: b, side: usr, kind: number}", "{name: c, side: user, kind: id}", tasks="{name: t, kind: binery}"
    )
    with pytest.raises(ValueError, match=r"features\.1\.number\.side.*feature 'c' needs exactly one.*tasks\.0"):
        FeedSchema.from_yaml(write(tmp_path / "feed.yaml", text))


def test_quotes_keep_yaml_words_and_zeros_as_written() -> None:
    item = "{name: item, side: candidate, kind: id, dtype: string, dim: 4, vocabulary: ['no', 'on', '010', '1:30', ~a]}"
    assert schema_of(feed(item=item)).tables[0].vocabulary == ("no", "on", "010", "1:30", "~a")


def test_the_limits_themselves_are_allowed() -> None:
    item = "{name: item, side: candidate, kind: id, dim: 1024, vocabulary: [-9223372036854775808, 9223372036854775807]}"
    bucket = "{name: b, side: user, kind: id, buckets: 2147483646, dim: 4}"
    assert schema_of(feed(bucket, item=item)).tables[0].vocabulary == (-(2**63), 2**63 - 1)


def test_a_schema_does_not_change() -> None:
    schema = schema_of(FEED)
    with pytest.raises(ValueError, match="frozen"):
        schema.name = "other"  # type: ignore[misc]


def test_serving_value_of_a_shared_table_reaches_that_table() -> None:
    shared = "{name: b, side: training_only, kind: id, table: item, serving_value: 3}"
    item = "{name: item, side: candidate, kind: id, vocabulary: [5, 3], dim: 4}"
    encoder = FeatureEncoder(schema_of(feed(shared, item=item)), FittedFeatures())
    assert encoder.encode("request", {}, 1, as_served=True).block.ids_BK.tolist() == [[2]]


def test_a_list_with_attention_has_a_query_of_its_table() -> None:
    schema = schema_of("""
name: f
features:
  - {name: item, side: candidate, kind: id, buckets: 9, dim: 4}
  - {name: parent, side: candidate, kind: id, buckets: 9, dim: 8}
  - {name: twin, side: candidate, kind: id, table: parent}
  - {name: seen, side: user, kind: id_list, table: item, max_length: 3, pooling: attention}
  - {name: kin, side: context, kind: id_list, table: parent, max_length: 7, pooling: attention, query: twin}
tasks: [{name: click, kind: binary, label: clicked}]
""")
    assert schema.attentions == (
        Attention("seen", "item", "item", 4, 3, "dot"),
        Attention("kin", "twin", "parent", 8, 7, "dot"),
    )
    text = schema.model_dump_json(exclude_none=True).replace('"query":"twin"', '"query":null')
    with pytest.raises(ValueError, match=r"'kin'.*reads table 'parent'; several do: name one of parent, twin as query"):
        schema_of(text)
