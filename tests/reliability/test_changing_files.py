"""Others at work on the models folder under load: unmounted, full of traps, copied over. No request fails for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from model.artifact.artifact import MANIFEST
from model.artifact.signature import SIGNATURE
from tests.artifacts import publish_artifact
from tests.reliability.load import Load, Truth, metric
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

# Of all workers, over what they had: a version that is verified beside the one that serves, and what allocators keep.
# A sparse file of gigabytes that was read, or YAML that expanded, would go far beyond it.
MOST_GROWTH_BYTES = 300 * 2**20
TRAPPED = {"4": "quarantined", "3": "quarantined", "2": "quarantined", "1": "ready"}
SPARSE_BYTES = 3 * 2**30
BOMB = "\n".join(["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10))])


class Served:
    """A service of two workers, its models folder, and clients that ask all the time."""

    def __init__(self, models: Path, service: RunningService, load: Load, truth: Truth) -> None:
        self.models, self.service, self.load, self.truth = models, service, load, truth
        self.family = models / "tiny"
        self.workers = service.workers()
        self._resident = self._resident_bytes()

    def wait_for_polls(self) -> None:
        """Wait until every worker has polled to the end at least once from now on."""
        polled = "ranking_models_polled_timestamp_seconds"
        before = metric(self.service.client, polled)
        # The metric is of the worker that is furthest behind: twice, so that the second poll began after this moment.
        for _ in range(2):
            self.service.wait_for(lambda before=before: metric(self.service.client, polled) > before)  # type: ignore[misc]
            before = metric(self.service.client, polled)

    def check(self) -> None:
        """Every answer so far is whole and of version 1, the workers are those of the start, and their memory is
        bounded."""
        self.load.wait_for_more(20)
        assert {answer.status for answer in self.load.answers} == {200}
        assert {self.truth.check(answer) for answer in self.load.answers} == {"1"}
        assert self.service.workers() == self.workers
        assert self._resident_bytes() - self._resident < MOST_GROWTH_BYTES

    def states(self) -> dict[str, str]:
        versions = self.service.client.get("/v1/models/tiny").json()["versions"]
        return {version["version"]: version["state"] for version in versions}

    def _resident_bytes(self) -> int:
        return sum(psutil.Process(worker).memory_info().rss for worker in self.workers)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    truth = Truth(publish_artifact(models))
    (models / "tiny" / "labels.yaml").write_text("stable: 1")
    with RunningService(models, "--workers", "2", "--threads", "1", "--queue-seconds", "10") as service:
        service.wait_ready().wait_workers(2)
        with Load(service.client.base_url, clients=3) as load:
            load.wait_for_more(50)
            yield Served(models, service, load, truth)


def test_an_unmounted_folder_of_models(served: Served) -> None:
    away = served.models.with_name("away")
    for _ in range(SIZES.file_rounds):
        served.models.rename(away)
        served.wait_for_polls()
        assert metric(served.service.client, "ranking_file_error", file="models") == 1
        served.check()
        away.rename(served.models)
        served.service.wait_for(lambda: metric(served.service.client, "ranking_file_error") == 0)
    served.check()


def test_pipes_bombs_and_files_without_end(served: Served) -> None:
    for _ in range(SIZES.file_rounds):
        (served.family / "value_models.yaml").write_text(BOMB)
        (served.family / "labels.yaml").unlink()
        os.mkfifo(served.family / "labels.yaml")
        for version in ("2", "3", "4"):
            (served.family / version).mkdir()
        os.mkfifo(served.family / "2" / MANIFEST)
        for name in (MANIFEST, SIGNATURE):
            with (served.family / "3" / name).open("wb") as file:
                file.truncate(SPARSE_BYTES)
        (served.family / "4" / MANIFEST).symlink_to("/dev/zero")
        # One at a poll, and worker by worker.
        served.service.wait_for(lambda: served.states() == TRAPPED)
        served.wait_for_polls()
        served.check()
        for name in ("value_models.yaml", "labels.yaml"):
            (served.family / name).unlink()
        for version in ("2", "3", "4"):
            shutil.rmtree(served.family / version)
        (served.family / "labels.yaml").write_text("stable: 1")
        (served.family / "value_models.yaml").write_text("{}")
        served.service.wait_for(lambda: metric(served.service.client, "ranking_file_error") == 0)
    served.check()


def test_a_second_copy_over_a_version_that_is_not_served(served: Served, tmp_path: Path) -> None:
    """`cp -r` cuts a file and writes it again, while workers hash, map and verify it."""
    source = publish_artifact(tmp_path, seed=1).rename(tmp_path / "source")
    other = publish_artifact(tmp_path, seed=2)
    place = served.family / "2"
    shutil.copytree(source, place)
    for number in range(20 * SIZES.file_rounds):
        for file in sorted((source if number % 2 else other).iterdir()):
            shutil.copyfile(file, place / file.name)
        served.load.wait_for_more(2)
    served.check()
    # Both copies are of versions 1, as their manifests say.
    served.service.wait_for(lambda: served.states() == {"2": "quarantined", "1": "ready"})
    shutil.rmtree(place)
    publish_artifact(served.models, seed=3)
    served.service.wait_for(lambda: served.states() == {"2": "waiting", "1": "ready"})
    served.check()
