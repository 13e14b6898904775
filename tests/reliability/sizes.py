"""Sizes of the tests: a short form that `make test` runs, and with FEEDRANK_RELIABILITY=long the whole measure."""

import os
from dataclasses import dataclass

VARIABLE = "FEEDRANK_RELIABILITY"


@dataclass(frozen=True)
class Sizes:
    """Numbers of what is done, and seconds."""

    swaps: int = 3
    overload_seconds: float = 2.0
    kills: int = 2
    rolls: int = 2
    damages: int = 100
    fuzzed: int = 160
    # Answers while nobody reads the log: beyond what a pipe holds, and beyond what the service holds.
    unread_answers: int = 600
    # Requests of clients of other kinds, twice as many of the JDK's. Then trailers of one request, and connections that
    # hold.
    posts: int = 4
    trailer_mebibytes: int = 64
    held_connections: int = 40
    # Rounds of others' work on the models folder.
    file_rounds: int = 1
    rotations: int = 1
    # Rounds after which everything that is made once has been made, and those that count.
    soak_settling: int = 2
    soak_rounds: int = 3
    soak_round_seconds: float = 0.5


def _sizes() -> Sizes:
    given = os.environ.get(VARIABLE, "short")
    if given not in ("short", "long"):
        raise ValueError(f"{VARIABLE} is '{given}'; it is 'short' or 'long'")
    if given == "short":
        return Sizes()
    return Sizes(
        swaps=20,
        overload_seconds=60,
        kills=20,
        rolls=20,
        damages=1000,
        fuzzed=20_000,
        posts=1000,
        trailer_mebibytes=300,
        held_connections=400,
        file_rounds=20,
        unread_answers=40_000,
        rotations=10,
        soak_settling=32,  # the status page keeps what it saw for five minutes
        soak_rounds=50,
        soak_round_seconds=10,
    )


SIZES = _sizes()
