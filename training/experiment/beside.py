"""Files beside experiments.yaml that an analysis reads: a version's schema, and the journal's quarantined days."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from model.artifact.artifact import FORMAT_VERSION, ArtifactError, read_manifest, versions
from model.rollout.decisions import Decisions
from model.rollout.journal import Journal
from model.schema import FeedSchema
from training.judge.observations import Span


def schema_beside(folder: Path, file: Path | None) -> FeedSchema:
    """The schema of a file, else of the newest version of a model's folder. Raises ValueError without either."""
    if file is not None:
        return FeedSchema.from_yaml(file)
    try:
        published = versions(folder.parent, folder.name)
    except OSError:
        published = []
    for version in reversed(published):
        path = folder / str(version)
        try:
            content = read_manifest(path, FORMAT_VERSION)
        except ArtifactError:
            continue
        return FeedSchema.from_mapping(content.get("schema"), str(path))
    raise ValueError(f"--schema is missing: {folder} has no version whose schema could be read")


def quarantined_days(folder: Path) -> tuple[Span, ...]:
    """Quarantined days of a model's journal, in UTC: what users did then is not to be believed."""
    days = Decisions(Journal(folder).read().entries).quarantined
    begins = [datetime.combine(day, time(), UTC) for day in days]
    return tuple((begin, begin + timedelta(days=1)) for begin in begins)
