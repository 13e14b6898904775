"""Rules of the repository as a whole: lock files, verbs, skips, sizes, nothing of one machine."""

import ast
import itertools
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==\d[A-Za-z0-9.]*$")
INCLUDE = re.compile(r"^-r [a-z-]+\.txt$")
MAX_LINES = 400


def _tracked(suffix: str = "") -> list[Path]:
    """Files git tracks or would track, so that data, runs and environments are left out."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name.endswith(suffix)]
    return [path for path in paths if path.is_file()]


def _pins(lock: Path) -> dict[str, Version]:
    """Name to version of every package in `lock`, included files too."""
    pins: dict[str, Version] = {}
    for line in lock.read_text().splitlines():
        if INCLUDE.match(line):
            pins |= _pins(lock.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = Version(version)
    return pins


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_file_holds_exact_pins_only(lock: Path) -> None:
    """No ranges, no URLs, no `--find-links` or index: where packages come from is the user's own setting."""
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not PIN.match(line) and not INCLUDE.match(line)] == []
    names = [canonicalize_name(line.partition("==")[0]) for line in lines]
    assert len(names) == len(set(names)), "a package is pinned twice"


@pytest.mark.parametrize("role", ["serve", "train", "dev", "spark"])
def test_lock_file_is_complete_and_consistent(role: str) -> None:
    """Installed with --no-deps, so no installer checks it: each need of each package must be pinned and met."""
    pins = _pins(ROOT / "requirements" / f"{role}.txt")
    pins |= _pins(ROOT / "requirements" / "fbgemm-cpu.txt") if role != "serve" else {}
    pins |= _pins(ROOT / "requirements" / "train.txt") if role == "spark" else {}  # it is installed on top
    wrong = []
    for name, version in pins.items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # fbgemm-gpu-cpu in an environment for GPUs, Spark's packages in one without Spark
        if Version(installed.version).public != version.public:
            wrong.append(f"{name}: {version} is pinned, {installed.version} is installed; run `make setup`")
        for need in map(Requirement, installed.requires or []):
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            needed = canonicalize_name(need.name)
            if needed == "fbgemm-gpu":  # the choice between fbgemm-cpu.txt and fbgemm-gpu.txt
                continue
            # nvidia-* and triton come with torch's CUDA build. They are pinned in torch-gpu.txt
            allowed = pins | _pins(ROOT / "requirements" / "torch-gpu.txt")
            if needed not in allowed:
                wrong.append(f"{name} needs {need}, which {role}.txt does not pin")
            elif not need.specifier.contains(allowed[needed], prereleases=True):
                wrong.append(f"{name} needs {need}, {role}.txt pins {allowed[needed]}")
    assert wrong == []


def test_lock_files_say_why_each_direct_dependency_is_there() -> None:
    """In serve, train, dev and spark each pin above `# what these need` has a comment over it (or shares one)."""
    for role in ("serve", "train", "dev", "spark"):
        text = (ROOT / "requirements" / f"{role}.txt").read_text()
        direct, _, transitive = text.partition("# what these need")
        assert transitive.strip(), f"{role}.txt has no section of transitive packages"
        lines = direct.splitlines()
        for above, line in itertools.pairwise(lines):
            if PIN.match(line):
                assert above.startswith("# ") or line.startswith("types-"), f"{role}.txt: why {line}?"


def test_help_lists_every_verb_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    declared = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert declared is not None
    verbs = set(declared.group(1).replace("\\\n", " ").split())
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    listed = set(re.findall(r"^  ([a-z][a-z-]*)  +\S", printed, re.MULTILINE))
    assert targets == verbs == listed


