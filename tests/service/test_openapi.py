"""The written description of the scoring route, held against real requests and answers."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from service.metrics import SCORING_CODES
from service.wire import KEYS
from tests.artifacts import TINY_REQUEST, publish_artifact
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
    """Whether a value obeys the part of JSON Schema that the description uses."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return conforms(value, document["components"]["schemas"][name], document)
    if "oneOf" in schema:
        return sum(conforms(value, choice, document) for choice in schema["oneOf"]) == 1
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
    with client_of(folder) as client:
        yield client


def test_the_scoring_route_is_described_by_what_it_takes_and_answers(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/rank"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]
    answered = operation["responses"]["200"]["content"]["application/json"]
    assert conforms(asked["example"], asked["schema"], document)
    for example in answered["examples"].values():
        assert conforms(example["value"], answered["schema"], document)
    assert set(document["components"]["schemas"]["RankRequest"]["properties"]) == set(KEYS)

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
        assert document["components"]["securitySchemes"][scheme] == {"type": "http", "scheme": "bearer"}
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
    v1 = {"/v1/rank", "/v1/models", "/v1/models/{name}", "/v1/admin/models/{name}/labels"}
    assert set(paths) == {"/healthz", "/readyz", "/metrics"} | v1 | v2
