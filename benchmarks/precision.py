"""`make bench-precision`: which precisions of a scoring network its trained weights survive, by emulation.

    python -m benchmarks.precision VERSION [VERSION ...]

In: published versions of trained models with kept rows. Each product of the network is computed from rounded inputs and
weights and summed in float32, as a matrix unit does, part by part: the products over the raw row, the levels above, the
towers' hidden layers, their last ones. Out: how far answers move, whether the tolerance of golden requests and the
bounds of quality hold, and what the products cost by count. Nothing is timed: no such unit is needed.

Shapes: N candidates, D columns of an input, H outputs.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import report
from benchmarks.command import run_benchmark
from model.artifact.quality_rows import QualityRows
from model.scorer.golden import disagreement
from model.scorer.quality import inputs_of_sets, measured_quality, quality_fault
from model.scorer.scorer import COMPILED_TOLERANCE, Scorer
from model.value_models.value_model import DEFAULT, ValueModels
from training.publish.compile import dense_answers

Product = Callable[[Tensor, Tensor], Tensor]

# Parts of a network, in the order of their products.
PARTS = ("raw row", "levels", "towers", "last")


def in_float32(input_ND: Tensor, weight_HD: Tensor) -> Tensor:
    """The product as TorchScript computes it."""
    return input_ND @ weight_HD.t()


def in_bfloat16(input_ND: Tensor, weight_HD: Tensor) -> Tensor:
    """Inputs, weights and outputs rounded to bfloat16."""
    return _rounded(in_sums(input_ND, weight_HD))


def in_sums(input_ND: Tensor, weight_HD: Tensor) -> Tensor:
    """Inputs and weights rounded to bfloat16, outputs left as they are summed."""
    return in_float32(_rounded(input_ND), _rounded(weight_HD))


def in_halves(input_ND: Tensor, weight_HD: Tensor) -> Tensor:
    """High and low parts in bfloat16, three of their four products in one: inputs three times as wide."""
    high_ND, high_HD = _rounded(input_ND), _rounded(weight_HD)
    low_ND, low_HD = _rounded(input_ND - high_ND), _rounded(weight_HD - high_HD)
    return in_float32(torch.cat([high_ND, high_ND, low_ND], 1), torch.cat([high_HD, low_HD, high_HD], 1))


def in_float16(input_ND: Tensor, weight_HD: Tensor) -> Tensor:
    """Inputs and weights rounded to float16, outputs left as they are summed."""
    return in_float32(input_ND.half().float(), weight_HD.half().float())


# Multiplications of bfloat16 that one of float32's takes the time of: fewer bits are multiplied 16 times as fast by AMX
# (2,048 to 128 a cycle and core), twice as fast by AVX-512 BF16 (64 to 32 of a fused multiply-add).
OF_FLOAT32 = {"AMX": 16, "AVX-512 BF16": 2}
COSTS: dict[Product, int] = {in_bfloat16: 1, in_sums: 1, in_halves: 3, in_float16: 1}
PLANS: dict[str, tuple[Product, Product, Product, Product]] = {
    "bfloat16, last layers float32": (in_bfloat16, in_bfloat16, in_bfloat16, in_float32),
    "bfloat16 over the raw row, the rest float32": (in_bfloat16, in_float32, in_float32, in_float32),
    "the same, outputs not rounded": (in_sums, in_float32, in_float32, in_float32),
    "float32, levels above the first bfloat16": (in_float32, in_bfloat16, in_float32, in_float32),
    "halves, towers float32": (in_halves, in_halves, in_float32, in_float32),
    "halves, last layers float32": (in_halves, in_halves, in_halves, in_float32),
    "float16, last layers float32": (in_float16, in_float16, in_float16, in_float32),
}

HEAD = (
    "model",
    "precision",
    "sets within the tolerance",
    "probability off by",
    "below .002",
    "quantity off by",
    "below .01",
    "largest change of NE",
    "overlap",
    "bound that is broken",
)


def main() -> None:
    """Emulates, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", type=Path, nargs="+", metavar="VERSION", help="models/NAME/VERSION")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = {version.parent.name: of_version(version) for version in options.versions}
    cells = [[name, plan, *_cells(one)] for name, plans in measured.items() for plan, one in plans.items()]
    body = [
        "Products of trained networks emulated in float32: rounded inputs and weights, sums in float32. In halves: "
        "high and low parts in bfloat16, three products. 500 sets of 100 validation candidates. A set is within the "
        f"tolerance where no answer is off by more than {COMPILED_TOLERANCE:g} and no two candidates change places "
        "that are further apart. A bound is one of quality (docs/exporting.md). The cost is the count of "
        "multiplications as a share of float32's, each weighed by what a CPU with that unit multiplies in the same "
        "time. It is no measured time.",
        "",
        *report.table([*HEAD, *(f"cost with {unit}" for unit in OF_FLOAT32)], cells),
    ]
    path = report.write(
        "precision", "Precision of trained networks", body, {"models": measured}, "make bench-precision"
    )
    print(path.read_text(encoding="utf-8"))


