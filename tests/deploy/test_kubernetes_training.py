"""Training in a cluster: its jobs say to torchrun and to `python -m training` what these two take."""

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from tests.deploy.ended_jobs import end_job
from tests.deploy.manifests import KUBERNETES, literals, one
from training.__main__ import _parser as training_parser
from training.config import TrainingConfig

ROOT = KUBERNETES.parents[1]
SETTINGS = literals("training", "feedrank-training")


def _jobs() -> dict[str, Any]:
    return {job["name"]: job for job in one("JobSet")["spec"]["replicatedJobs"]}


def _check_training_command(arguments: Sequence[str]) -> Any:
    options = training_parser().parse_args(list(arguments))
    for given in getattr(options, "set", None) or []:
        assert given.partition("=")[0].partition(".")[0] in TrainingConfig.model_fields, given
    if hasattr(options, "config"):
        assert (ROOT / options.config).is_file()
    return options


def test_torchrun_and_training_take_their_arguments() -> None:
    jobset, job = one("JobSet"), _jobs()["workers"]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    values = SETTINGS | {entry["name"]: entry.get("value", "10.0.0.1") for entry in container["env"]}
    arguments = [re.sub(r"\$\((\w+)\)", lambda found: values[found.group(1)], text) for text in container["args"]]
    assert container["command"] == ["torchrun"]
    options = get_args_parser().parse_args(arguments)
    assert (options.module, options.training_script) == (True, "training")
    _check_training_command(options.training_script_args)
    # As many nodes at most as the job has pods, and it goes on with one.
    assert options.nnodes == f"1:{job['parallelism']}"
    assert job["completions"] == job["parallelism"]
    assert job["completionMode"] == "Indexed"
    # Pod 0 of job 0, by the name that JobSet gives it within its headless service.
    subdomain = jobset["spec"]["network"]["subdomain"]
    host, _, port = options.rdzv_endpoint.partition(":")
    assert host == f"{jobset['metadata']['name']}-workers-0-0.{subdomain}"
    assert [entry["containerPort"] for entry in container["ports"]] == [int(port)]
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    # A pod that dies is made again, and the processes of the others begin again with it.
    assert min(job["backoffLimit"], options.max_restarts) >= 10
    assert options.local_addr == "10.0.0.1"


def test_publishing_comes_after_training_and_takes_its_run() -> None:
    publish = _jobs()["publish"]
    assert publish["dependsOn"] == [{"name": "workers", "status": "Complete"}]
    (container,) = publish["template"]["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    _, *lines = script.splitlines()
    commands = [shlex.split(line.replace('"$MODEL"', SETTINGS["MODEL"])) for line in lines]
    assert [command[:2] for command in commands] == [["job", "evaluate"], ["job", "export"]]
    for command in commands:
        options = _check_training_command(command[1:])
        assert (
            f"output={options.folder}"
            in _jobs()["workers"]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
        )
    assert options.models == Path("/models")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a program called python that writes down how it was called and makes what training would."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$CALLS"\nmkdir -p "runs/daily/$(date -u +%F)"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


def _daily(work: Path, programs: Path) -> list[list[str]]:
    calls = work / "calls"
    calls.write_text("")
    given = {**SETTINGS, "MODELS": str(work / "models"), "CALLS": str(calls)}
    environment = {**os.environ, **given, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(KUBERNETES / "training" / "daily.sh")], cwd=work, env=environment, check=True)
    return [line.split() for line in calls.read_text().splitlines()]


def test_a_day_begins_from_the_newest_version_and_publishes_once(tmp_path: Path, programs: Path) -> None:
    first, *others = commands = _daily(tmp_path, programs)
    assert [command[2] for command in commands] == ["train", "evaluate", "export"]
    for command in commands:
        options = _check_training_command(command[2:])
    assert options.models == tmp_path / "models"
    assert first[4] == "--set"
    assert re.fullmatch(r"output=runs/daily/\d{4}-\d{2}-\d{2}", first[5])
    assert len(first) == 6, "there is nothing to begin from yet"
    assert {command[3] for command in others} == {first[5].removeprefix("output=")}
    # Published today: nothing is left to do, whatever ended the job before.
    assert _daily(tmp_path, programs) == []
    for folder in (tmp_path / "runs/daily").iterdir():
        (folder / "published").unlink()
    for name in ("2", "10", "9", "derived", ".publishing-x", "labels.yaml"):
        (tmp_path / "models" / SETTINGS["MODEL"] / name).mkdir(parents=True)
    train, *_ = _daily(tmp_path, programs)
    _check_training_command(train[2:])
    parent = f"init_from.path={tmp_path}/models/{SETTINGS['MODEL']}/10"
    assert train[6:] == ["--set", parent, "--set", f"init_from.rate_factor={SETTINGS['RATE_FACTOR']}"]


def test_sigterm_reaches_the_job_and_nothing_is_begun_after_it(tmp_path: Path) -> None:
    scripts = KUBERNETES / "training"
    given = {**SETTINGS, "MODELS": str(tmp_path / "models"), "SCRIPTS": str(scripts)}
    assert end_job(["sh", str(scripts / "daily.sh")], tmp_path, given) == "train\nended\n"
    (tmp_path / "calls").unlink()
    (container,) = _jobs()["publish"]["template"]["spec"]["template"]["spec"]["containers"]
    command = [*container["command"], *container["args"]]
    assert end_job(command, tmp_path, given) == "evaluate\nended\n"
    assert {"name": "scripts", "mountPath": "/scripts", "readOnly": True} in container["volumeMounts"]


def test_a_pod_that_the_cluster_takes_away_costs_no_try_and_has_time_to_save() -> None:
    jobs = {name: job["template"]["spec"] for name, job in _jobs().items()}
    jobs["daily"] = one("CronJob")["spec"]["jobTemplate"]["spec"]
    for name, job in jobs.items():
        (rule,) = job["podFailurePolicy"]["rules"]
        assert rule["action"] == "Ignore", name
        assert [condition["type"] for condition in rule["onPodConditions"]] == ["DisruptionTarget"]
        assert job["template"]["spec"]["restartPolicy"] == "Never", "what a pod failure policy needs"
    assert {jobs[name]["template"]["spec"]["terminationGracePeriodSeconds"] for name in ("workers", "daily")} == {120}
    (container,) = jobs["workers"]["template"]["spec"]["containers"]
    options = get_args_parser().parse_args(container["args"])
    assert 100 <= options.shutdown_timeout < 120


def test_daily_job_runs_the_script_and_never_twice() -> None:
    spec = one("CronJob")["spec"]
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "scripts"]
    assert container["command"] == ["sh", f"{mount['mountPath']}/daily.sh"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/app/data", "/app/runs", "/models"}
