"""`python -m service key --name NAME --scopes score,metrics`: a new API key, and the lines of the keys file for it.

Out: the key alone on stdout, to be kept by its user, and its entry, with the hash alone, on stderr.
"""

import argparse
import sys
from collections.abc import Sequence

import yaml

from service.http.keys import Key, hash_of, random_key


def main(arguments: Sequence[str]) -> int:
    """Print both. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service key", description="Make an API key.")
    parser.add_argument("--name", required=True, help="who will have it; log lines show it")
    parser.add_argument("--scopes", default="score", help="what it opens: score, metrics, admin; several with commas")
    options = parser.parse_args(arguments)
    key = random_key()
    entry = {"name": options.name, "scopes": options.scopes.split(","), "sha256": hash_of(key)}
    try:
        Key.from_mapping(entry, "--name, --scopes")
    except ValueError as error:
        parser.error(str(error))
    print(yaml.safe_dump([entry], sort_keys=False, default_flow_style=None), end="", file=sys.stderr)
    print("add this under `keys:` in the file of --keys-file; the key follows, once", file=sys.stderr, flush=True)
    print(key)
    return 0
