"""A comparison of networks with and without a chain of tasks, and of AITM, which needs one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.training.tasks.chain_feed import CHAIN, shop_table, write_shop
from tests.training_data import training_file
from training.__main__ import main
from training.compare.experiment import Experiment
from training.run.run import Run

PLAIN = CHAIN.replace(", given: click", "").replace(", given: buy", "").replace(",   given: click", "")
BOTTOM = {"kind": "shared_bottom", "levels": [8]}
AITM = {"kind": "aitm", "levels": [8]}
CHAINED = {"given": {"buy": "click", "returns": "buy"}}


def experiment(folder: Path, networks: list[dict[str, Any]]) -> Path:
    assert "given" not in PLAIN
    config = training_file(folder, schema=PLAIN, epochs=1)
    content = {
        "name": "chains",
        "datasets": [{"name": "shop", "config": str(config)}],
        "networks": networks,
        "seeds": 1,
        "baseline": networks[0]["name"],
        "output": str(folder / "out"),
        "replicates": 100,
        "metrics": ["auc", "normalized_entropy"],
        "verdict": {"metric": "auc", "tasks": ["buy", "returns"]},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_networks_of_one_experiment_have_chains_of_their_own(tmp_path: Path) -> None:
    write_shop(tmp_path / "data", shop_table(900))
    networks: list[dict[str, Any]] = [
        {"name": "bottom", "fusion": BOTTOM},
        {"name": "chained", "fusion": BOTTOM, "set": CHAINED},
        {"name": "aitm", "fusion": AITM, "set": CHAINED},
        {"name": "trees", "lightgbm": {}},
    ]
    assert main(["compare", str(experiment(tmp_path, networks))]) == 0
    cells = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert "aitm" in json.dumps(cells)
    runs = {name: Run.open(tmp_path / "out" / "shop" / name / "seed-0") for name in ("bottom", "chained", "aitm")}
    assert {name: run.schema.given for name, run in runs.items()} == {
        "bottom": (None,) * 4,
        "chained": (2, None, None, 0),
        "aitm": (2, None, None, 0),
    }
    # Each network's answers for the test split are logits. Those of a chain go down along it, row by row.
    for name in ("chained", "aitm"):
        answers = kept_answers(runs[name].path)
        assert (answers["buy"] <= answers["click"]).all()
        assert (answers["returns"] <= answers["buy"]).all()


def kept_answers(folder: Path) -> dict[str, np.ndarray]:
    """Logits by task of the test split, as the comparison keeps them."""
    with np.load(folder / "predictions-test.npz") as kept:
        outputs_BO = kept["outputs_BO"]
    return {name: outputs_BO[:, place] for name, place in (("buy", 0), ("click", 2), ("returns", 3))}


@pytest.mark.parametrize(("network", "message"), [
    ({"fusion": AITM}, "shop/one/seed-0: aitm transfers along chains of tasks, and no task is given another"),
    ({"fusion": BOTTOM, "set": {"given": {"buy": "clck"}}}, "given: task 'buy': given: unknown task 'clck'"),
    ({"fusion": BOTTOM, "set": {"given": {"seconds": "click"}}}, "'seconds' is a regression task"),
])  # fmt: skip
def test_a_chain_that_cannot_be_is_refused_before_anything_runs(
    network: dict[str, Any], message: str, tmp_path: Path
) -> None:
    networks: list[dict[str, Any]] = [{"name": "bottom", "fusion": BOTTOM}, {"name": "one", **network}]
    with pytest.raises(ValueError, match=message):
        Experiment.from_yaml(experiment(tmp_path, networks)).configs()
