"""A service that is asked and given new versions for a long time: it keeps neither files nor threads nor memory."""

import time
from pathlib import Path
from statistics import median

import psutil

from tests.artifacts import publish_artifact
from tests.reliability.load import Load, Truth
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

SETTLED = 2  # rounds after which everything that is made once has been made


def test_files_threads_and_memory_stay_what_they_are(tmp_path: Path) -> None:
    truth = Truth(publish_artifact(tmp_path))
    files: list[int] = []
    threads: list[int] = []
    resident: list[int] = []
    with RunningService(tmp_path, "--threads", "1") as service:
        service.wait_ready()
        process = psutil.Process(service.process.pid)
        for number in range(SETTLED + SIZES.soak_rounds):
            until = time.monotonic() + SIZES.soak_round_seconds
            with Load(service.client.base_url, clients=2) as load:
                version = publish_artifact(tmp_path, seed=number + 1)
                truth.know(version)
                load.wait_for(lambda answer, name=version.name: truth.check(answer) == name)  # type: ignore[misc]
                while time.monotonic() < until:
                    load.wait_for_more(10)
            assert {answer.status for answer in load.answers} == {200}
            for answer in load.answers:
                truth.check(answer)
            # The last connections close when the service has seen that their clients are gone.
            service.wait_for(lambda: len(process.net_connections()) == 2)  # the port, and this test's client
            if number >= SETTLED:
                files.append(process.num_fds())
                threads.append(process.num_threads())
                resident.append(process.memory_info().rss)
        assert len(set(files)) == 1, files
        assert len(set(threads)) == 1, threads
        if len(resident) >= 30:  # in fewer rounds the allocator's own steps are larger than any trend
            third = len(resident) // 3
            assert median(resident[-third:]) < 1.03 * median(resident[:third]), resident
