"""The socket that the service listens on, the same with one worker and with several.

In: `--host` and `--port`. Out: a bound socket that does not listen yet: connections are refused until the server
listens. `::` is every interface in both families, `0.0.0.0` every one in IPv4. A name is its first address, IPv4 before
IPv6.
"""

import ipaddress
import socket


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address, for processes to share. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and is_wildcard(host):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.set_inheritable(True)
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, host: str, *, is_tls: bool) -> str:
    """The address of the service for people: the host that was given, and the port that is taken."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if is_tls else 'http'}://{shown}:{listener.getsockname()[1]}"


def is_wildcard(host: str) -> bool:
    """True for an address that means every interface. A name does not."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
