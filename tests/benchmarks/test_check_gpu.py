"""`make check-gpu` on a CPU, where the device is compared with itself: its checks run, and each can fail."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check_gpu, gpu_bundle
from benchmarks.check_gpu import CHECKS, SMALL, Sizes, check_losses, checked


def test_every_check_of_a_machine_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.check_gpu", "--device", "cpu", "--limit", "3600"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    found = {name: json.loads(value) for name, _, value in lines if name in CHECKS}
    assert found.keys() == CHECKS.keys()
    assert found["losses"]["last"] < found["losses"]["first"], "it learns"
    assert found["run"]["exported"] == ["kuairand"]
    shape = found["KuaiRand's shape"]
    for precision in ("float32", "bfloat16"):
        taken = shape[precision]
        assert taken["rows"] == pytest.approx(SMALL.batch / taken["seconds"])
        share = taken["operations"] / taken["seconds"] / (1e12 * shape["peak_bfloat16_tflops"])
        assert taken["share_of_peak"] == pytest.approx(share)


def test_losses_that_differ_fail_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([[1.0, 0.5], [1.0, 0.5 * (1 + 2 * check_gpu.LOSS_TOLERANCE)]])
    monkeypatch.setattr(check_gpu, "losses", lambda config, steps: next(given))
    with pytest.raises(ValueError, match=r"a loss is off by 0\.002"):
        check_losses(tmp_path, "cpu", SMALL)


def test_a_check_ends_at_the_limit_and_the_next_is_skipped() -> None:
    def endless(folder: Path, device: str, sizes: Sizes) -> dict[str, Any]:
        threading.Event().wait()
        return {}

    ends = time.monotonic() + 0.1
    assert "the limit of all checks" in checked(endless, "cpu", SMALL, ends)["failed"]
    assert "skipped" in checked(endless, "cpu", SMALL, ends)


def test_a_bundle_has_what_the_checks_import_and_not_torch() -> None:
    names = gpu_bundle.imported()
    assert {"pydantic", "pydantic-core", "numpy", "pyarrow"} <= set(names)
    assert not {"torch", "torchrec", "fbgemm-gpu-cpu"} & set(names)


def test_a_bundle_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = tmp_path / "present.txt"
    present.write_text("Typing_Extensions==4.0\n")
    monkeypatch.setattr(sys, "argv", ["gpu_bundle", "--present", str(present), "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        gpu_bundle.main()
