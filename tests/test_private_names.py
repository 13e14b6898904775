"""Private names of libraries in the code are those of the list in requirements/README.md, and no others.

Found are names with a leading underscore that are imported, reached from an imported module, or used by a class that
does not define them itself. And methods that a class of a library has under the same private name.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "training", "service", "deploy", "clients", "feedrank")
# Private by their look alone: the documentation of Python, or of Ibis, has them.
DOCUMENTED = {"os._exit", "_replace", "_asdict", "ibis._"}
ROW = re.compile(r"\| [\w-]+ \| (`.+`) \| `(.+)` \| .+ \|")


def listed() -> dict[str, set[str]]:
    """Names of the list, by file."""
    section = (ROOT / "requirements/README.md").read_text(encoding="utf-8").partition("## Private names")[2]
    found: dict[str, set[str]] = {}
    for names, file in ROW.findall(section):
        found.setdefault(file, set()).update(re.findall(r"`([^`]+)`", names))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def chain(node: ast.Attribute) -> list[str]:
    """The names of `a.b.c`. Of what is no name at its start, those behind it."""
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return [*([inner.id] if isinstance(inner, ast.Name) else []), *reversed(parts)]


def imported(tree: ast.Module) -> dict[str, str]:
    """Dotted names of libraries by what they are called in a module."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname or one.name: one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return {name: full for name, full in found.items() if full.partition(".")[0] not in PACKAGES}


def defined(tree: ast.Module) -> set[str]:
    """Names that a module makes itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def overridden(path: Path, tree: ast.Module) -> Iterator[str]:
    """Private methods of libraries' classes that a class of the module replaces."""
    libraries = imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef) and is_private(one.name)]
        if methods and any(isinstance(base, ast.Name) and base.id in libraries for base in node.bases):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            bases = getattr(module, node.name).__mro__[1:]
            yield from (f"self.{name}" for name in methods if any(name in vars(base) for base in bases))


def inherited(tree: ast.Module) -> set[str]:
    """Names that the modules of a module's base classes make, where these are our own."""
    bases = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        for name in ast.walk(base)
        if isinstance(name, ast.Name)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and bases & {one.name for one in node.names}:
            home = ROOT / f"{node.module.replace('.', '/')}.py"
            if node.module.partition(".")[0] in PACKAGES and home.is_file():
                found |= defined(ast.parse(home.read_text(encoding="utf-8")))
    return found


def used(path: Path) -> set[str]:
    """Private names of libraries that a module uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    libraries, own = imported(tree), defined(tree) | inherited(tree)
    found = {full for full in libraries.values() if any(map(is_private, full.split(".")))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            first, *rest = chain(node)
            if first in libraries:
                found.add(".".join([libraries[first], *rest]))
            elif node.attr not in own:
                found.add(f"self.{node.attr}")
    found |= set(overridden(path, tree))
    whole = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
    return {name for name in whole if name.removeprefix("self.") not in DOCUMENTED}


def test_every_private_name_is_in_the_list() -> None:
    known = listed()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            assert used(path) <= known.get(file, set()), (
                f"{file}: add to the list in requirements/README.md, or replace"
            )


def test_every_name_of_the_list_is_in_its_file() -> None:
    known = listed()
    assert len(known) >= 9
    for file, names in known.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in names:
            assert re.search(rf"(?<!\w){re.escape(name.removeprefix('self.').rpartition('.')[2])}", text), (file, name)


def test_private_names_are_found_however_they_are_reached(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text(
        "import os\nimport torch._inductor\nfrom torch._utils import other\nfrom numpy import linalg as algebra\n"
        "import torch\n\n_own = 1\n\n\ndef f(one):\n    algebra._umath\n    torch._C._cpu.call()\n    one._theirs\n"
        "    one._own\n    os._exit(0)\n    return one._replace()\n"
    )
    expected = {"torch._inductor", "torch._utils.other", "numpy.linalg._umath", "torch._C._cpu", "self._theirs"}
    assert used(path) == expected