def of_version(version: Path) -> dict[str, dict[str, Any]]:
    """Figures of a version's network by plan."""
    scorer = Scorer.load(version, "torchscript")
    rows = QualityRows.of_artifact(scorer.artifact)
    if rows is None:
        raise ValueError(f"{version}: keeps no validation rows; export its run again")
    combined = ValueModels.of_folder(version.parent, scorer.domain)[DEFAULT].score
    dense = dense_answers(scorer, "float32")
    part_of = parts_of(dense.network)
    expected = scorer.module.answer
    measured: dict[str, dict[str, Any]] = {}
    for plan, products in PLANS.items():
        of_part = dict(zip(PARTS, products, strict=True))
        with emulated({weight: of_part[part] for weight, part in part_of.items()}):
            quality = measured_quality(scorer, rows, expected, dense, combined)
            held = [
                disagreement(
                    scorer.as_answered(expected(*inputs)), scorer.as_answered(dense(*inputs)), COMPILED_TOLERANCE
                )
                for inputs in inputs_of_sets(scorer, rows)
            ].count(None)
        measured[plan] = {
            **quality.model_dump(),
            "sets_within_tolerance": held,
            "quality_fault": quality_fault(quality),
            "cost": {unit: cost_of(part_of, of_part, times) for unit, times in OF_FLOAT32.items()},
        }
    return measured


def parts_of(network: nn.Module) -> dict[Tensor, str]:
    """The part that each weight of a scoring network is of."""
    parts: dict[Tensor, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            if name.startswith("towers"):
                part = "last" if name.endswith(".last") else "towers"
            else:
                part = "levels" if name.startswith("levels") else "raw row"
            parts[module.weight] = part
    return parts


@contextmanager
def emulated(products: dict[Tensor, Product]) -> Iterator[None]:
    """Linear products of these weights computed as given. Others are left."""
    linear = functional.linear

    def product(input_ND: Tensor, weight_HD: Tensor, bias_H: Tensor | None = None) -> Tensor:
        of_weight = products.get(weight_HD)
        if of_weight is None or of_weight is in_float32:
            return linear(input_ND, weight_HD, bias_H)
        output_NH = of_weight(input_ND, weight_HD)
        return output_NH if bias_H is None else output_NH + bias_H

    with patch("torch.nn.functional.linear", product):
        yield


def cost_of(part_of: dict[Tensor, str], of_part: dict[str, Product], float32: int) -> float:
    """Multiplications a candidate as a share of float32's, each of these taking `float32` times those of 16 bits."""
    costs: dict[Product, int] = {**COSTS, in_float32: float32}
    mine = sum(weight.numel() * costs[of_part[part]] for weight, part in part_of.items())
    return mine / (float32 * sum(weight.numel() for weight in part_of))


def _rounded(values: Tensor) -> Tensor:
    return values.bfloat16().float()


def _cells(one: dict[str, Any]) -> list[str]:
    changes = [abs(change) for change in one["ne_change"].values() if change is not None]
    return [
        f"{one['sets_within_tolerance']} of {one['sets']}",
        f"{one['probability_error']:.1e}",
        f"{one['usual_probabilities']:.2%}",
        "" if one["quantity_error"] is None else f"{one['quantity_error']:.1e}",
        "" if one["usual_quantities"] is None else f"{one['usual_quantities']:.2%}",
        f"{max(changes):.4%}",
        f"{one['overlap']:.4f}",
        one["quality_fault"] or "none",
        *(f"{cost:.2f}" for cost in one["cost"].values()),
    ]


if __name__ == "__main__":
    run_benchmark(main)
