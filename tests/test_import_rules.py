"""The rooms of the house stay apart: CONTRIBUTING.md says what each may import, and the syntax trees are read for it.

A rule that is kept is cheap to keep and expensive to restore: one `import torchrec` within reach of the service
costs seconds at start, hundreds of megabytes, and the dependence on fbgemm's binary interface. Imports inside
functions, under TYPE_CHECKING, relative ones and `importlib.import_module("...")` count like any other.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "training", "service", "deploy", "benchmarks", "clients", "tests")
# Packages all of whose modules are in a room.
ROOMED = ("model", "training", "service", "deploy", "clients")
# Rooms whose kinds are chosen by name.
REGISTRIES = (
    "model.features.kinds",
    "model.fusion",
    "model.tasks",
    "training.data.kinds",
    "training.step.balancing",
    "training.tasks",
)
# A package of its own, which its users install and import by this name. So its __init__ opens on what they need.
PYTHON_CLIENT = "clients.python.feedrank"
TORCHREC = ("torchrec", "fbgemm_gpu")

# Where torchrec may be named at all.
TORCHREC_ALLOWED = ("model.embeddings", "training", "benchmarks", "tests")
# Whatever the service reaches, however far away: none of these.
SERVICE_NEVER = (*TORCHREC, "training", "deploy", "benchmarks", "clients", "feedrank", "tests")
# What serves must not reach these either: they are for processes of their own.
SERVING = "service.app"
SERVING_NEVER = (*SERVICE_NEVER, "pyarrow", "rich")
# A join reads logs and a schema: these would be two thirds of its memory before the first line.
JOINING = "training.join.command"
JOINING_NEVER = (*TORCHREC, "torch", "scipy", "sklearn", "pandas")
PYARROW_IN_SERVICE = ("service.impressions.parquet", "service.replay.joined_rewards", "service.state.parquet_users")
# Folders with a file for each network, and for each part of an experiment.
MANY_FILES = ("model.fusion", "training.compare")
MOST_FILES = 17
# The one module that is imported only where the packages of requirements/spark.txt are asked for.
NEEDS_SPARK = "training.join.engines.spark_engine"
_ROW = re.compile(r"\| `([\w.]+)` \| (.+) \| (.+) \|")
_NAME = re.compile(r"`([\w.]+)`")


@dataclass(frozen=True)
class Import:
    """`module` (dotted, as imported) in `importer` (dotted) at `line` of `path`."""

    importer: str
    module: str
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.importer} imports {self.module}"


def _within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


class Project:
    """All modules under `root` and what they import."""

    def __init__(self, root: Path) -> None:
        self.modules: dict[str, Path] = {}
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                self.modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.imports: dict[str, list[Import]] = {
            name: [Import(name, module, path.relative_to(root), line) for module, line in self._read(name)]
            for name, path in self.modules.items()
        }

    def _read(self, name: str) -> Iterator[tuple[str, int]]:
        path = self.modules[name]
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, *(node.module.split(".") if node.module else [])])
                for alias in node.names:
                    # `from model import schema` names a module, `from model.schema import Schema` an attribute.
                    submodule = f"{source}.{alias.name}"
                    yield (submodule if submodule in self.modules else source), node.lineno
            elif isinstance(node, ast.Call) and _is_dynamic_import(node.func):
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value, node.lineno

    def reached_from(self, package: str) -> dict[str, tuple[str, ...]]:
        """Every module that importing `package` and its submodules may load, with one chain of imports to it."""
        chains: dict[str, tuple[str, ...]] = {name: (name,) for name in self.modules if _within(name, (package,))}
        waiting = list(chains)
        while waiting:
            importer = waiting.pop()
            for found in self.imports[importer]:
                # importing a.b.c runs a/__init__.py and a/b/__init__.py first
                parts = found.module.split(".")
                for end in range(1, len(parts) + 1):
                    name = ".".join(parts[:end])
                    if name in self.modules and name not in chains:
                        chains[name] = (*chains[importer], name)
                        waiting.append(name)
        return chains


def _is_dynamic_import(function: ast.expr) -> bool:
    return (isinstance(function, ast.Name) and function.id in ("__import__", "import_module")) or (
        isinstance(function, ast.Attribute) and function.attr == "import_module"
    )


@cache
def house() -> Project:
    """This repository, read once."""
    return Project(ROOT)


class Room(NamedTuple):
    """A row of the table in CONTRIBUTING.md. `imports` are rooms by their whole names."""

    job: str
    imports: frozenset[str]


def rooms(page: Path) -> dict[str, Room]:
    """The table of rooms, by name."""
    found = {}
    for name, job, imports in _ROW.findall(page.read_text(encoding="utf-8")):
        package = name.split(".")[0]
        shown = _NAME.findall(imports)
        whole = frozenset(one if one.split(".")[0] in PACKAGES else f"{package}.{one}" for one in shown)
        found[name] = Room(job, whole)
    return found


def room_of(module: str, table: Mapping[str, Room]) -> str | None:
    """The innermost room that a module is in, None where the table has none."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in table), None)


