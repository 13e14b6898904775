"""The journal of a model as metrics of the service.

In: `<models>/<name>/journal.jsonl`, read when it has changed. Out: gauges. A journal that cannot be read leaves what
was read before.
"""

from pathlib import Path

from model.rollout.decisions import Decisions
from model.rollout.journal import Journal
from model.untrusted_files import Fingerprint, fingerprint
from service.metrics.loop_metrics import LoopMetrics


class JournalWatch:
    """The journal of one model. One thread polls. `error`, why it could not be read last, is read by all."""

    def __init__(self, name: str, folder: Path, metrics: LoopMetrics) -> None:
        self.error: str | None = None
        self._name = name
        self._metrics = metrics
        self._journal = Journal(folder)
        self._read: Fingerprint | None = None

    def poll(self) -> None:
        """Read the journal where it has changed."""
        state = fingerprint(self._journal.path)
        if state == self._read:
            return
        try:
            content = self._journal.read()
        except ValueError as error:
            self.error = str(error)
            return
        self._read, self.error = state, None
        self._metrics.set_decisions(self._name, Decisions(content.entries))
