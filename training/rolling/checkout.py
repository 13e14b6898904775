"""The git checkout that a comparison runs in: its commit, and whether a file is committed as it is.

What is frozen before a test day is read, and the list of readings, are worth what their place in a history is worth.
"""

import subprocess
from pathlib import Path


def commit_of_checkout(*written: Path) -> str:
    """The commit that is checked out, `-dirty` where a tracked file differs from it other than `written`, which a job
    writes itself. `unknown` outside a checkout."""
    found, top = _git("describe", "--always", "--abbrev=12", "--match="), _git("rev-parse", "--show-toplevel")
    if found is None or top is None or found.returncode or top.returncode:
        return "unknown"
    inside = [path for path in written if path.resolve().is_relative_to(Path(top.stdout.strip()).resolve())]
    left_out = [f":(exclude){path.resolve()}" for path in inside]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *left_out)
    is_clean = changed is not None and not changed.returncode and not changed.stdout.strip()
    return found.stdout.strip() + ("" if is_clean else "-dirty")


def refuse_untracked(path: Path) -> None:
    """Raise ValueError for a file that no commit has."""
    found = _git("ls-files", "--error-unmatch", "--", str(path))
    if found is None or found.returncode:
        raise ValueError(f"{path}: is in no commit, so nothing says when it was written; add it to git and commit it")


def refuse_uncommitted(path: Path) -> None:
    """Raise ValueError for a file that is in no commit, or differs from the one that is checked out."""
    refuse_untracked(path)
    found = _git("diff", "--quiet", "HEAD", "--", str(path))
    if found is None or found.returncode:
        raise ValueError(
            f"{path}: differs from what is committed; commit it, or restore it, before the test day is read"
        )


def _git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