def violations(root: Path) -> list[str]:
    """One line for each import under `root` that breaks a rule, each module without a room and each row of the table
    that is wrong. Empty where all is well."""
    project, table = house() if root == ROOT else Project(root), rooms(root / "CONTRIBUTING.md")
    broken = []
    used: dict[str, set[str]] = {name: set() for name in table}
    for name, imports in project.imports.items():
        package = name.split(".")[0]
        room = room_of(name, table)
        if room is None and package in ROOMED and name != package:
            broken.append(f"{name}: in no room of CONTRIBUTING.md's table")
        for found in imports:
            target = found.module.split(".")[0]
            if room is not None and target in PACKAGES:
                other = room_of(found.module, table)
                if other is None:
                    broken.append(f"{found}, which is in no room of CONTRIBUTING.md's table")
                elif other != room:
                    used[room].add(other)
                    if other not in table[room].imports:
                        may = ", ".join(sorted(table[room].imports)) or "nothing"
                        broken.append(f"{found}; {room} may import {may}")
            if target in TORCHREC and not _within(name, TORCHREC_ALLOWED):
                broken.append(f"{found}; in model/ torchrec belongs to model/embeddings/ alone")
            if target == "pyarrow" and package == "service" and not _within(name, PYARROW_IN_SERVICE):
                broken.append(f"{found}; in service/ pyarrow belongs to {' and '.join(PYARROW_IN_SERVICE)} alone")
    broken += [
        f"CONTRIBUTING.md: {room} imports nothing of {', '.join(sorted(row.imports - used[room]))}"
        for room, row in table.items()
        if row.imports - used[room]
    ]
    for root_name, never in (("service", SERVICE_NEVER), (SERVING, SERVING_NEVER)):
        for name, chain in project.reached_from(root_name).items():
            broken += [
                f"{found}; the service reaches it by {' -> '.join(chain)}"
                for found in project.imports[name]
                if _within(found.module, never)
            ]
    return broken


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Nodes that lead back to the first of them, empty where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_room_leads_back_to_itself() -> None:
    assert circle({name: room.imports for name, room in rooms(ROOT / "CONTRIBUTING.md").items()}) == []


@pytest.mark.parametrize("package", ["model", "training", "service", "deploy"])
def test_no_module_leads_back_to_itself(package: str) -> None:
    """Imports under TYPE_CHECKING included: they are what a reader has to follow."""
    project = house()
    modules = [name for name in project.modules if _within(name, (package,))]
    graph = {name: {found.module for found in project.imports[name]} & project.modules.keys() for name in modules}
    assert circle(graph) == []


def test_circles_are_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_rooms_say_their_job_hold_few_files_and_open_on_nothing() -> None:
    project, table = house(), rooms(ROOT / "CONTRIBUTING.md")
    for name, path in project.modules.items():
        if path.name != "__init__.py" or name.split(".")[0] not in ROOMED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name in table:
            assert (ast.get_docstring(tree) or "").split("\n")[0] == table[name].job, name
        if name not in (*REGISTRIES, PYTHON_CLIENT):
            assert len(tree.body) == 1, f"{path}: more than a docstring"
        files = len(list(path.parent.glob("*.py")))
        assert files <= MOST_FILES or name in MANY_FILES, f"{path.parent}: {files} files"


def test_packages_import_what_they_may() -> None:
    assert violations(ROOT) == []


def _locked(role: str) -> set[str]:
    names: set[str] = set()
    for line in (ROOT / "requirements" / f"{role}.txt").read_text().splitlines():
        if line.startswith("-r "):
            names |= _locked(line.removeprefix("-r ").strip().removesuffix(".txt"))
        elif line and not line.startswith("#"):
            names.add(line.split("==")[0].lower().replace("_", "-"))
    return names


@pytest.mark.parametrize(("package", "role"), [("service", "serve"), ("training", "train"), ("deploy", "train")])
def test_third_party_imports_are_in_the_lock_file_of_their_role(package: str, role: str) -> None:
    """Imports that an environment of the role's lock file lacks are found here, not in production."""
    project, locked = house(), _locked(role) | {"fbgemm-gpu-cpu", "fbgemm-gpu"}
    distributions = packages_distributions()
    missing = []
    for name in project.reached_from(package):
        for found in project.imports[name]:
            top = found.module.split(".")[0]
            if top in PACKAGES or top in sys.stdlib_module_names:
                continue
            owners = {owner.lower().replace("_", "-") for owner in distributions.get(top, [top])}
            if not owners & (locked | (_locked("spark") if name == NEEDS_SPARK else set())):
                missing.append(f"{found}; not in requirements/{role}.txt")
    assert missing == []


