"""Weights of another implementation by name: the same logits for every network, and faults that name both sides."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from model.fusion.learned_routing import LearnedRouting
from model.ranker import Network
from tests.model.fusion.cases import CASES, INPUT_WIDTH, Case, rows_of
from tests.model.fusion.equations import routes_of
from tests.model.fusion.plain import TOWER, Plain, names_of
from tests.training_data import saved_state, training_file, write_feed
from training.config import TrainingConfig
from training.run.run import LAST
from training.start.foreign_weights import NameMap, load_mapped, read_state
from training.train import train

TASKS = ["click", "like", "follow", "share"]
MAPPED = {name: case for name, case in CASES.items() if case.tasks > 1}


def network_of(case: Case) -> Network:
    torch.manual_seed(1)
    return case.network(TOWER).eval()


@pytest.mark.parametrize("case", MAPPED.values(), ids=MAPPED.keys())
def test_a_module_per_expert_gives_the_same_logits(case: Case) -> None:
    torch.manual_seed(0)
    theirs, ours = Plain(case, INPUT_WIDTH), network_of(case)
    ignore = []
    if case.kind == "fixed_random_routing":  # they build the modules that no task drew
        ignore = [f"stages.{layer}.{number}.*" for layer, modules in enumerate(routes_of(case))
                  for number in range(case.config["num_modules"]) if number not in modules]  # fmt: skip
    tasks = TASKS[: case.tasks]
    names = NameMap(names=names_of(case), ignore=tuple(ignore))
    load_mapped(ours.slots(tasks), theirs.state_dict(), names, tasks)
    assert isinstance(ours.fusion, LearnedRouting) == (case.kind == "learned_routing")
    # A few hundred float32 products of order 1, summed in another order.
    torch.testing.assert_close(ours(rows_of(9)), theirs(rows_of(9)), atol=5e-6, rtol=0)


SLOTS = {"layer.0.weight": (4, 3), "layer.0.bias": (4,), "native.click": (2,), "native.like": (2,)}
NAMES = {"layer.{layer}.{part}": "body.{layer*2+1}.{part}", "native.{task}": "native[{task#}]"}
OPTIONAL = {"table.video": (5, 2)}


def sources() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "body.1.weight": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "body.1.bias": torch.randn(4, 1, generator=generator),
        "native": torch.randn(2, 2, generator=generator).half(),
    }


def load(state: dict[str, Any], names: dict[str, str], ignore: tuple[str, ...] = ()) -> dict[str, Tensor]:
    slots = {name: torch.zeros(shape) for name, shape in SLOTS.items()}
    tables = {name: torch.zeros(shape) for name, shape in OPTIONAL.items()}
    try:
        load_mapped(slots, state, NameMap(names=names, ignore=ignore), ["click", "like"], optional=tables)
    except ValueError:
        assert not any(bool(value.any()) for value in (*slots.values(), *tables.values())), "filled in part"
        raise
    return slots | tables


def test_rows_columns_and_kinds_of_numbers_are_taken_as_they_are() -> None:
    state, filled = sources(), load(sources(), NAMES)
    assert torch.equal(filled["layer.0.weight"], state["body.1.weight"].float())
    assert torch.equal(filled["layer.0.bias"], state["body.1.bias"][:, 0])
    assert torch.equal(filled["native.like"], state["native"][1].float())
    assert not filled["table.video"].any()


def test_the_first_line_that_fits_counts_and_tables_are_filled_where_named() -> None:
    state = {**sources(), "odd": torch.ones(4), "video": torch.ones(5, 2), "adam.step": 3}
    names = {
        "layer.0.bias": "odd",
        **NAMES,
        "layer.0.weight": "nothing",
        "level.{level}.stitch": "nothing",
        "table.{table}": "{table}",
    }
    filled = load(state, names, ("body.1.bias", "adam.*"))
    assert torch.equal(filled["layer.0.bias"], torch.ones(4))
    assert torch.equal(filled["table.video"], torch.ones(5, 2))


@pytest.mark.parametrize(("names", "state", "message"), [
    ({"native.{task}": "native[{task#}]"}, {}, "no line fits 'layer.0.weight', 'layer.0.bias'"),
    ({**NAMES, "table.vid": "x"}, {}, "'table.vid' fits no table; there are 'table.video'"),
    ({**NAMES, "layer.{layer}.{part}": "net.{layer}.{part}"}, {}, "'layer.0.weight' .* 'net.0.weight', which is not"),
    ({**NAMES, "layer.{layer}.{part}": "body.1.weight"}, {}, "'body.1.weight' would fill both 'layer.0.weight' and"),
    ({**NAMES, "native.{task}": "native[0]"}, {}, r"'native\[0\]' would fill both 'native.click' and 'native.like'"),
    (NAMES, {"native": torch.zeros(3, 2)}, "'native' has 3 rows, of which 2 are taken"),
    (NAMES, {"native": torch.zeros(1, 2)}, r"'native\[1\]', but that tensor has shape \[1, 2\]"),
    (NAMES, {"native": torch.zeros(())}, r"'native\[0\]', but that tensor has shape \[\]"),
    (NAMES, {"body.1.weight": torch.zeros(3, 4)}, r"'layer.0.weight' has shape \[4, 3\], .* 'body.1.weight' \[3, 4\]"),
    (NAMES, {"body.1.bias": torch.full((4,), torch.nan)}, "'body.1.bias' has values that are not finite"),
    (NAMES, {"body.1.weight": torch.full((4, 3), 1e300, dtype=torch.float64)}, "not finite"),
    (NAMES, {"body.1.bias": torch.zeros(4, dtype=torch.int64)}, "'body.1.bias', which is no tensor of floating"),
    (NAMES, {"body.1.bias": [0.0] * 4}, "'body.1.bias', which is no tensor of floating"),
    (NAMES, {"head.weight": torch.zeros(1), "step": 2}, "nothing here takes their 'head.weight', 'step'"),
    ({**NAMES, "layer.{depth}": "x"}, {}, r"unknown placeholder \{depth\}; there are level"),
    ({**NAMES, "layer.{layer}.{layer}": "x"}, {}, r"\{layer\} stands there twice"),
    ({**NAMES, "native.{task}": "native.{unit}"}, {}, r"\{unit\} has no value"),
    ({**NAMES, "native.{task}": "native.{task+1}"}, {}, r"'click' is no number; write \{task#\}"),
    ({**NAMES, "layer.{layer}.{part}": "body.{layer#}.{part}"}, {}, r"only \{task#\} has a number"),
    ({**NAMES, "layer.{layer}.{part}": "body.{layer-1}.{part}"}, {}, r"a placeholder is written \{layer\}"),
])  # fmt: skip
def test_what_does_not_fit_is_named(names: dict[str, str], state: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load({**sources(), **state}, names)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 torn"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pt: not a file of tensors"):
        read_state(path)


def test_a_file_that_is_absent_a_module_or_a_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match=r"weights\.pt: the weights cannot be read \(No such file"):
        read_state(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"save a module's state_dict\(\), not the module"):
        read_state(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match=r"expected names and tensors, as state_dict\(\) gives them, got list"):
        read_state(path)


def test_training_starts_from_them_and_resumes_without_them(tmp_path: Path) -> None:
    """With learning rates too small to move anything, the run ends with their weights, tables included."""
    write_feed(tmp_path / "data")
    fusion = {"kind": "shared_bottom", "levels": [4]}
    rates = {"tables": {"kind": "sgd", "learning_rate": 1e-30}, "dense": {"learning_rate": 1e-30}}
    keys: dict[str, Any] = {"network": {"fusion": fusion, "tower": [2]}, "optimizer": rates, "epochs": 1}
    first = train(TrainingConfig.load(training_file(tmp_path, **keys)), show=False)
    made = first.new_ranker()
    table = "user_id" if "user_id" in made.embeddings.table_weights() else next(iter(made.embeddings.table_weights()))
    torch.manual_seed(7)
    width = made.embeddings.width
    theirs: dict[str, Tensor] = {"bottom.weight": torch.randn(4, width), "bottom.bias": torch.randn(4)}
    for task in ("click", "like", "watch"):
        theirs |= {f"{task}.0.weight": torch.randn(2, 4), f"{task}.0.bias": torch.randn(2)}
        theirs |= {f"{task}.1.weight": torch.randn(1, 2), f"{task}.1.bias": torch.randn(1)}
    theirs["emb"] = torch.randn_like(made.embeddings.table_weights()[table])
    weights, names = tmp_path / "theirs.pt", tmp_path / "names.yaml"
    torch.save(theirs, weights)
    lines = {"layer.0.{part}": "bottom.{part}", "tower.{task}.{layer}.{part}": "{task}.{layer}.{part}"}
    names.write_text(yaml.safe_dump({"names": {**lines, f"table.{table}": "emb"}}), encoding="utf-8")
    keys |= {"initial_weights": {"path": str(weights), "names": str(names)}, "output": str(tmp_path / "second")}
    config = TrainingConfig.load(training_file(tmp_path, **keys))
    run = train(config, show=False)
    state = saved_state(run.path / LAST)["ranker"]
    torch.testing.assert_close(state["network.fusion.layers.0.weight"], theirs["bottom.weight"], atol=1e-12, rtol=0)
    torch.testing.assert_close(state["network.towers.2.layers.2.bias"], theirs["watch.1.bias"], atol=1e-12, rtol=0)
    found = run.best_ranker().embeddings.table_weights()[table]
    torch.testing.assert_close(found, theirs["emb"], atol=1e-12, rtol=0)
    weights.unlink()
    train(config, show=False)  # a finished run needs them no more
    names.write_text("names: {'layer.0.weight': bottom.weight}", encoding="utf-8")
    torch.save(theirs, weights)
    with pytest.raises(ValueError, match=r"theirs\.pt, by .*names\.yaml: names: no line fits 'layer.0.bias'"):
        train(config.model_copy(update={"output": tmp_path / "third"}), show=False)
