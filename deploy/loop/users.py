"""State of the town's users: loaded once, then made by what they click.

In: the town, and what its users were reported to click. Out: the state store, filled by `load-state`, and the knowledge
that it has each hour's clicks. A town's hour takes less than the second in which the service promises to have an event
in its user's next request.
"""

from collections.abc import Mapping, Sequence
from time import monotonic, sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.child_processes import ChildError
from deploy.loop.asking import Backend
from deploy.loop.files import MODEL, LoopFiles
from deploy.loop.preparation import RunCommand
from deploy.loop.town import ACTIVITY, HISTORY, USER, Town

_STATE_SECONDS, _POLL_SECONDS = 120.0, 0.02


def load_users(files: LoopFiles, town: Town, run: RunCommand) -> None:
    """Load the activity of all users, as a warehouse would. Raises ChildError."""
    world = town.world()
    activity = pa.array(world.activity, mask=world.activity_is_null)
    pq.write_table(pa.table({USER: np.arange(town.users), ACTIVITY: activity}), files.users)
    run("service", "load-state", str(files.users), "--models", str(files.models), "--model", MODEL,
        "--state", files.state)  # fmt: skip


def wait_for_histories(backend: Backend, histories: Mapping[int, Sequence[str]]) -> None:
    """Wait until the service has these histories of users. Raises ChildError, which names the first that it has not,
    after a long while."""
    deadline = monotonic() + _STATE_SECONDS
    for user, history in histories.items():
        while (found := _history(backend.user_state(user))) != list(history):
            if monotonic() > deadline:
                raise ChildError(f"the history of user {user} is {found} and not {history}")
            sleep(_POLL_SECONDS)


def _history(state: Mapping[str, Any]) -> list[str]:
    return [entry["value"] for entry in state["append"].get(HISTORY, [])]
