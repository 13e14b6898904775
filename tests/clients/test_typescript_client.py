"""The TypeScript client as it is packed, with a real service: its README's blocks, their types, and whole ids."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.demo_service import ADDRESS, REQUEST, SNOWFLAKES, logged, publish_demo
from tests.clients.node_client import NodeClient, node
from tests.deploy.programs import program
from tests.service.running import ROOT, RunningService

CLIENT = ROOT / "clients/typescript"
README = (CLIENT / "README.md").read_text(encoding="utf-8")
NODE_MODULES = ROOT / ".venv-types/node_modules"
COMPILER = ("--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "--noEmit")
LONG = 60.0


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, events: Path) -> Iterator[RunningService]:
    node()
    models = tmp_path_factory.mktemp("models")
    publish_demo(models)
    flags = ("--threads", "1", "--queue-seconds", "60", "--event-log", str(events))
    with RunningService(models, *flags) as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the packed client is installed, offline."""
    npm, folder = program("npm", "npm"), tmp_path_factory.mktemp("project")
    pack = [npm, "pack", "--silent", "--offline", str(CLIENT)]
    packed = subprocess.run(pack, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    (folder / "package.json").write_text('{"name": "mine", "private": true, "type": "module"}')
    install = [npm, "install", "--silent", "--offline", "--no-audit", "--no-fund", f"./{packed}"]
    subprocess.run(install, cwd=folder, check=True)
    files = {path.name for path in (folder / "node_modules/feedrank-client").iterdir()}
    assert files == {path.name for path in CLIENT.iterdir()}
    return folder


def test_it_gives_the_services_ranking(service: RunningService) -> None:
    client = NodeClient(str(service.client.base_url))
    ranking = client.rank(REQUEST, timeout=LONG)
    other = client.rank({**REQUEST, "user": {**REQUEST["user"], "user_id": SNOWFLAKES[1]}}, timeout=LONG)
    counts = client.counts()
    client.close()
    bare: dict[str, Any] = service.client.post("/v1/rank", json=REQUEST).json()
    assert ranking.answer == {**bare, "request_id": ranking.request_id}
    assert ranking.ids == bare["candidates"]["id"]
    assert other.answer is not None
    assert other.answer["candidates"] != bare["candidates"]  # the last digit of the id has arrived
    assert (counts.answered, counts.retries) == (2, 0)


def blocks(service: RunningService) -> str:
    """The README's blocks as one program. Its deadline is no part of what is tested: this machine may be slow."""
    text = README.replace(f"{ADDRESS}/", "").replace(ADDRESS, str(service.client.base_url).rstrip("/"))
    code = "".join(re.findall(r"^```ts\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert "timeoutMs: 200" in code
    return code.replace("timeoutMs: 200", "timeoutMs: 60_000")


def test_blocks_of_the_readme(service: RunningService, project: Path, events: Path) -> None:
    """They are JavaScript as they are."""
    before = len(logged(events))
    (project / "blocks.mjs").write_text(blocks(service))
    run = [node(), "blocks.mjs"]
    done = subprocess.run(run, cwd=project, check=True, capture_output=True, text=True)
    ranked, *several, counted, events_counted = done.stdout.splitlines()
    assert ranked in ("[ 'a', 'b' ] false", "[ 'b', 'a' ] false")
    assert len(several) == 3
    assert set(several) <= {"[ 'a', 'b' ]", "[ 'b', 'a' ]"}
    assert (counted, events_counted) == ("4 0 {}", "3 0 0")
    lines = logged(events)[before:]
    assert sorted(line["type"] for line in lines) == ["play_time_ms", "shown", "shown"]
    assert [line["user"] for line in lines if "user" in line] == [str(SNOWFLAKES[0])]


def test_types(service: RunningService, project: Path) -> None:
    """The README's blocks are right, and what is wrong is an error of the compiler."""
    if not (NODE_MODULES / ".bin/tsc").exists():
        pytest.skip("no compiler of TypeScript here: `make test-types` installs it where there is npm")
    code = blocks(service)
    (project / "blocks.mts").write_text(code)
    wrong = {
        "candidates:": code.replace("candidates:", "candidate:", 1),
        "device": code.replace('device: "phone"', "device: new Date()"),
        "position": code.replace("id, position }", 'id, position: "first" }'),
        "fallback": code.replace('["a", "b"] },\n', "[1, 2] },\n"),
    }
    for number, changed in enumerate(wrong.values()):
        assert changed != code
        (project / f"wrong{number}.mts").write_text(changed)
    compiler = [str(NODE_MODULES / ".bin/tsc"), *COMPILER]
    files = [path.name for path in sorted(project.glob("*.mts"))]
    done = subprocess.run([*compiler, *files], cwd=project, check=False, capture_output=True, text=True)
    assert {line.partition("(")[0] for line in done.stdout.splitlines() if ": error " in line} == {
        name for name in files if name.startswith("wrong")
    }, done.stdout


WHOLE = """
import assert from "node:assert";
const [module] = process.argv.slice(1);
const { encode } = await import(module);
const bigints = { a: [[1n, 2], ["x"]], b: new Float32Array([1.5, 2]), c: new BigInt64Array([5n]) };
assert.equal(encode(bigints), '{"a":[["1",2],["x"]],"b":[1.5,2],"c":["5"]}');
const plain = { a: [1, 2.5, null, "x", true, 2 ** 53 - 1], b: undefined, c: new Date(0) };
assert.equal(encode(plain), JSON.stringify(plain));
for (const wrong of [NaN, Infinity, 2 ** 53, [[-Infinity]], { x: [1, 2 ** 60] }, new Float64Array([NaN])]) {
  assert.throws(() => encode({ user: wrong }), RangeError);
}
const cycle = {};
cycle.again = cycle;
assert.throws(() => encode(cycle), TypeError);
"""


def test_values_are_written_as_they_are_or_refused() -> None:
    run = [node(), "--input-type=module", "--eval", WHOLE, str(CLIENT / "wire.js")]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_says_what_it_has() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert "dependencies" not in package
    assert set(package["files"]) | {"package.json", "README.md"} == {path.name for path in CLIENT.iterdir()}
