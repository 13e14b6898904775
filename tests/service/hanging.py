"""Two workers of an application that hangs for ever on request. What their parent logs goes to stdout.

python -m tests.service.hanging PORT
"""

import logging
import sys
import time

import uvicorn
from starlette.types import Receive, Scope, Send

from service.process.supervisor import Supervisor


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """GET / and GET /hang."""
    if scope["path"] == "/hang":
        time.sleep(3600)  # lets go of the interpreter, so that other threads of the process go on
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    config = uvicorn.Config(
        "tests.service.hanging:application",
        port=int(sys.argv[1]),
        workers=2,
        loop="uvloop",
        lifespan="off",
        log_config=None,
        log_level="error",
        timeout_worker_healthcheck=2,
    )
    with config.bind_socket() as listener:
        supervisor = Supervisor(config, [listener], end_seconds=5.0)
        supervisor.run()
    sys.exit(supervisor.exit_status)
