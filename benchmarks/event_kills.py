"""`make bench-event-kills`: kill -9 of workers and of the parent while clients send events, and what the log has then.

    python -m benchmarks.event_kills [--lives 5] [--kills 4]

Two workers take events of three clients in batches. Each life of the service ends with a kill of the parent. Every
event that a client knows to be accepted has to be in the log once.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark
from tests.artifacts import publish_artifact
from tests.service.events.killed import kill_under_load


def main() -> None:
    """Kill, compare, write what was seen. Raises RuntimeError where an accepted event is lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=5)
    parser.add_argument("--kills", type=int, default=4, help="of a life, the last one the parent's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        models, log = Path(name) / "models", Path(name) / "events"
        publish_artifact(models)
        log.mkdir()
        seen = kill_under_load(models, log, lives=options.lives, kills=options.kills, seed=options.seed)
    times = Counter(seen.found)
    lost = [identity for identity in seen.accepted if not times[identity]]
    doubled = [identity for identity, count in times.items() if count > 1]
    if lost or doubled:
        raise RuntimeError(f"{len(lost)} accepted events are lost, {len(doubled)} are there twice")
    kills, parents = options.lives * options.kills, options.lives
    body = [
        f"{kills} kills under load, {kills - parents} of workers and {parents} of the parent with its workers. Clients "
        f"know of {len(seen.accepted):,} events that they were accepted. The log has each of them once. It has "
        f"{len(times) - len(seen.accepted):,} more, whose answers the kills cut off.",
    ]
    data = {"kills": kills, "accepted": len(seen.accepted), "found": len(times)}
    path = report.write("event_kills", "kill -9 under events", body, data, "make bench-event-kills")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_benchmark(main)
