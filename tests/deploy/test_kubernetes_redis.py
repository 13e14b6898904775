"""deploy/kubernetes/redis: a Redis that the service alone may reach, with a password and a disk."""

from pathlib import Path

import pytest
import yaml
from redis import AuthenticationError, Redis
from redis.exceptions import RedisError

from tests.deploy.manifests import one
from tests.deploy.programs import ROOT, free_port, program, running, wait_for

SET = one("StatefulSet", "redis")
POD = SET["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def test_it_is_the_one_that_the_service_may_reach() -> None:
    labels = POD["metadata"]["labels"]
    service = one("Service", "redis")
    assert SET["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["metadata"]["name"] == SET["spec"]["serviceName"]
    service_policy, own_policy = (one("NetworkPolicy", "base", name)["spec"] for name in ("feedrank", "feedrank-state"))
    state = service_policy["egress"][0]
    assert state["to"][0]["podSelector"] == own_policy["podSelector"]
    assert own_policy["podSelector"]["matchLabels"].items() <= labels.items()
    ports = {entry["port"] for rule in (state, own_policy["ingress"][0]) for entry in rule["ports"]}
    assert ports == {port["port"] for port in service["spec"]["ports"]} == {CONTAINER["ports"][0]["containerPort"]}


def test_it_is_the_release_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert compose["services"]["redis"]["image"] == CONTAINER["image"]


def test_its_command_makes_a_server_with_a_password_that_keeps_users(tmp_path: Path) -> None:
    """As it stands, but for folders of this host in the place of the pod's."""
    folders = {mount["mountPath"]: tmp_path / mount["name"] for mount in CONTAINER["volumeMounts"]}
    for folder in folders.values():
        folder.mkdir()
    # The content of the secret, as docs/deployment.md has it made.
    assert 'password.conf="requirepass $PASSWORD"' in (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    (folders["/etc/redis"] / "password.conf").write_text("requirepass of-a-secret\n", encoding="utf-8")
    _, *options = CONTAINER["command"]
    own = [
        str(folders[str(Path(option).parent)] / "password.conf")
        if option.endswith("/password.conf")
        else str(folders.get(option, option))
        for option in options
    ]
    port = free_port()
    command = [program("redis-server", "redis-server"), *own, "--port", str(port), "--bind", "127.0.0.1"]

    def answers() -> bool:
        try:
            return bool(client.ping())
        except RedisError:
            return False

    with running(command, tmp_path / "log"), Redis(port=port, password="of-a-secret") as client:
        wait_for(answers, (tmp_path / "log").read_text)
        config = client.config_get("maxmemory", "maxmemory-policy", "appendonly")
        assert config == {"maxmemory": str(768 * 2**20), "maxmemory-policy": "noeviction", "appendonly": "yes"}
        client.set("user", "1")
        with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
    assert any(folders["/data"].rglob("*.aof"))
