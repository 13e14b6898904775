"""The experiment file: what `python -m training images EXPERIMENT` reads.

    name: fashion_mnist_routing
    data: {kind: fashion_mnist, path: data/fashion_mnist}
    network: {convolutions: [32, 32, 32], fully_connected: [64, 64]}
    methods: [{name: no_sharing, routing: {kind: no_sharing}}, ...]
    seeds: 5
    epochs: 50
    output: runs/fashion_mnist_routing

A cell is one method trained with one seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from model.strict_yaml import StrictModel, unknown_key
from training.compare.experiment import Name, Seeds
from training.config import OutputPath, PositiveFinite
from training.images.augment import AugmentationConfig
from training.images.network import Method, RoutedMethod, TrunkConfig, check_layers
from training.images.tasks import ImageDataConfig


class PaperFigure(StrictModel):
    """Accuracy that the paper states, in percent, and its standard deviation over five experiments."""

    mean: float
    sd: float


class MethodEntry(StrictModel):
    """A method under its name. `label` is its name in tables, `paper` the paper's figure beside ours."""

    name: Name
    routing: Method
    label: str | None = None
    paper: PaperFigure | None = None


class ModuleCounts(StrictModel):
    """Trains `method` once more with each number of modules (the paper's Figure 3)."""

    method: str
    counts: tuple[PositiveInt, ...] = Field(min_length=1)


class Hypothesis(StrictModel):
    """Tests whether the mean accuracy of `better` is above that of `than` (the paper's A.2)."""

    better: str
    than: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}/seed-{self.seed}"


class ImageExperiment(StrictModel):
    """One experiment. Learning rates and optimizer are the paper's."""

    name: Name
    data: ImageDataConfig
    network: TrunkConfig = TrunkConfig()
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    module_counts: ModuleCounts | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    seeds: Seeds
    epochs: PositiveInt
    # The paper names no batch size.
    batch_size: PositiveInt = 128
    learning_rate: PositiveFinite = 1.5e-4
    augmentation: AugmentationConfig | None = None
    # Fewest epochs that figures are drawn of. Those of the paper's Figure 1.
    figure_epochs: PositiveInt = 120
    device: Literal["cpu", "cuda"] = "cpu"
    # More threads than idle cores make OpenMP spin and training many times slower.
    threads: PositiveInt = 1
    output: OutputPath

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [entry.name for entry in self.methods]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"method '{min(twice)}' is given twice; give each a name of its own")
        for entry in self.methods:
            try:
                check_layers(entry.routing, self.network)
            except ValueError as error:
                raise ValueError(f"method '{entry.name}': {error}") from None
        for hypothesis in self.hypotheses:
            for key, name in (("better", hypothesis.better), ("than", hypothesis.than)):
                if name not in names:
                    raise ValueError(f"hypotheses.{key}: " + unknown_key(name, names, "method"))
        if self.module_counts is not None:
            name, counts = self.module_counts.method, self.module_counts.counts
            if name not in names:
                raise ValueError("module_counts.method: " + unknown_key(name, names, "method"))
            if not isinstance(self.method(name), RoutedMethod):
                raise ValueError(f"module_counts.method: '{name}' has no layer with modules to choose from")
            if len(set(counts)) < len(counts):
                raise ValueError("module_counts.counts: give each number once")
            clash = set(names) & {self.counted(count) for count in counts}
            if clash:
                raise ValueError(f"method '{min(clash)}' has a name that module_counts gives; choose another")
        return self

    def method(self, name: str) -> Method:
        """The method of a name, those of `module_counts` included."""
        for entry in self.methods:
            if entry.name == name:
                return entry.routing
        assert self.module_counts is not None, "only module_counts makes further names"
        counts = {self.counted(count): count for count in self.module_counts.counts}
        base = self.method(self.module_counts.method)
        assert isinstance(base, RoutedMethod)
        return base.model_copy(update={"num_modules": counts[name]})

    def counted(self, count: int) -> str:
        """The name of the method of `module_counts` with `count` modules."""
        assert self.module_counts is not None
        return f"{self.module_counts.method}_{count}_modules"

    def cells(self) -> list[Cell]:
        """All cells, seed by seed: an unfinished experiment has every method with the same seeds."""
        names = [entry.name for entry in self.methods]
        if self.module_counts is not None:
            names += [self.counted(count) for count in self.module_counts.counts]
        return [Cell(name, seed) for seed in self.seeds for name in names]

    def folder(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.output / cell.method / f"seed-{cell.seed}"

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Settings that decide a cell's numbers, as plain JSON: all but the other cells and the place."""
        keys = {"data", "network", "epochs", "batch_size", "learning_rate", "augmentation", "device"}
        shared = self.model_dump(mode="json", include=keys)
        return shared | {"routing": self.method(cell.method).model_dump(mode="json"), "seed": cell.seed}
