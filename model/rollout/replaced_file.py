"""A small file beside a model's versions, replaced by one rename: a reader sees what was there before, or all of it."""

import logging
import tempfile
from contextlib import suppress
from pathlib import Path

from model.artifact.artifact import sync

log = logging.getLogger(__name__)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file. Raises OSError, with the file as it was."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
        place = Path(file.name)
        try:
            file.write(content)
            file.close()
            place.chmod(0o644)  # other workers, and who writes it by hand
            sync(place)
            place.replace(path)
        except OSError:
            with suppress(OSError):
                place.unlink()
            raise
    try:
        sync(path.parent)
    except OSError as error:  # the file is in force by now: only its surviving a power cut is open
        log.warning("%s: written, and may not survive a power cut (%s)", path, error.strerror)
