"""`python -m service healthcheck`: exit status 0 if the service in this container is alive, for images without curl.

In: FEEDRANK_HOST, FEEDRANK_PORT, FEEDRANK_TLS_CERTIFICATE and FEEDRANK_TLS_CLIENT_CA as the service has them. What was
given as a flag is not seen here. A host that is every interface is checked on its family's loopback. Out: exit status 0
if `/healthz` answers 200 (where clients need a certificate, if the port is open), otherwise 1 and one line. The
standard library alone: it runs every few seconds.
"""

import argparse
import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

from service.process.listener import is_wildcard

SECONDS = 4.0


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Ask, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service healthcheck", description="Is the service alive?")
    parser.parse_args(arguments)
    host = environment.get("FEEDRANK_HOST") or "127.0.0.1"
    if is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    port = int(environment.get("FEEDRANK_PORT") or 8080)
    try:
        if environment.get("FEEDRANK_TLS_CLIENT_CA"):
            socket.create_connection((host, port), SECONDS).close()
            return 0
        with closing(_connection(host, port, is_tls=bool(environment.get("FEEDRANK_TLS_CERTIFICATE")))) as connection:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on port {port} of {host}: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"/healthz answered {status}", file=sys.stderr)
        return 1
    return 0


def _connection(host: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if not is_tls:
        return http.client.HTTPConnection(host, port, timeout=SECONDS)
    # The certificate names the service, not this address. Nothing is sent that would be worth reading.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)
