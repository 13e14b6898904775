"""A model as `make demo` has it, with random weights, and the events that a service has logged."""

import json
from pathlib import Path
from typing import Any

import yaml

from model.schema import FeedSchema
from service.events.event_log import event_files
from tests.artifacts import publish_artifact
from tests.service.running import ROOT

ADDRESS = "http://127.0.0.1:8080"
ITEMS = ["v000003", "v000009", "v000041"]
# Neither is a float, and as floats both would be the same.
SNOWFLAKES = [7461234567890123457, 7461234567890123458]
REQUEST: dict[str, Any] = {
    "user": {"user_id": SNOWFLAKES[0], "history": ["v000003", "v000009"], "hour": 20, "device": "phone"},
    "candidates": {"id": ["a", "b"], "features": {"item_id": ["v000003", "v000041"], "duration_ms": [8000, 31000]}},
}


def demo_schema() -> FeedSchema:
    """The simulated feed's, with few items and two users."""
    document = yaml.safe_load((ROOT / "configs/schemas/simulated.yaml").read_text(encoding="utf-8"))
    for feature in document["features"]:
        if feature["name"] == "item_id":
            del feature["min_count"]
            feature["vocabulary"] = ITEMS
        if feature["name"] == "user_id":
            del feature["buckets"]
            feature["vocabulary"] = SNOWFLAKES
    return FeedSchema.from_mapping(document, "simulated.yaml")


def publish_demo(models: Path) -> None:
    """Publish it as version 1 of `demo`."""
    publish_artifact(models, "demo", schema=demo_schema(), request=REQUEST)


def logged(folder: Path) -> list[dict[str, Any]]:
    """Every event of the log, those of open files too."""
    log = event_files(folder)
    files = [*log.whole_files(), *log.open_files()]
    return [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]
