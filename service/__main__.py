"""`python -m service --models DIR`: serve published models. With a verb, another job of its operator.

    python -m service --help              the flags of the service
    python -m service labels MODEL JSON   labels of a model, without the admin API
    python -m service key --name NAME     an API key
    python -m service replay LOG...       logged requests under another value model or version
    python -m service parquet DIR         Parquet of an impression log
    python -m service load-state          users of Parquet files, into the state store
    python -m service ship                closed files of the logs to where they are shipped
    python -m service healthcheck         exit status 0 if the service in this container is alive

A verb imports what it needs and no more: a health check runs every few seconds.
"""

import sys
from collections.abc import Callable, Sequence

# The arguments behind the verb -> the exit status.
Job = Callable[[Sequence[str]], int]


def main(arguments: Sequence[str]) -> int:
    """Run a verb, or serve. Returns the exit status."""
    job: Job
    match arguments:
        case ["healthcheck", *rest]:
            from service.process.healthcheck import main as job
        case ["parquet", *rest]:
            from service.impressions.to_parquet import main as job
        case ["load-state", *rest]:
            from service.state.load_state import main as job
        case ["ship", *rest]:
            from service.ship.command import main as job
        case ["key", *rest]:
            from service.http.new_key import main as job
        case ["labels", *rest]:
            from service.models.label_command import main as job
        case ["replay", *rest]:
            from service.replay.replay import main as job
        case rest:
            from service.serve import main as job
    return job(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
