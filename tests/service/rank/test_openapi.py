"""The written description of the scoring route, held against real requests and answers."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from schemathesis.specs.openapi.definitions import OPENAPI_31
from starlette.testclient import TestClient

from service.metrics.metrics import EVENTS, SCORING_CODES
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import wait_for
from tests.service.in_process import client_of

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def conforms(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> bool:
    """True for a value that obeys the part of JSON Schema that the description uses."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return conforms(value, document["components"]["schemas"][name], document)
    if "anyOf" in schema:
        return any(conforms(value, choice, document) for choice in schema["anyOf"])
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if types and not any(isinstance(value, _TYPES[kind]) for kind in types):
        return False
    if isinstance(value, list):
        items = schema.get("items", {})
        return len(value) >= schema.get("minItems", 0) and all(conforms(item, items, document) for item in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        if any(key not in value for key in schema.get("required", ())):
            return False
        if others is False and not value.keys() <= known.keys():
            return False
        return all(conforms(entry, known.get(key, others), document) for key, entry in value.items())
    return True


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("models")
    publish_artifact(folder)
    with client_of(folder, event_log=tmp_path_factory.mktemp("events")) as client:
        yield client


def test_the_scoring_route_is_described_by_what_it_takes_and_answers(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/rank"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]
    answered = operation["responses"]["200"]["content"]["application/json"]
    assert conforms(asked["example"], asked["schema"], document)
    for example in answered["examples"].values():
        assert conforms(example["value"], answered["schema"], document)

    rows = [{"id": "a", "features": {"video_id": 3}}, {"id": "b", "features": {"tag": "x"}}]
    explained = {**TINY_REQUEST, "explain": True}
    for request in (TINY_REQUEST, explained, {**explained, "candidates": rows, "request_id": "r", "top_k": 1}):
        assert conforms(request, asked["schema"], document)
        assert conforms(client.post("/v1/rank", json=request).json(), answered["schema"], document)
    refused = client.post("/v1/rank", json={"user": {"tab": "x"}, "candidates": {}})
    problem = operation["responses"][str(refused.status_code)]["content"][refused.headers["content-type"]]
    assert conforms(refused.json(), problem["schema"], document)
    assert not conforms(TINY_REQUEST, answered["schema"], document)


def test_every_status_that_scoring_can_end_in_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    every = {str(code) for code in SCORING_CODES} - {"405"}  # a wrong method is no use of the operation
    assert set(paths["/v1/rank"]["post"]["responses"]) == every
    # The protocol of /v2 knows no 422.
    assert set(paths["/v2/models/{name}/infer"]["post"]["responses"]) == every - {"422"}


@pytest.mark.parametrize(("given", "status"), [({}, 401), ({"Authorization": "Bearer watcher"}, 403)])
def test_refusals_of_keys_are_what_the_description_says(tmp_path: Path, given: dict[str, str], status: int) -> None:
    publish_artifact(tmp_path / "models")
    entry = {"name": "watcher", "scopes": ["metrics"], "sha256": hashlib.sha256(b"watcher").hexdigest()}
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [entry]}))
    with client_of(tmp_path / "models", keys_file=keys) as client:
        document = client.get("/openapi.json").json()
        operation = document["paths"]["/v1/rank"]["post"]
        (scheme,) = operation["security"][0]
        assert document["components"]["securitySchemes"][scheme].items() >= {"type": "http", "scheme": "bearer"}.items()
        refused = client.post("/v1/rank", json=TINY_REQUEST, headers=given)
    assert refused.status_code == status
    described = operation["responses"][str(status)]
    assert conforms(refused.json(), described["content"][refused.headers["content-type"]]["schema"], document)
    assert {name.lower() for name in described.get("headers", ())} <= set(refused.headers)
    assert ("www-authenticate" in refused.headers) == (status == 401)


