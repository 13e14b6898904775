"""docs/types.md works as written: generators make clients of a running service, and those get the right scores.

The generators have an environment of their own, which `make test-types` makes. Without it the tests skip.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.schema import FeedSchema
from tests.artifacts import publish_artifact
from tests.deploy.programs import program
from tests.service.running import ROOT, RunningService

TOOLS = ROOT / ".venv-types"
NODE_MODULES = TOOLS / "node_modules"
PAGE = (ROOT / "docs/types.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
# Neither is a number of JavaScript, and as numbers both would be the same.
SNOWFLAKES = [7461234567890123457, 7461234567890123458]
SCHEMA = FeedSchema.from_mapping(
    {
        "name": "snowflakes",
        "features": [
            {"name": "user_id", "side": "user", "kind": "id", "vocabulary": SNOWFLAKES, "dim": 4},
            {"name": "video_id", "side": "candidate", "kind": "id", "vocabulary": SNOWFLAKES, "dim": 8},
        ],
        "tasks": [{"name": "click", "kind": "binary", "label": "is_click"}],
    },
    "test_types_page.py",
)
REQUEST: dict[str, Any] = {
    "user": {"user_id": SNOWFLAKES[0]},
    "candidates": {"id": ["a", "b"], "features": {"video_id": SNOWFLAKES}},
}
TYPESCRIPT = ("--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "--skipLibCheck")


class Project:
    """A folder in which the page's blocks run against a service."""

    def __init__(self, folder: Path, service: RunningService) -> None:
        self.folder = folder
        self.client = service.client
        self.address = str(service.client.base_url).rstrip("/")
        self.answer: dict[str, Any] = service.client.post("/v1/rank", json=REQUEST).json()
        paths = [TOOLS / "bin", NODE_MODULES / ".bin", os.environ["PATH"]]
        self._environment = {**os.environ, "PATH": os.pathsep.join(map(str, paths)), "no_proxy": "127.0.0.1"}

    def section(self, title: str) -> tuple[str, str]:
        """Commands and code of a section of the page, for this service."""
        text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0].replace(ADDRESS, self.address)
        (commands,) = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
        (code,) = re.findall(r"^```(?:python|ts)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
        return commands, code

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command's end, whatever it was."""
        return subprocess.run(
            command, cwd=self.folder, env=self._environment, check=False, capture_output=True, text=True
        )

    def output(self, *command: str) -> str:
        """What a command prints that succeeds."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str) -> str:
        """What code prints in the environment of the generators."""
        return self.output(str(TOOLS / "bin/python"), "-c", code)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    if not (TOOLS / "bin/datamodel-codegen").exists():
        pytest.skip("no generators of clients here: `make test-types` makes their environment")
    models = tmp_path_factory.mktemp("models")
    publish_artifact(models, "demo", schema=SCHEMA, request=REQUEST)
    with RunningService(models, "--threads", "1", "--queue-seconds", "60") as service:
        made = Project(tmp_path_factory.mktemp("project"), service.wait_ready())
        (fetch,) = re.findall(r"^```\n(curl.*?)^```$", PAGE.replace(ADDRESS, made.address), re.MULTILINE | re.DOTALL)
        made.output("bash", "-ec", fetch)
        yield made


def test_types_of_the_schema(project: Project) -> None:
    commands, code = project.section("Python types")
    project.output("bash", "-ec", commands)
    assert json.loads(project.python(code))["candidates"] == project.answer["candidates"]
    wrong = "from rank_request import *\nRankRequest.model_validate({'user': {'usr_id': 1}, 'candidates': []})"
    refused = project.run(str(TOOLS / "bin/python"), "-c", wrong)
    assert refused.returncode != 0
    assert "usr_id" in refused.stderr
    # A golden request, as a client may have it in a test of its own.
    golden = (
        "import json, rank_request as r\n"
        "given = json.load(open('request.schema.json'))['examples'][0]\n"
        "assert r.RankRequest.model_validate(given).model_dump(mode='json', exclude_unset=True) == given"
    )
    project.python(golden)


def test_a_python_client(project: Project) -> None:
    commands, code = project.section("A generated Python client")
    assert "WARNING" not in project.output("bash", "-ec", commands)
    rows = {row["id"]: row for row in eval(project.python(code))}
    expected = project.answer["candidates"]
    for place, identifier in enumerate(expected["id"]):
        assert rows[identifier]["score"] == expected["score"][place]
        assert rows[identifier]["tasks"] == {"click": expected["tasks"]["click"][place]}
    # Of a later release: more fields at every level.
    later = {**project.answer, "later": {"x": 1}}
    later["candidates"] = {**later["candidates"], "later": [1, 2]}
    parsed = project.python(
        "import json\nfrom feedrank_client.models import RankAnswer\n"
        f"answer = RankAnswer.from_dict(json.loads({json.dumps(later)!r}))\n"
        "print(json.dumps([answer.candidates.id, answer.candidates.score]))"
    )
    assert json.loads(parsed) == [expected["id"], expected["score"]]


def test_typescript(project: Project) -> None:
    program("node", "nodejs")
    if not NODE_MODULES.is_dir():
        pytest.skip("no generator of TypeScript here: `make test-types` installs it where there is npm")
    commands, code = project.section("TypeScript")
    (project.folder / "node_modules").symlink_to(NODE_MODULES)
    (project.folder / "openapi.json").write_text(project.client.get("/openapi.json").text)
    project.output("bash", "-ec", commands)
    (project.folder / "client.mts").write_text(code)
    # This comment of the compiler's is an error where the line after it has none.
    wrong = re.sub(r"^(.*)video_id:", r"// @ts-expect-error\n\1vidoe_id:", code, flags=re.MULTILINE)
    (project.folder / "wrong.mts").write_text(wrong)
    project.output("tsc", *TYPESCRIPT, "client.mts", "wrong.mts")
    assert json.loads(project.output("node", "client.mjs")) == project.answer["candidates"]
    # As numbers both fall on one id that the model does not know.
    numbers = (project.folder / "client.mjs").read_text().replace("ids.map(String)", "ids.map(Number)")
    (project.folder / "numbers.mjs").write_text(numbers)
    scores = json.loads(project.output("node", "numbers.mjs"))["score"]
    assert scores[0] == scores[1]
    assert scores != project.answer["candidates"]["score"]
