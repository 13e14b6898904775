"""API keys and TLS: who gets in, who does not and why, rotation while it serves, and nothing secret in a log."""

import hashlib
import logging
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.testclient import TestClient

from service.http.keys import Keys
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import POLL_SECONDS, client_of, request_lines, sample
from tests.service.running import ROOT, RunningService

KEYS = {"feed": "feedrank_one", "scraper": "feedrank_two", "operator": "feedrank_three"}
SCOPES = {"feed": ["score"], "scraper": ["metrics"], "operator": ["admin"]}


def write_keys(path: Path, keys: dict[str, str] = KEYS) -> Path:
    entries = [
        {"name": name, "scopes": SCOPES[name], "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in keys.items()
    ]
    path.write_text(yaml.safe_dump({"keys": entries}), encoding="utf-8")
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    publish_artifact(tmp_path / "models")
    with client_of(tmp_path / "models", keys_file=write_keys(tmp_path / "keys.yaml")) as client:
        yield client


@pytest.mark.parametrize(("path", "may"), [
    ("/v1/rank", {"feed", "operator"}),
    ("/v1/models", {"feed", "operator"}),
    ("/v1/models/tiny", {"feed", "operator"}),
    ("/v1/admin/models/tiny/labels", {"operator"}),
    ("/v1/admin", {"operator"}),
    ("/v1/nothing-there", {"feed", "operator"}),
    ("/v2", {"feed", "operator"}),
    ("/v2/models/tiny/infer", {"feed", "operator"}),
    ("/metrics", {"scraper", "operator"}),
])  # fmt: skip
def test_each_path_opens_to_its_scope_alone(client: TestClient, path: str, may: set[str]) -> None:
    for name, key in KEYS.items():
        status = client.get(path, headers=bearer(key)).status_code
        assert (status not in (401, 403)) == (name in may)
        if name not in may:
            assert status == 403
    assert client.get(path).status_code == 401


PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs")


def test_probes_and_the_description_are_open(client: TestClient) -> None:
    assert [client.get(path).status_code for path in PROBES] == [200] * len(PROBES)


@pytest.mark.parametrize("given", ["Bearer  {}", "bearer    {}"])
def test_blanks_between_the_scheme_and_the_key_are_no_part_of_it(client: TestClient, given: str) -> None:
    headers = {"Authorization": given.format(KEYS["feed"])}
    assert client.post("/v1/rank", json=TINY_REQUEST, headers=headers).status_code == 200


@pytest.mark.parametrize("given", [
    None, "", "Bearer", "Bearer ", "feedrank_one", "Basic feedrank_one", "Bearer feedrank_on", "Bearer feedrank_one ",
    "Bearer   ", "Bearer\tfeedrank_one", "Bearer feedrank_onefeedrank_one", "Bearer " + "x" * 5000, "Bearer \xff\xfe",
])  # fmt: skip
def test_what_is_not_a_key_is_401_with_a_challenge(client: TestClient, given: str | None) -> None:
    before = sample_of(client)
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = client.post("/v1/rank", json=TINY_REQUEST, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 401
    assert sample_of(client) == before + 1


def sample_of(client: TestClient) -> float:
    """Requests refused for want of a key."""
    client.headers["Authorization"] = "Bearer " + KEYS["scraper"]
    try:
        return sample(client, "ranking_requests_rejected_total", reason="unauthenticated")
    finally:
        del client.headers["Authorization"]


def test_scheme_is_read_in_any_case(client: TestClient) -> None:
    headers = {"Authorization": "bEARER feedrank_one"}
    assert client.post("/v1/rank", json=TINY_REQUEST, headers=headers).status_code == 200


def test_the_name_of_the_key_is_logged_and_never_the_key(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/rank", json=TINY_REQUEST, headers=bearer("feedrank_one"))
        client.post("/v1/rank", json=TINY_REQUEST, headers=bearer("feedrank_guess"))
    assert [line.get("key") for line in request_lines(caplog)] == ["feed", None]
    shown = str([record.__dict__ for record in caplog.records])
    assert "feedrank_one" not in shown
    assert "feedrank_guess" not in shown
    assert hashlib.sha256(b"feedrank_one").hexdigest() not in shown


def test_without_keys_scoring_is_open_and_admin_is_off(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert client.get("/metrics").status_code == 200
        refused = client.put("/v1/admin/models/tiny/labels", json={})
        said = "the admin API is off: no keys are configured (--keys-file)"
        assert (refused.status_code, refused.json()["detail"]) == (403, said)


def test_keys_rotate_without_a_restart_and_a_bad_file_changes_nothing(client: TestClient, tmp_path: Path) -> None:
    def status(key: str) -> int:
        answered: int = client.post("/v1/rank", json=TINY_REQUEST, headers=bearer(key)).status_code
        return answered

    def wait_for(key: str, expected: int) -> None:
        give_up = time.monotonic() + 10
        while status(key) != expected:
            assert time.monotonic() < give_up
            time.sleep(POLL_SECONDS)

    file = tmp_path / "keys.yaml"
    write_keys(tmp_path / "next.yaml", {**KEYS, "feed": "feedrank_new"}).rename(file)
    wait_for("feedrank_new", 200)
    assert status("feedrank_one") == 401
    for text in ("keys: [", "keys: []", "keys: [{name: a, scopes: [root], sha256: x}]"):
        file.write_text(text)
        time.sleep(2 * POLL_SECONDS)  # longer than the service's interval of polls: nothing may change
        assert status("feedrank_new") == 200
    file.unlink()
    time.sleep(2 * POLL_SECONDS)
    assert status("feedrank_new") == 200


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected a mapping"),
    ("keys: []", "keys: "),
    ("keys: [{name: a, scopes: [score]}]", "keys.0.sha256: Field required"),
    ("keys: [{name: a, scopes: [], sha256: '" + "0" * 64 + "'}]", "keys.0.scopes"),
    ("keys: [{name: a, scopes: [root], sha256: '" + "0" * 64 + "'}]", "'play', 'metrics' or 'admin'"),
    ("keys: [{name: a, scopes: [score], sha256: secret}]", "keys.0.sha256"),
    ("keys: [{name: a b, scopes: [score], sha256: '" + "0" * 64 + "'}]", "keys.0.name"),
    ("keys: [{name: a, scope: [score], sha256: '" + "0" * 64 + "'}]", "did you mean 'scopes'"),
])  # fmt: skip
def test_faults_of_the_file_are_named_at_the_start(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        Keys(tmp_path / "keys.yaml")
    assert "keys.yaml" in str(raised.value)


def test_the_command_makes_a_key_that_its_entry_opens(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "key", "--name", "feed", "--scopes", "score,metrics"]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    key = made.stdout.strip()
    entry = "\n".join(line for line in made.stderr.splitlines() if not line.startswith("add "))
    assert key not in entry
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": yaml.safe_load(entry)}))
    keys = Keys(tmp_path / "keys.yaml")
    assert keys.check(f"Bearer {key}", "score") == "feed"
    assert keys.check(f"Bearer {key}", "metrics") == "feed"
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert again.stdout != made.stdout


def openssl(folder: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificate(folder: Path, name: str, *, days: int = 2) -> tuple[str, str]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
    openssl(folder, "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", str(days), *subject, *files)
    return str(folder / f"{name}.pem"), str(folder / f"{name}.key")


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    served, key = certificate(tmp_path, "service")
    mine, my_key = certificate(tmp_path, "client")
    flags = ("--tls-certificate", served, "--tls-key", key, "--tls-client-ca", mine)
    with RunningService(tmp_path / "models", *flags) as service:
        address = str(service.client.base_url)
        assert address.startswith("https://")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            service.client.get("/healthz")  # it does not know the service's certificate
        context = ssl.create_default_context(cafile=served)
        with (
            httpx.Client(base_url=address, verify=context, trust_env=False) as stranger,
            pytest.raises(httpx.TransportError, match=r"(?i)certificate|required|eof|reset|disconnected"),
        ):
            stranger.get("/healthz")
        context.load_cert_chain(mine, my_key)
        with httpx.Client(base_url=address, verify=context, trust_env=False) as known:
            service.wait_for(lambda: known.get("/readyz").status_code == 200)
            assert known.post("/v1/rank", json=TINY_REQUEST).status_code == 200


def test_wrong_files_end_the_program_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hunter2")
    served, key = certificate(tmp_path, "service")
    other = certificate(tmp_path, "other")[1]
    for flags, message in (
        (["--tls-certificate", served], "go together"),
        (["--tls-client-ca", served], "needs --tls-certificate"),
        (["--tls-certificate", served, "--tls-key", other], "not a certificate and its key"),
        (["--tls-certificate", str(tmp_path / "text"), "--tls-key", key], "not a certificate and its key"),
        (["--tls-certificate", served, "--tls-key", key, "--tls-client-ca", str(tmp_path / "text")], "--tls-client-ca"),
        (["--keys-file", str(tmp_path / "text")], "text: expected a mapping"),
        (["--keys-file", str(tmp_path / "absent")], "absent: cannot be read"),
    ):
        command = [sys.executable, "-m", "service", "--models", str(tmp_path), *flags]
        ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert message in ended.stderr.splitlines()[-1]
        assert "hunter2" not in ended.stderr