def test_docs_can_be_read(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text
    # Whatever the page loads comes from the service: a closed network has nothing else.
    loaded = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert len(loaded) >= 3
    assert [address for address in loaded if not address.startswith("/")] == []
    assert [address for address in loaded if client.get(address).status_code != 200] == []


def test_every_route_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    model = "/v2/models/{name}"
    version = f"{model}/versions/{{version}}"
    v2 = {"/v2", "/v2/health/live", "/v2/health/ready"}
    v2 |= {f"{path}{verb}" for path in (model, version) for verb in ("", "/ready", "/infer")}
    v1 = {
        "/v1/rank",
        "/v1/rank:batch",
        "/v1/events",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/models/{name}/request-schema",
        "/v1/models/{name}/users/{key}",
        "/v1/admin/models/{name}/labels",
        "/v1/admin/models/{name}/value_models/{entry}",
    }
    assert set(paths) == {"/healthz", "/readyz", "/metrics"} | v1 | v2


def test_the_document_is_openapi_3_1(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    jsonschema_rs.validator_for(OPENAPI_31).validate(document)
    assert document["openapi"].startswith("3.1")
    # A schema of 3.1 is one of JSON Schema, where null is a type.
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    assert "nullable" not in json.dumps(document)
    assert "ValidationError" not in json.dumps(document)


def test_requests_are_closed_and_answers_open(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    closed = {name for name, schema in schemas.items() if schema.get("additionalProperties") is False}
    of_models = {"RankRequest", "CandidateColumns", "CandidateRow", "User", "Features", "FeatureColumns"}
    assert closed == {f"{name}_tiny" for name in of_models} | {
        "BatchRequest",
        "EventsRequest",
        "Labels",
        "LabelsChange",
    }
    answer = client.post("/v1/rank", json={**TINY_REQUEST, "explain": True}).json()
    answer["later"] = answer["explain"]["more"] = "of a later release"
    assert conforms(answer, schemas["RankAnswer"], {"components": {"schemas": schemas}})
    for key in ("request_id", "model", "version", "value_model", "top_k", "explain", "strict", "policy"):
        request = {**TINY_REQUEST, key: None}
        assert conforms(request, schemas["RankRequest_tiny"], {"components": {"schemas": schemas}})
    assert not conforms(
        {**TINY_REQUEST, "politics": "x"}, schemas["RankRequest_tiny"], {"components": {"schemas": schemas}}
    )


def test_each_model_has_its_own_request_where_several_are_served(tmp_path: Path) -> None:
    publish_artifact(tmp_path, "tiny.v2")
    publish_artifact(tmp_path, "tiny-v2")
    with client_of(tmp_path) as client:
        document = client.get("/openapi.json").json()
    content = body_of(document["paths"]["/v1/rank"]["post"])
    names = [one["$ref"].removeprefix("#/components/schemas/") for one in content["schema"]["anyOf"]]
    assert len(set(names)) == 2
    models = [document["components"]["schemas"][name]["properties"]["model"]["anyOf"][0]["const"] for name in names]
    assert models == list(content["examples"]) == ["tiny-v2", "tiny.v2"]
    for name, model in zip(names, models, strict=True):
        validator = jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", **document})
        for of_model, example in content["examples"].items():
            assert validator.is_valid(example["value"]) == (of_model == model)


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = operation["requestBody"]["content"]["application/json"]
    return content


def test_ranking_comes_first_and_its_example_is_the_served_model_s_golden_request(tmp_path: Path) -> None:
    publish_artifact(tmp_path, "other")
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert next(iter(paths)) == "/v1/rank"
        examples = body_of(paths["/v1/rank"]["post"])["examples"]
        assert list(examples) == ["other", "tiny"]
        assert examples["tiny"]["value"] == {"model": "tiny", **TINY_REQUEST}
        for example in examples.values():
            assert client.post("/v1/rank", json=example["value"]).status_code == 200
        newer = {**TINY_REQUEST, "user": {"user_id": 18}}
        publish_artifact(tmp_path, request=newer)

        def is_followed() -> bool:
            paths = client.get("/openapi.json").json()["paths"]
            shown: dict[str, Any] = body_of(paths["/v1/rank"]["post"])["examples"]["tiny"]["value"]
            return shown == {"model": "tiny", **newer}

        wait_for(is_followed)


def test_what_is_tried_out_is_answered(client: TestClient) -> None:
    """Every request as /docs makes it from its examples."""
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            given = {one["name"]: one["example"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            body = body_of(operation)["example"] if "requestBody" in operation else None
            answer = client.request(verb, path.format(**given), json=body)
            # Without keys the admin API and users by HTTP are off.
            is_off = "/admin/" in path or "/users/" in path
            assert answer.status_code == (403 if is_off else 202 if path == EVENTS else 200), (path, answer.text)
            assert str(answer.status_code) in operation["responses"]
            if body is not None and "/admin/" not in path:
                assert conforms(body, body_of(operation)["schema"], document)
    rank = document["paths"]["/v1/rank"]["post"]
    plain = rank["responses"]["200"]["content"]["application/json"]["examples"]["plain"]
    answered = client.post("/v1/rank", json=body_of(rank)["example"]).json()
    assert plain["value"]["candidates"]["id"] == answered["candidates"]["id"]
    assert plain["value"]["candidates"]["score"] == pytest.approx(answered["candidates"]["score"], rel=1e-4)
    assert plain["value"].keys() == answered.keys()


WRONG: list[tuple[str, bytes, dict[str, str]]] = [
    ("tiny", b"{", {}),
    ("tiny", b"[1]", {}),
    ("tiny", b"{}", {}),
    ("nobody", b"{}", {}),
    ("tiny", b'{"stable": "99"}', {}),
    ("tiny", b" " * (5 * 2**20), {}),
    ("tiny", b"{}", {"Content-Encoding": "br"}),
    ("tiny", b"{}", {"Authorization": "Bearer nobody"}),
    ("tiny", b"{}", {"Authorization": "Bearer watcher"}),
]


def test_every_refusal_of_every_route_is_described(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    entries = [
        {"name": name, "scopes": [scope], "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name, scope in (("watcher", "metrics"), ("owner", "admin"))
    ]
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": entries}))
    seen = set()
    with client_of(tmp_path / "models", keys_file=keys) as client:
        owner = {"Authorization": "Bearer owner"}
        document = client.get("/openapi.json", headers=owner).json()
        for path, operations in document["paths"].items():
            for verb, operation in operations.items():
                assert "500" in operation["responses"]
                for name, body, headers in WRONG:
                    address = path.format(
                        name=name, key="17", entry="default", version="99" if name == "nobody" else "1"
                    )
                    answer = client.request(verb, address, content=body, headers={**owner, **headers})
                    described = operation["responses"][str(answer.status_code)]
                    seen.add(answer.status_code)
                    if answer.status_code >= 400:
                        schema = described["content"][answer.headers["content-type"]]["schema"]
                        assert conforms(answer.json(), schema, document)
    assert seen >= {200, 400, 401, 403, 404, 413, 415, 422}


def test_values_of_golden_requests_are_for_those_who_may_score(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    entries = [
        {"name": name, "scopes": [name], "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in ("score", "metrics")
    ]
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": entries}))
    with client_of(tmp_path / "models", keys_file=keys) as client:
        allowed = {"Authorization": "Bearer score"}
        for headers in ({}, {"Authorization": "Bearer metrics"}, {"Authorization": "Bearer nobody"}):
            document = client.get("/openapi.json", headers=headers)
            assert document.headers["cache-control"] == "no-store"
            for told in ("tiny", "video_id", "country"):
                assert f'"{told}"' not in document.text
            example = body_of(document.json()["paths"]["/v1/rank"]["post"])["example"]
            assert client.post("/v1/rank", json=example, headers=allowed).status_code == 200
        document = client.get("/openapi.json", headers=allowed).json()
        assert body_of(document["paths"]["/v1/rank"]["post"])["example"] == {"model": "tiny", **TINY_REQUEST}
        admin = document["paths"]["/v1/admin/models/{name}/labels"]["put"]
        assert (admin["security"], admin["tags"]) == ([{"apiKey": []}], ["Admin"])
        assert "scope `admin`" in admin["description"]
