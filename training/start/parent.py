"""Parent of a run: a published version or the folder of a finished run, with its weights as they were trained.

In: `models/NAME/VERSION`, or a run's folder. Out: a `Parent`. A published network is rearranged for scoring, so export
puts `trained.pt` beside it, an optional file of the manifest: the network's own state (a state dict, read with
`weights_only`) and the place of each table in the artifact's table files. Versions from before it are refused by name.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.artifact.artifact import FITTED, MANIFEST, TRAINED, Artifact, ArtifactError
from model.artifact.table_files import StackedTables, as_table, table_file
from model.embeddings.embeddings import Embeddings
from model.embeddings.histories import activation_units
from model.embeddings.id_map import IdMap
from model.features.block import inputs_of
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Network, NetworkConfig, Ranker, row_width
from model.schema import FeedSchema
from model.tasks.task import TargetScale
from training.run.run import CONFIG, Run
from training.step.slots import id_map_states, with_vocabularies


@dataclass(frozen=True)
class Parent:
    """`tables` are by name, [rows, dim]. They may be mapped from a file: copy, never write. `about` is its entry in its
    children's manifests: its name, and the window of its data."""

    path: Path
    schema: FeedSchema
    fitted: FittedFeatures
    config: NetworkConfig
    network: Network
    tables: Mapping[str, Tensor]
    about: dict[str, Any]
    # Which ids have the slots of its tables, and with what merit (model/embeddings/id_map.py). Rows are those of
    # `tables`.
    id_maps: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def extended(self, schema: FeedSchema, fitted: FittedFeatures) -> FittedFeatures:
        """`fitted` with what the parent learned in its place, so that rows and numbers keep their meaning: vocabularies
        keep their entries and new ones follow. Transforms and label scales of the same definition stay, and of the
        labels' upper bounds the larger does."""
        known_numbers = set(inputs_of(self.schema.features).numbers)
        numbers = {
            number.name: self.fitted.numbers[number.name]
            for number in inputs_of(schema.features).numbers
            if number in known_numbers
        }
        before = {task.name: task.scaling for task in self.schema.tasks}
        targets = {
            task.name: _of_both(self.fitted.targets[task.name], fitted.targets[task.name])
            for task in schema.tasks
            if task.scaling is not None and before.get(task.name) == task.scaling
        }
        vocabularies = dict(fitted.vocabularies)
        for name, entries in fitted.vocabularies.items():
            old = self.fitted.vocabularies.get(name, ())
            if old and type(old[0]) is type(entries[0]):
                known = set(old)
                vocabularies[name] = (*old, *(entry for entry in entries if entry not in known))
        return fitted.model_copy(
            update={
                "vocabularies": vocabularies,
                "numbers": {**fitted.numbers, **numbers},
                "targets": {**fitted.targets, **targets},
            }
        )

    def ranker(self) -> Ranker:
        """The parent itself, on the CPU, in evaluation mode."""
        encoder = FeatureEncoder(self.schema, self.fitted)
        embeddings = Embeddings(self.schema, encoder, for_each_task=self.config.has_own_embeddings)
        for name, weight in embeddings.table_weights().items():
            weight.copy_(self.tables[name])
        return Ranker(embeddings, self.network).eval()


def _of_both(parent: TargetScale, child: TargetScale) -> TargetScale:
    return parent.model_copy(update={"upper": max(parent.upper, child.upper)})


def open_parent(path: Path) -> Parent:
    """Open what a run starts from. Raises ValueError naming what is absent, broken or not finished."""
    if (path / CONFIG).is_file():
        return _of_run(path)
    if (path / MANIFEST).is_file():
        return _of_version(path)
    raise ValueError(
        f"init_from: {path}: neither a published version (no {MANIFEST}) nor a training run (no {CONFIG}); give "
        "models/NAME/VERSION, or the `output` folder of a training file"
    )


def write_trained(folder: Path, ranker: Ranker, stacked: StackedTables, id_maps: Mapping[str, dict[str, Any]]) -> None:
    """Write `trained.pt` beside the table files of an artifact. Raises OSError where the disk does not take it."""
    tables = {
        name: [weight.shape[1], stacked.starts[name], weight.shape[0]]
        for name, weight in ranker.embeddings.table_weights().items()
    }
    content = io.BytesIO()
    torch.save({"network": ranker.network.state_dict(), "tables": tables, "slots": dict(id_maps)}, content)
    (folder / TRAINED).write_bytes(content.getbuffer())


def _of_run(path: Path) -> Parent:
    run = Run.open(path)
    run.summary()
    trained = run.best_ranker()
    run, ranker = with_vocabularies(run, trained)
    about = {"run": path.name, "data_window": run.config.data.bounds.model_dump(mode="json")}
    config = run.config.network
    tables, id_maps = ranker.embeddings.table_weights(), id_map_states(trained)
    return Parent(path, run.schema, run.fitted, config, ranker.network, tables, about, id_maps)


def _of_version(path: Path) -> Parent:
    artifact = Artifact.open(path)
    manifest = artifact.manifest
    if TRAINED not in manifest.files:
        raise ValueError(
            f"init_from: {path}: has no {TRAINED}, the weights as they were trained; export its run again, or give "
            "that run's folder"
        )
    place = str(path / TRAINED)
    fitted = FittedFeatures.from_mapping(artifact.read_json(FITTED), str(path / FITTED))
    config = NetworkConfig.from_mapping(manifest.network, str(path / MANIFEST))
    network = _network(config, manifest.feed)
    try:
        state = torch.load(io.BytesIO(artifact.read(TRAINED)), map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        tables = {}
        for name, (width, start, rows) in state["tables"].items():
            tables[name] = as_table(artifact.map(table_file(width)), width)[start : start + rows]
        id_maps = state.get("slots", {})
        for id_map in id_maps.values():
            IdMap(len(id_map["words"]), torch.device("cpu")).load_state_dict(id_map)
    except ArtifactError:
        raise
    except Exception as error:  # a forged body can make the unpickler stop anywhere
        raise ValueError(f"{place}: not the weights of this version ({type(error).__name__})") from None
    about = {
        "name": manifest.name,
        "version": manifest.version,
        "checksum": manifest.checksum,
        "data_window": manifest.training.get("data_window"),
    }
    return Parent(path, manifest.feed, fitted, config, network.eval(), tables, about, id_maps)


def _network(config: NetworkConfig, schema: FeedSchema) -> Network:
    parts = len(schema.tasks) if config.has_own_embeddings else 1
    # Its weights are set next: the seed of the run draws the child's as it does without a parent.
    with torch.random.fork_rng(devices=[]):
        units = activation_units(schema, parts)
        width = row_width(schema) * parts
        return Network(config, width, schema.output_counts, schema.given, schema.base_logits, units)
