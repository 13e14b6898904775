"""A compiled package beside a version, `<models>/<name>/derived/<version>/compiled/`: checked, then loaded.

Such a package is machine code. Before any of it is loaded, its manifest must be signed where the version's must, and
belong to this very version, to this torch and to a CPU that has every instruction set of the one it was made on
(another would die of an illegal instruction). Its bytes must have the manifest's sha256. The scorer finds out whether
it answers rightly.

It has two functions: candidates by their columns, and by the sums that a catalogue has of them, in bfloat16, or, where
lists with attention have added to them, in float32.

Shapes: N candidates, D their columns, F outputs over the raw row, O outputs, X either columns or outputs of a
candidate.
"""

import hashlib
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from model.artifact.artifact import (
    Artifact,
    ArtifactError,
    DerivedManifest,
    check_sha256,
    opened,
    read_derived_manifest,
)
from model.schema import FeedSchema

FORMAT_VERSION = 2
PACKAGE = "answers.pt2"
BY_COLUMNS, BY_SUMS = "model", "sums"
# Extensions that compilers use by themselves. The kernel's other flags say nothing about code.
_X86 = re.compile(r"(?:sse|ssse|avx|amx|fma|bmi|vaes|sha|vpcl|pcl|gfni|f16c|abm|lzcnt|popcnt|movbe|adx|aes)\w*")

# Of weights and activations. `bfloat16_row`: products over the raw row in bfloat16, all behind them in float32.
Dtype = Literal["float32", "bfloat16_row", "bfloat16"]
# By the tolerance of golden requests, or by quality on kept rows (model/scorer/quality.py).
Acceptance = Literal["tolerance", "quality"]


class SpeedRatio(BaseModel):
    """CPU time as a share of another engine's: median over interleaved blocks, and its interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float
    low: float
    high: float


class Quality(BaseModel):
    """Differences of a package's answers from TorchScript's on kept rows: the largest, and the share of usual ones.

    `ne_change` by task, as a share. `overlap` is that of the tops of the default value model's rankings. None where no
    task has such an answer, or no two labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets: int
    candidates: int
    rows: int
    probability_error: float | None
    usual_probabilities: float | None
    quantity_error: float | None
    usual_quantities: float | None
    ne_change: dict[str, float | None]
    overlap: float


class CompiledManifest(DerivedManifest):
    """A package's manifest. `cpu_ms` by engine and candidates, `against_torchscript` by candidates.

    `quality` by function, of those that the tolerance would refuse. Where there is one, `tolerance` does not count."""

    kind: Literal["compiled"]
    torch: str
    machine: str
    instructions: tuple[str, ...]
    dtype: Dtype
    acceptance: Acceptance
    tolerance: float
    quality: dict[str, Quality]
    cpu_ms: dict[str, dict[str, float]]
    against_torchscript: dict[str, SpeedRatio]


class CompiledAnswers:
    """One function of a package: rows_ND or sums_NF, sums_1F -> answers_NO. As many threads as there are cores may call
    it at once, more wait. Raises OSError where there is no room for the package in the folder of temporary files."""

    def __init__(self, package: bytes, function: str = BY_COLUMNS) -> None:
        cores = len(os.sched_getaffinity(0))
        # torch loads from a path alone: a folder that no other user may write to, so what was verified is what runs.
        with tempfile.TemporaryDirectory(prefix="feedrank-compiled-") as folder:
            path = Path(folder) / PACKAGE
            path.write_bytes(package)
            # torch.inductor's own loader does the same, after importing the whole compiler.
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), function, False, cores, -1)

    def __call__(self, candidates_NX: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NO."""
        if len(candidates_NX) > 1:
            answers_NO: Tensor = self._loader.run([candidates_NX, sums_1F])[0]
            return answers_NO
        # The code is made for two candidates or more: torch.export takes 1 to be a size of its own.
        return self(candidates_NX.expand(2, -1).contiguous(), sums_1F)[:1]


def compiled_sums_dtype(schema: FeedSchema) -> torch.dtype:
    """Dtype of the sums that a package answers by."""
    return torch.float32 if schema.attentions else torch.bfloat16


def folder_of(artifact: Artifact) -> Path:
    """Folder of the compiled package of a version, if there is one."""
    return artifact.path.parent / "derived" / artifact.version / "compiled"


def open_compiled(artifact: Artifact) -> tuple[CompiledManifest, bytes]:
    """The manifest and the package's bytes, if this process may run them. Raises ArtifactError with the reason."""
    path = folder_of(artifact)
    manifest = read_derived_manifest(CompiledManifest, path, FORMAT_VERSION, artifact, "; compile again")
    if manifest.torch != str(torch.__version__):
        raise ArtifactError(f"{path}: made with torch {manifest.torch}, this is {torch.__version__}; compile again")
    lacking = sorted(set(manifest.instructions) - instructions())
    if manifest.machine != platform.machine() or lacking:
        what = ", ".join(lacking) or f"the architecture {manifest.machine}"
        raise ArtifactError(f"{path}: made for another CPU, this one lacks {what}; compile on a host of this kind")
    entry = manifest.files.get(PACKAGE)
    if entry is None:
        raise ArtifactError(f"{path}: the manifest does not list {PACKAGE}")
    with opened(path / PACKAGE, entry) as file:
        package = file.read(entry.size_bytes)
    check_sha256(path / PACKAGE, entry, hashlib.sha256(package).hexdigest())
    if any(name.startswith("amx") for name in manifest.instructions):
        torch._C._cpu._init_amx()  # the kernel grants the tiles on request only: without it the first use is fatal
    return manifest, package


def instructions() -> frozenset[str]:
    """The instruction sets of this CPU, by the kernel's names. Empty where the kernel does not show them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset(flags)
    return frozenset(flag for flag in flags if _X86.fullmatch(flag))
