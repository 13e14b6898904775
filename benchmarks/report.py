"""Head of every benchmark result, and its files: JSON with the raw numbers, Markdown to read."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow", "fastapi", "uvicorn", "pydantic", "msgspec")


def provenance(command: str) -> dict[str, Any]:
    """Command, commit, date, hardware and versions of a run."""
    return {
        "command": command,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def write(
    name: str, title: str, body: Sequence[str], data: dict[str, Any], command: str, *, is_compact: bool = False
) -> Path:
    """Writes results/<name>.json (`is_compact`: on one line) and .md and returns the Markdown's path."""
    about = provenance(command)
    RESULTS.mkdir(exist_ok=True)
    content = {"about": about, **data}
    text = json.dumps(content, indent=None if is_compact else 1, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    versions = ", ".join(f"{library} {version}" for library, version in about["libraries"].items() if version)
    lines = [
        f"# {title}",
        "",
        *body,
        "",
        f"Made by `{command}` at commit {about['commit']} on {about['date']}; {about['cpu']}, {about['cores']} cores; "
        f"Python {about['python']}, {versions}. Raw numbers: {name}.json.",
    ]
    path = RESULTS / f"{name}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _commit() -> str:
    """The commit that is checked out, `-dirty` where a tracked file differs from it. What a benchmark has written in
    benchmarks/results does not count."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    commit = git("describe", "--always")
    return commit + ("-dirty" if changed else "") if commit else "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{model} ({', '.join(sets) or 'no vector extension'})"