def test_the_python_client_needs_httpx_alone() -> None:
    imports = [found for name, each in house().imports.items() if _within(name, (PYTHON_CLIENT,)) for found in each]
    tops = {found.module.split(".")[0] for found in imports}
    assert tops - set(sys.stdlib_module_names) == {"feedrank", "httpx"}


@pytest.mark.parametrize(("module", "never"), [(SERVING, SERVING_NEVER), (JOINING, JOINING_NEVER)])
def test_importing_a_process_loads_no_more_than_it_needs(module: str, never: tuple[str, ...]) -> None:
    """The same at run time, in an environment that has everything: what other packages drag in counts too."""
    program = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()).isdisjoint(never)


TABLE = """
| room | job | may import |
|---|---|---|
| `model.schema` | Features. | nothing |
| `model.embeddings` | Tables. | `schema` |
| `model.ranker` | The ranker. | nothing |
| `model.artifact` | A version. | `schema` |
| `training.train` | The main path. | `model.embeddings` |
| `training.datasets` | Logs. | nothing |
| `service.app` | Routes. | `model.artifact`, `metrics` |
| `service.metrics` | Metrics. | nothing |
| `service.impressions` | The log. | nothing |
| `service.replay` | Scored again. | `impressions` |
| `deploy` | Elsewhere. | `training.datasets`, `service.metrics` |
"""

CLEAN = {
    "CONTRIBUTING.md": TABLE,
    "model/__init__.py": "",
    "model/schema.py": "import torch\n",
    "model/ranker.py": "import torch\n",
    "model/embeddings/__init__.py": "",
    "model/embeddings/embeddings.py": "import torchrec\nfrom model.schema import Schema\n",
    "model/artifact.py": "from . import schema\n",
    "training/__init__.py": "",
    "training/train.py": "import torchrec\nimport pyarrow\nfrom model.embeddings.embeddings import Embeddings\n",
    "training/datasets/feed_world.py": "import numpy\n",
    "service/__init__.py": "",
    "service/app.py": "from model import artifact\nfrom service.metrics import Metrics\n",
    "service/metrics.py": "import prometheus_client\n",
    "service/impressions/__init__.py": "",
    "service/impressions/parquet.py": "import pyarrow\n",
    "service/replay.py": "from service.impressions.parquet import read\n",
    "deploy/load.py": "from training.datasets.feed_world import FeedWorld\nimport service.metrics\n",
}


def _plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_checker_passes_a_clean_tree(tmp_path: Path) -> None:
    _plant(tmp_path, CLEAN)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("model/schema.py", "import torchrec\n", "model/schema.py:1: model.schema imports torchrec"),
        ("model/ranker.py", "from fbgemm_gpu.tbe import x\n", "model.ranker imports fbgemm_gpu.tbe"),
        ("model/ranker.py", "def f():\n    from training import train\n", "imports training.train; model.ranker may"),
        ("model/ranker.py", "import service.app\n", "model.ranker imports service.app"),
        ("training/train.py", "from service.metrics import Metrics\n", "imports service.metrics; training.train may"),
        (
            "training/datasets/deep/file.py",
            "from ....service import app\n",
            "training.datasets.deep.file imports service",
        ),
        ("service/app.py", "import model.ranker\n", "service.app may import model.artifact"),
        ("service/app.py", "from model import ranker\n", "service.app imports model"),
        ("service/app.py", "import importlib\nimportlib.import_module('torchrec')\n", "imports torchrec"),
        ("service/app.py", "if 0:\n    import training.train\n", "service/app.py:2: service.app imports training"),
        ("service/app.py", "import prometheus_client\n", "service.app imports nothing of model.artifact, service.met"),
        ("service/new.py", "", "service.new: in no room"),
        ("service/metrics.py", "import service.new\n", "service.new, which is in no room"),
        ("deploy/load.py", "import model.schema\n", "deploy may import service.metrics"),
        ("service/replay.py", "import pyarrow\n", "in service/ pyarrow belongs to service.impressions.parquet"),
        ("service/metrics.py", "import service.replay\n", "service.metrics -> service.replay -> service.impressions"),
        # out of the service's own sight: the chain is told
        ("model/schema.py", "import pyarrow.parquet\n", "service.app -> model.artifact -> model.schema"),
        ("model/schema.py", "import model.embeddings.embeddings\n", "model.schema -> model.embeddings"),
        ("model/__init__.py", "from model.embeddings.embeddings import Embeddings\n", "model -> model.embeddings"),
    ],
)
def test_checker_catches_a_planted_violation(tmp_path: Path, path: str, source: str, said: str) -> None:
    _plant(tmp_path, CLEAN | {path: source})
    found = violations(tmp_path)
    assert any(said in line for line in found), found
