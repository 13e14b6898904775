"""docker-compose.yml: valid to docker-compose itself, pinned, closed, and in step with the code it starts."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from redis import Redis

from deploy.load_test import _parser as load_parser
from model.user import read_user_hash_key
from service.serve import END_SECONDS
from service.settings import read_settings
from service.state.store import REDIS, check_url
from tests.deploy.ended_jobs import end_job
from tests.service.state.redis_servers import redis_server
from training.__main__ import _parser as training_parser
from training.daily.cycle_file import Cycle

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_docker_compose_takes_the_file() -> None:
    """It checks the file against the published schema, and resolves variables and profiles, without an engine."""
    command = ["docker-compose", "--file", str(COMPOSE), "--profile", "*", "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    """Images of others by digest, our own by this version. Redis is not part of what starts by default, and its digest
    is the operator's to pin: the comment above it says how."""
    service = SERVICES[name]
    if "build" in service:
        assert VERSION is not None
        assert service["image"] == f"feedrank-{service['build']['target']}:{VERSION.group(1)}"
        assert service["build"]["args"]["VERSION"] == VERSION.group(1)
    else:
        digest = "" if name == "redis" else r"@sha256:[0-9a-f]{64}"
        assert re.fullmatch(rf"\S+:v?\d+\.\d+\.\d+{digest}", service["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_services_can_do_no_more_than_they_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if "profiles" not in service and service["restart"] != "no":
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["retries"] > 0


def test_service_is_told_what_it_understands_and_has_time_to_finish(tmp_path: Path) -> None:
    service = SERVICES["service"]
    # Folders of volumes, and a file that another service makes.
    volumes = {f"FEEDRANK_{name}" for name in ("IMPRESSION_LOG", "EVENT_LOG", "USER_HASH_KEY", "STATE")}
    given = {name: value for name, value in service["environment"].items() if name not in volumes}
    settings = read_settings([], {"FEEDRANK_MODELS": str(tmp_path), **given})
    state = service["environment"]["FEEDRANK_STATE"]
    folder = state.removeprefix("${FEEDRANK_STATE:-sqlite:///").removesuffix("/state.db}")
    assert f"state:{folder}" in service["volumes"]
    assert settings.workers == 2
    known = {f"FEEDRANK_{name.upper()}" for name in type(settings).model_fields}
    assert set(service["environment"]) <= known
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > settings.drain_seconds + settings.shutdown_seconds + END_SECONDS
    assert service["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]


def test_redis_is_what_the_service_can_be_told(tmp_path: Path) -> None:
    """Its command is one that a Redis takes, and the URL of the file's head is that of the service of this name."""
    (url,) = re.findall(r"FEEDRANK_STATE=(\S+) docker compose --profile redis", COMPOSE.read_text())
    assert check_url(url) == REDIS
    assert urlsplit(url).hostname in SERVICES
    _, *flags = SERVICES["redis"]["command"]
    with redis_server(tmp_path, *flags) as server, Redis.from_url(server.url) as client:
        config = client.config_get("maxmemory", "maxmemory-policy", "appendonly")
    assert config == {"maxmemory": str(512 * 2**20), "maxmemory-policy": "noeviction", "appendonly": "yes"}


def test_health_check_is_that_of_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert found is not None
    assert SERVICES["service"]["healthcheck"]["test"] == ["CMD", *yaml.safe_load(found.group(1))]


def test_training_commands_are_ones_that_training_takes() -> None:
    (script,) = SERVICES["train"]["command"]
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("job")]
    assert len(commands) == 4
    for _, *arguments in commands:
        options = training_parser().parse_args(arguments)
        if hasattr(options, "config"):
            assert (ROOT / options.config).is_file()


def test_sigterm_reaches_training_and_it_has_time_to_save(tmp_path: Path) -> None:
    service = SERVICES["train"]
    (script,) = service["command"]
    scripts = next(volume.split(":")[0] for volume in service["volumes"] if volume.split(":")[1] == "/scripts")
    command = [*service["entrypoint"], script.replace("$$", "$")]
    assert end_job(command, tmp_path, {"SCRIPTS": str(ROOT / scripts)}) == "simulate\nended\n"
    assert float(service["stop_grace_period"].removesuffix("s")) >= 120


def test_what_is_mounted_from_the_repository_is_there() -> None:
    mounted = [volume.split(":")[:2] for service in SERVICES.values() for volume in service.get("volumes", [])]
    folders = {target: ROOT / source for source, target in mounted if source.startswith("./")}
    assert all(folder.is_dir() for folder in folders.values())
    prometheus = folders["/etc/prometheus"]
    assert f"--config.file=/etc/prometheus/{prometheus.name}.yml" in SERVICES["prometheus"]["command"]
    assert (prometheus / "prometheus.yml").is_file()
    # Where Grafana is told to look, its dashboards are mounted, and its data source is the Prometheus of this file.
    provisioning = folders["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/feedrank.yml").read_text())["providers"]
    assert list(folders[provider["options"]["path"]].glob("*.json"))
    (source,) = yaml.safe_load((provisioning / "datasources/feedrank.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_a_night_reads_the_logs_that_the_service_writes() -> None:
    service, daily = SERVICES["service"], SERVICES["daily"]
    mounts = [dict(reversed(volume.split(":")[:2]) for volume in one["volumes"]) for one in (service, daily)]
    options = training_parser().parse_args([*daily["entrypoint"][3:], *daily["command"]])
    cycle = Cycle.load(ROOT / mounts[1][str(options.file.parent)] / options.file.name)
    assert cycle.join is not None
    for name, place in (("IMPRESSION", cycle.join.impressions), ("EVENT", cycle.join.events)):
        assert mounts[0][service["environment"][f"FEEDRANK_{name}_LOG"]] == mounts[1][str(Path("/app", place))]
    assert mounts[1][str(cycle.file.models)] == "models"
    # The hourly judge reads and writes the same, but for runs.
    judge = SERVICES["judge"]
    assert {*judge["volumes"]} == {volume for volume in daily["volumes"] if not volume.startswith("runs:")}
    (script,) = judge["command"]
    joining, judging = (training_parser().parse_args(shlex.split(line)[1:]) for line in script.splitlines()[1:])
    assert (joining.file, judging.file) == (cycle.file.join, options.file)


def test_the_key_of_user_hashes_is_made_once_and_kept(tmp_path: Path) -> None:
    service = SERVICES["key"]
    (script,) = service["command"]
    command = [*service["entrypoint"], script.replace("$$", "$").replace("/secrets", str(tmp_path))]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    keys = []
    for _ in range(2):
        subprocess.run(command, check=True, env=environment)
        keys.append(read_user_hash_key(tmp_path / "user_hash.key"))
    assert keys[0] == keys[1]
    assert (tmp_path / "user_hash.key").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["user_hash.key"]
    target = SERVICES["service"]["environment"]["FEEDRANK_USER_HASH_KEY"]
    assert f"mv /secrets/.new {target}" in script
    assert SERVICES["service"]["depends_on"] == {"key": {"condition": "service_completed_successfully"}}


def test_load_goes_to_the_service_and_is_what_the_load_test_takes() -> None:
    load = SERVICES["load"]
    assert load["entrypoint"] == ["python", "-m", "deploy.load_test"]
    options = load_parser().parse_args(load["command"])
    assert options.url == "http://service:8080"
    assert options.rate * options.seconds > 0
