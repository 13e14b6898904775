"""Training in a cluster: its jobs say to torchrun and to `python -m training` what these two take."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch.distributed.run import get_args_parser

from tests.deploy.ended_jobs import end_job, end_job_as_it_begins
from tests.deploy.manifests import KUBERNETES, literals, one
from training.__main__ import _parser as training_parser
from training.config import TrainingConfig
from training.daily.cycle_file import Cycle

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


def test_sigterm_reaches_the_job_and_nothing_is_begun_after_it(tmp_path: Path) -> None:
    scripts = KUBERNETES / "training"
    given = {**SETTINGS, "MODELS": str(tmp_path / "models"), "SCRIPTS": str(scripts)}
    (container,) = _jobs()["publish"]["template"]["spec"]["template"]["spec"]["containers"]
    command = [*container["command"], *container["args"]]
    assert end_job(command, tmp_path, given) == "evaluate\nended\n"
    assert {"name": "scripts", "mountPath": "/scripts", "readOnly": True} in container["volumeMounts"]


def test_a_pod_that_the_cluster_takes_away_costs_no_try_and_has_time_to_save() -> None:
    jobs = {name: job["template"]["spec"] for name, job in _jobs().items()}
    jobs |= {job: one("CronJob", name=f"feedrank-{job}")["spec"]["jobTemplate"]["spec"] for job in ("daily", "judge")}
    for name, job in jobs.items():
        (rule,) = job["podFailurePolicy"]["rules"]
        assert rule["action"] == "Ignore", name
        assert [condition["type"] for condition in rule["onPodConditions"]] == ["DisruptionTarget"]
        assert job["template"]["spec"]["restartPolicy"] == "Never", "what a pod failure policy needs"
    assert {jobs[name]["template"]["spec"]["terminationGracePeriodSeconds"] for name in ("workers", "daily")} == {120}
    (container,) = jobs["workers"]["template"]["spec"]["containers"]
    options = get_args_parser().parse_args(container["args"])
    assert 100 <= options.shutdown_timeout < 120


def test_nights_are_the_cycle_of_the_config_map_and_never_two_at_once() -> None:
    spec = one("CronJob", name="feedrank-daily")["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = training_parser().parse_args(container["command"][3:])
    assert container["command"][:4] == ["python", "-m", "training", "daily"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    (generator,) = [
        entry
        for entry in yaml.safe_load((KUBERNETES / "training" / "kustomization.yaml").read_text())["configMapGenerator"]
        if entry["name"] == "feedrank-daily"
    ]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts[str(options.file.parent)]["name"]]["configMap"]["name"] == generator["name"]
    assert generator["files"] == [options.file.name]
    assert spec["concurrencyPolicy"] == "Forbid"
    # What the cycle's files name is of the image or of a volume.
    cycle = Cycle.load(KUBERNETES / "training" / options.file.name)
    assert cycle.join is not None
    read = (cycle.training.data.path, cycle.training.output, cycle.join.impressions, cycle.join.events)
    assert all(any(Path("/app", place).is_relative_to(mount) for mount in mounts) for place in read)
    assert str(cycle.file.models) in mounts
    # The logs are where services write them, in a volume that outlives pods.
    served = one("Deployment")["spec"]["template"]["spec"]
    settings = literals("base", "feedrank-settings")
    written = {mount["mountPath"]: mount for mount in served["containers"][0]["volumeMounts"]}
    for name, place in (("IMPRESSION", cycle.join.impressions), ("EVENT", cycle.join.events)):
        own, theirs = mounts[str(Path("/app", place))], written[settings[f"FEEDRANK_{name}_LOG"]]
        assert own["subPath"] == theirs["subPath"]
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for pods, mount in ((served, theirs), (pod, own))
            for volume in pods["volumes"]
            if volume["name"] == mount["name"]
        }
        assert claims == {"feedrank-logs"}


def test_the_hourly_judge_has_the_files_and_volumes_of_the_nights() -> None:
    pods = [
        one("CronJob", name=f"feedrank-{job}")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        for job in ("daily", "judge")
    ]
    nightly, hourly = ({m["mountPath"]: m for m in pod["containers"][0]["volumeMounts"]} for pod in pods)
    assert all(hourly[place] == nightly[place] for place in hourly if place != "/scripts")
    (script,) = pods[1]["containers"][0]["args"]
    join, judge = (shlex.split(line)[1:] for line in script.splitlines()[1:])
    cycle_file = training_parser().parse_args(judge).file
    assert cycle_file == training_parser().parse_args(pods[0]["containers"][0]["command"][3:]).file
    cycle = Cycle.load(KUBERNETES / "training" / cycle_file.name)
    assert training_parser().parse_args(join).file == cycle.file.join


def test_sigterm_reaches_the_hourly_judge(tmp_path: Path) -> None:
    template = one("CronJob", name="feedrank-judge")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    command = [*container["command"], *container["args"]]
    assert end_job(command, tmp_path, {"SCRIPTS": str(KUBERNETES / "training")}) == "join\nended\n"


def test_a_sigterm_that_comes_as_a_job_begins_reaches_it(tmp_path: Path) -> None:
    template = one("CronJob", name="feedrank-judge")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    command = [*container["command"], *container["args"]]
    assert end_job_as_it_begins(command, tmp_path, {"SCRIPTS": str(KUBERNETES / "training")}) == 143
