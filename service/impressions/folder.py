"""The files of an impression log, by their names."""

from pathlib import Path

from service.log_files.folder import LogFolder

PREFIX = "impressions-"


def impression_files(folder: Path) -> LogFolder:
    """The files of the impression log in a folder."""
    return LogFolder(folder, PREFIX)
