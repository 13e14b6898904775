"""What happens around a service's processes while clients ask: no request fails, nothing hangs, memory is bounded."""

import signal
from pathlib import Path

import psutil
import pytest

from service.log_queue import MAX_HELD_BYTES
from tests.artifacts import publish_artifact
from tests.reliability.load import Load, Truth, metric
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

# By how much the processes of a service may grow while clients ask: buffers, and one more arena of Python's in each.
MOST_GROWN_MIB = 32


def resident_mib(service: RunningService) -> float:
    """Memory of the parent and its workers."""
    parent = psutil.Process(service.process.pid)
    return float(sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True))) / 2**20)


@pytest.mark.parametrize("workers", ["1", "2"] if SIZES.unread_answers > 10_000 else ["2"])
def test_a_reader_of_the_log_that_stops_stops_nothing(tmp_path: Path, workers: str) -> None:
    truth = Truth(publish_artifact(tmp_path))
    flags = ("--workers", workers, "--threads", "1", "--queue-seconds", "60")
    with RunningService(tmp_path, *flags) as service:
        service.wait_ready()
        service.reads.clear()
        with Load(service.client.base_url, clients=3) as load:
            load.wait_for_more(100)
            before = resident_mib(service)
            load.wait_for_more(SIZES.unread_answers)
            held = int(workers) * MAX_HELD_BYTES / 2**20
            assert resident_mib(service) < before + held + MOST_GROWN_MIB
        assert {answer.status for answer in load.answers} == {200}
        assert {truth.check(answer) for answer in load.answers[::100]} == {"1"}
        assert service.client.get("/healthz").status_code == 200
        if SIZES.unread_answers > 10_000:
            service.wait_for(lambda: metric(service.client, "ranking_log_lines_dropped_total") > 0)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=90) == 0
        service.reads.set()
        service.wait()
        assert len(service.log_lines("feedrank.requests")) > 100
