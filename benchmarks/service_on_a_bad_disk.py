"""The service, its impression log on a disk that is slow or full.

    python -m benchmarks.service_on_a_bad_disk slow|full FLAGS OF THE SERVICE

Every write of the log takes SLOW_SECONDS before it is done, or fails as one on a full disk does. Nothing else of the
service is touched. One worker: others would be processes that know nothing of it.
"""

import errno
import os
import sys
import time
from collections.abc import Sequence

from service.log_files.rotated_files import RotatedFiles
from service.serve import main

SLOW_SECONDS = 0.5


class SlowFiles(RotatedFiles):
    """Files on a slow disk."""

    def append(self, blocks: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Writes lines, in its own time."""
        time.sleep(SLOW_SECONDS)
        return super().append(blocks)


class FullFiles(RotatedFiles):
    """Files on a full disk."""

    def append(self, blocks: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Write nothing."""
        return 0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    import service.impressions.writer

    kinds: dict[str, type[RotatedFiles]] = {"slow": SlowFiles, "full": FullFiles}
    service.impressions.writer.RotatedFiles = kinds[sys.argv.pop(1)]  # type: ignore[attr-defined]
    sys.exit(main(sys.argv[1:]))
