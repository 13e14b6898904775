"""The CronJob's own command, run for real on the simulated feed: logs in, a version and a journal out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from model.artifact.artifact import write_manifest
from model.rollout.journal import Journal
from model.scorer.scorer import Scorer
from tests.artifacts import writable
from tests.deploy.manifests import KUBERNETES, one
from tests.deploy.programs import ROOT
from tests.deploy.simulated_logs import write_logs
from training.datasets.simulate import simulate

DAYS = 2  # one trains, one validates
NIGHT = "2024-01-03T02:30:00Z"
HOUR = "2024-01-03T04:50:00Z"
LABELS = ("click", "long_view", "like", "hide", "play_time_ms")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder as the job's volumes are mounted into one, and the rows that its logs are of."""
    work = tmp_path_factory.mktemp("app")
    simulate(42_000, 1, work / "simulated", users=400, items=200)
    (work / "configs").symlink_to(ROOT / "configs")
    return work, write_logs(work / "simulated", work / "logs", DAYS)


def container_of(job: str) -> dict[str, Any]:
    """The container of a CronJob."""
    spec = one("CronJob", name=f"feedrank-{job}")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return dict(container)


def test_the_command_of_the_cron_job_makes_a_version_of_two_logs(rows: tuple[Path, list[dict[str, Any]]]) -> None:
    work, logged = rows
    container = container_of("daily")
    python, *arguments, file = container["command"]
    assert python == "python"
    cycle = yaml.safe_load((KUBERNETES / "training" / Path(file).name).read_text())
    # The simulated days are smaller than the gate asks of a real feed: with 400 users one day's are another's no more
    # than by chance. The models folder is not the root's.
    cycle |= {"models": "models", "data_gate": {"min_rows": 1000}}
    (work / "cycle.yaml").write_text(yaml.safe_dump(cycle))
    command = [sys.executable, *arguments, "cycle.yaml", "--now", NIGHT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run_job() -> str:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run_job() == "version 1 was published for 2024-01-02\n"
    joined = [row for path in sorted((work / "data/joined").glob("date=*/*.parquet"))
              for row in pq.ParquetFile(path).read().to_pylist()]  # fmt: skip
    # Of each shown place the labels that the simulator drew.
    assert {row["_candidate_id"]: tuple(row[label] for label in LABELS) for row in joined} == {
        f"r{number - row['position']}-{row['position']}": tuple(row[label] for label in LABELS)
        for number, row in enumerate(logged)
    }
    folder = work / "models" / "demo"
    scorer = Scorer.load(folder / "1", "torchscript", model="demo")
    assert scorer.manifest.training["data_window"]["train"]["max"] == 20240101
    assert (folder / "labels.yaml").read_text() == "{stable: 1}\n"
    # The service reads there which events need an identity.
    assert (folder / "join.yaml").read_bytes() == (ROOT / "configs/join.yaml").read_bytes()
    steps = [entry.step for entry in Journal(folder).read().entries]
    assert steps == ["data_gate", "data_gate", "train", "quality_gate", "export", "labels", "daily"]
    assert run_job() == "the data window has not moved: 2024-01-02 was trained on before\n"
    # The hourly judge finds a canary that somebody labelled, and whose users it does not know yet.
    writable(Path(shutil.copytree(folder / "1", folder / "2")))
    manifest = json.loads((folder / "2" / "manifest.json").read_text())
    del manifest["checksum"]
    write_manifest(folder / "2", {**manifest, "version": 2})
    (folder / "labels.yaml").write_text("{stable: 1, canary: {version: 2, share: 0.1}}\n")
    judge = container_of("judge")
    (script,) = judge["args"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    told = {"SCRIPTS": str(KUBERNETES / "training"), "PATH": path}
    done = subprocess.run(
        [*judge["command"], script.replace("/cycle/daily_", "").replace(".yaml", f".yaml --now {HOUR}")],
        cwd=work, env={**environment, **told}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 hours joined, 20240103T00 to 20240103T03" in done.stderr
    assert "version 2 is the canary and waits" in done.stdout
