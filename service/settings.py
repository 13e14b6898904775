"""Settings of the service: by flag, by environment variable FEEDRANK_<NAME>, or by default, in that order.

In: argv and the environment. Out: a validated, frozen `Settings`. A wrong value ends the program with one line that
names the flag and the rule.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.artifact.signature import TrustedKeys
from model.user import read_user_hash_key
from service.base.replaced_clock import ReplacedClock, is_loopback
from service.http.certificates import Certificates
from service.http.keys import KeyFile
from service.state.store import check_url, read_url_file

PREFIX = "FEEDRANK_"


class Settings(BaseModel):
    """Settings of one service. Each is a flag (`--max-body-bytes`) and a variable (`FEEDRANK_MAX_BODY_BYTES`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Path = Field(description="folder of published models: <models>/<name>/<version>/")
    host: str = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 is every one in IPv4, :: every one in IPv6 and IPv4"
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port to listen on; 0 lets the system choose")
    workers: int = Field(1, ge=1, le=256, description="worker processes; they share the embedding tables, no more")
    threads: int = Field(0, ge=0, le=256, description="scoring threads per worker; 0 is one per core given")
    torch_threads: int = Field(1, ge=1, le=256, description="threads that torch uses inside one scoring thread")
    bind_cores: bool = Field(False, description="true binds each of several workers to cores of its own")
    engine: Literal["auto", "torchscript", "compiled"] = Field(
        "auto", description="auto scores by a compiled package where one verifies; compiled refuses versions without"
    )
    keys_file: Path | None = Field(
        None, description="YAML file of API keys; without one scoring and metrics are open and the admin API is off"
    )
    verify_key: Path | None = Field(
        None, description="PEM file of Ed25519 public keys; serve only what one of them has signed"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM certificate chain: serve HTTPS; read again when it, the key or the client CA changes"
    )
    tls_key: Path | None = Field(None, description="PEM private key of --tls-certificate, without a passphrase")
    tls_client_ca: Path | None = Field(None, description="PEM certificates; only clients signed by one may connect")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log line shown")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request body, in bytes")
    max_candidates: int = Field(2_000, ge=1, le=1_000_000, description="most candidates in one request")
    unknown_candidates: Literal["refuse", "defaults"] = Field(
        "refuse",
        description="refuse candidates that neither catalogue nor request describes, or score them by defaults",
    )
    impression_log: Path | None = Field(
        None, description="folder for a log of requests with their scores, feature values and ids included or hashed"
    )
    impression_log_sample: float = Field(1.0, gt=0, le=1, description="share of requests in the impression log")
    impression_log_max_bytes: int = Field(
        2**30, ge=2**20, description="most that the impression log takes on disk, in bytes; the oldest files go"
    )
    impression_log_features: Literal["values", "hash"] = Field(
        "values",
        description="hash writes XXH3-64 of the user, of each candidate's id and of its features in place of them",
    )
    user_hash_key: Path | None = Field(
        None,
        description="file with the secret key of user hashes; the impression log needs it for models that know a user",
    )
    event_log: Path | None = Field(None, description="folder for a log of what users did, which POST /v1/events takes")
    event_log_max_bytes: int = Field(
        16 * 2**30, ge=2**20, description="most that the event log takes on disk, in bytes; beyond, events are refused"
    )
    ship: str | None = Field(
        None,
        description="fsspec URL (such as s3://bucket/logs) that closed files of both logs are copied to, before their "
        "folders' bounds remove them",
    )
    event_log_sync_seconds: float = Field(
        1.0, ge=0, le=60, description="seconds after which an accepted event is safe from a power failure; 0 is before"
    )
    clock: str | None = Field(
        None,
        description="file or loopback URL that gives one RFC 3339 time, for simulations on one host: the time of "
        "impressions, events and watermarks in place of the system's",
    )
    state: str | None = Field(
        None,
        description="URL of the store of users' state, sqlite:///FILE or redis://HOST:PORT/0; one with a password goes "
        "into the variable or --state-file",
    )
    state_file: Path | None = Field(None, description="file whose first line is the URL, in place of --state")
    state_timeout_ms: float = Field(
        10.0, gt=0, le=10_000, description="milliseconds that a look-up of a user may take; beyond, defaults are taken"
    )
    play: Literal["on", "off"] = Field(
        "on", description="on has a page at /play, to try rankings; with keys its data need the scope play"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@]+(/[^\s]*)?$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP, such as http://collector:4318) for traces of "
        "scoring requests; the OTEL_* variables say the rest, OTEL_TRACES_SAMPLER how many",
    )
    shadow_sample: float = Field(
        1.0, ge=0, le=1, description="share of requests that a shadow version scores too, after their answers"
    )
    queue_seconds: float = Field(
        0.08, gt=0, le=60, description="seconds that a request may have to wait for others; beyond, it is answered 429"
    )
    poll_seconds: float = Field(2.0, gt=0, le=3600, description="seconds between polls of the models folder")
    startup_seconds: float = Field(
        60.0, ge=0, description="seconds that the first load may take before the port opens all the same"
    )
    drain_seconds: float = Field(
        5.0, ge=0, le=600, description="seconds after SIGTERM with readiness off and requests still answered"
    )
    shutdown_seconds: int = Field(20, ge=0, description="seconds that running requests get to finish after those")
    header_seconds: float = Field(10.0, gt=0, le=3600, description="seconds that the headers of a request may take")
    header_bytes: int = Field(32 * 1024, ge=1024, description="largest headers of a request, in bytes")
    body_seconds: float = Field(10.0, gt=0, le=3600, description="seconds that the body of a request may take")
    max_connections: int = Field(
        4096, ge=1, description="most connections of a worker; less where the system lets it open fewer files"
    )
    max_unfinished_bytes: int = Field(
        128 * 1024 * 1024,
        ge=2048,
        description="most memory of all unfinished requests in a worker, in bytes",
    )
    keep_alive_seconds: int = Field(75, ge=1, description="seconds after which an idle connection is closed")

    @property
    def state_url(self) -> str | None:
        """URL of the state store, None where there is none. Raises ValueError where its file cannot be read."""
        return self.state if self.state_file is None else read_url_file(self.state_file)

    @property
    def scoring_threads(self) -> int:
        """Scoring threads per worker: as given, or this process's cores shared out among the workers."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.workers)

    def certificates(self) -> Certificates | None:
        """The certificate to serve HTTPS with. None for HTTP. Raises ValueError where the files are not valid."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return Certificates(self.tls_certificate, self.tls_key, self.tls_client_ca)


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags and the environment. Ends the program with status 2 and one line if they are not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve published rankers over HTTP.",
        epilog=f"Every flag can be an environment variable instead: --max-candidates is {PREFIX}MAX_CANDIDATES. "
        "`python -m service replay --help` says how logged requests are scored again.",
    )
    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() else f" (default: {field.default})"
        parser.add_argument(_flag(name), dest=name, metavar="VALUE", help=f"{field.description}{default}")
    flags = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    variables = {
        name: environment[_variable(name)] for name in Settings.model_fields if environment.get(_variable(name))
    }
    try:
        settings = Settings.model_validate({**variables, **flags})
    except ValidationError as error:
        faults = [
            f"{_flag(str(fault['loc'][0]))} ({_variable(str(fault['loc'][0]))}): {fault['msg']}"
            for fault in error.errors()
        ]
        parser.error("; ".join(faults))
    try:
        _check_files(settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not settings.models.is_dir():
        parser.error(f"--models ({_variable('models')}): no folder '{settings.models}'; it must exist, empty or not")
    for name, folder in (("impression_log", settings.impression_log), ("event_log", settings.event_log)):
        if folder is not None and not folder.is_dir():
            parser.error(f"{_flag(name)} ({_variable(name)}): no folder '{folder}'; it must exist")
    return settings


def _check_files(settings: Settings) -> None:
    """Check settings against each other and read the files of the start, so that a wrong one ends the program and not
    every worker."""
    if settings.keys_file is not None:
        KeyFile.from_yaml(settings.keys_file)
    if settings.verify_key is not None:
        TrustedKeys(settings.verify_key)
    if settings.user_hash_key is not None:
        read_user_hash_key(settings.user_hash_key)
    if settings.state is not None and settings.state_file is not None:
        raise ValueError("--state and --state-file: both say where the state store is; give one")
    if settings.state_url is not None:
        check_url(settings.state_url)
    if settings.ship is not None:
        if settings.impression_log is None and settings.event_log is None:
            raise ValueError("--ship needs --impression-log or --event-log; it copies their files")
        from service.ship.destination import check_url as check_destination  # its clients are seldom needed

        check_destination(settings.ship)
    if settings.clock is not None:
        if not is_loopback(settings.host):
            raise ValueError("--clock needs a loopback --host; it is for simulations on one host alone")
        ReplacedClock(settings.clock)
    if settings.max_unfinished_bytes < 2 * settings.max_body_bytes:
        raise ValueError("--max-unfinished-bytes must be twice --max-body-bytes or more: one request has to fit")
    certificate, key, authorities = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if (certificate is None) != (key is None):
        raise ValueError("--tls-certificate and --tls-key go together; give both or neither")
    if authorities is not None and certificate is None:
        raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key")
    settings.certificates()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()