@pytest.mark.parametrize("verb", ["train", "export"])
def test_verb_without_its_argument_says_what_to_give(verb: str) -> None:
    run = subprocess.run(
        # -o: the environment is that of this test, never made again
        ["make", "--no-print-directory", "-o", ".venv/.installed-cpu", verb],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert f"make {verb} {'CONFIG=FILE' if verb == 'train' else 'RUN=DIR'}" in run.stderr


# Homes and work folders of one machine, then indexes and registries, which are each user's own setting.
ONE_MACHINE = re.compile(r"(?<![\w.~}$-])/(?:root|home|work|Users)/\w|file:///")
REGISTRIES = re.compile(r"(?:pypi|pythonhosted)\.org|download\.pytorch\.org|(?:quay|ghcr|gcr)\.io/")
# PyTorch's own index of CPU builds, the default of TORCH_INDEX: in one place.
CPU_INDEX = ("requirements/install_torch.py", 'CPU_INDEX = "https://download.pytorch.org/whl/cpu"')


def test_no_file_names_a_path_of_one_machine_or_a_registry() -> None:
    found = []
    for path in _tracked():
        if path == Path(__file__) or path.suffix in (".parquet", ".png", ".pt", ".npz"):
            continue
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if (ONE_MACHINE.search(line) or REGISTRIES.search(line)) and (name, line) != CPU_INDEX:
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize("line", ["/home/" + "ann/x", "cp x /root/" + "y", "(/work/" + "z)", "file:" + "///x"])
def test_machine_path_is_recognised(line: str) -> None:
    assert ONE_MACHINE.search(line)


@pytest.mark.parametrize("line", ["the frame/work/item", "../shared/home/x", "a / b", "/v1/models", "/app/models"])
def test_other_text_is_no_machine_path(line: str) -> None:
    assert not ONE_MACHINE.search(line)


def _unconditional_skips(source: str) -> Iterator[int]:
    """Lines that skip, or expect to fail, whatever the circumstances."""
    tree = ast.parse(source)
    guarded: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.ExceptHandler | ast.IfExp | ast.While):
            guarded.update(ast.walk(node))
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name in ("pytest.mark.skip", "pytest.mark.xfail", "pytest.importorskip"):
            yield node.lineno if isinstance(node, ast.Attribute) else 0
        elif isinstance(node, ast.Call) and node not in guarded:
            called = ast.unparse(node.func)
            constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
            if called in ("pytest.skip", "pytest.xfail") or (called == "pytest.mark.skipif" and constant):
                yield node.lineno


def test_no_test_is_skipped_whatever_happens() -> None:
    """A skip needs a reason that can go away. A test that never runs is not a test."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in _unconditional_skips(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("@pytest.mark.skip\ndef test(): ...", 1),
        ("@pytest.mark.skip(reason='later')\ndef test(): ...", 1),
        ("@pytest.mark.skipif(True, reason='later')\ndef test(): ...", 1),
        ("def test():\n    pytest.skip('later')", 1),
        ("pytest.importorskip('torch')", 1),
        ("@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')\ndef test(): ...", 0),
        ("def test():\n    if not folder:\n        pytest.skip('no data')", 0),
    ],
)
def test_unconditional_skips_are_recognised(source: str, count: int) -> None:
    assert len(list(_unconditional_skips(source))) == count


def test_python_files_are_small_and_say_their_job() -> None:
    wrong = []
    for path in _tracked(".py"):
        source = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if source.count("\n") > MAX_LINES:
            wrong.append(f"{name}: {source.count(chr(10))} lines, {MAX_LINES} at most")
        if source.strip() and ast.get_docstring(ast.parse(source)) is None:
            wrong.append(f"{name}: no module docstring")
        if "utils" in name.parts or name.stem in ("util", "utils", "helpers"):
            wrong.append(f"{name}: a name that says nothing")
    assert wrong == []


# Of docstrings that say what they are about before they name it, or order somebody else to do it.
_OPENINGS = re.compile(r"(What|How|Whether|Has|Have|Lets|Where|When|Who|Which|Why|Gives)\b")
_MOST_SUCH = 0.01


def test_docstrings_name_their_thing() -> None:
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
    docstrings = [
        (f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text)
        for path in _tracked(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, named) and (text := ast.get_docstring(node))
    ]
    wrong = [f"{place}: {text.splitlines()[0]}" for place, text in docstrings if _OPENINGS.match(text)]
    assert len(wrong) <= _MOST_SUCH * len(docstrings), "\n".join(wrong)
