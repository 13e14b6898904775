"""The TLS certificate that the service shows, its key, and whom it lets in: read again when the files change.

In: PEM files. Out: an `ssl.SSLContext` that a server keeps for good. A new connection uses the newest valid files, and
open ones live on. Files that are not valid leave the ones before them in force, and the log says why.
"""

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography import x509

from model.untrusted_files import PolledFile
from service.base.log import FieldLogger

_log = FieldLogger("certificates")


class _NewestContext(ssl.SSLContext):
    """Context of a server. Connections are made by `newest`."""

    newest: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """A connection, as event loops make it."""
        return self.newest.wrap_bio(*args, **kwargs)


class Certificates:
    """Certificate chain, key and, where only clients signed by one may connect, their authorities.

    What was read goes along when it is pickled: a worker that is started while files are being replaced has these.
    Raises ValueError where the files are not valid at the start."""

    def __init__(self, certificate: Path, key: Path, authorities: Path | None) -> None:
        self._files = [PolledFile(path) for path in (certificate, key, *([] if authorities is None else [authorities]))]
        for file in self._files:
            file.poll()
            if file.content is None:
                raise ValueError(f"TLS: {file.error or f'{file.path}: missing'}")
        self._valid = [file.content or b"" for file in self._files]
        self._wanted = asyncio.Event()
        self.error: str | None = None  # why the newest files are not in force
        _context_of(self._valid)

    def server_context(self, *_: object) -> ssl.SSLContext:
        """The context for the server of this process."""
        self._context = _NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.newest = _context_of(self._valid)
        self.poll()
        return self._context

    def poll(self) -> None:
        """Load files that have changed, or log why not."""
        have_changed = [file.poll() for file in self._files]
        if not any(have_changed):
            return
        contents = [file.content or b"" for file in self._files]
        reason = "; ".join(file.error for file in self._files if file.error is not None)
        try:
            if reason:
                raise ValueError(reason)
            newest = _context_of(contents)
        except ValueError as error:
            self.error = str(error)
            _log.error("TLS files refused; those before stay in force", reason=self.error)
            return
        self._valid, self._context.newest, self.error = contents, newest, None
        _log.info("TLS files read again", certificate_expires=self.expires_at)

    async def keep_newest(self, poll_seconds: float) -> None:
        """Poll for ever, in a thread."""
        while True:
            await asyncio.to_thread(self.poll)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), poll_seconds)
            self._wanted.clear()

    def poll_soon(self) -> None:
        """Poll the files before their time."""
        self._wanted.set()

    @property
    def expires_at(self) -> float:
        """Unix time at which the first certificate of the chain in force expires."""
        chain = x509.load_pem_x509_certificates(self._valid[0])
        return min(certificate.not_valid_after_utc.timestamp() for certificate in chain)


def _context_of(contents: list[bytes]) -> ssl.SSLContext:
    """A context of certificate chain, key and perhaps authorities, in PEM. Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with ExitStack() as stack:
        # OpenSSL reads files alone, and these may have changed since they were compared.
        certificate, key, *authorities = [stack.enter_context(_in_memory(content)) for content in contents]
        try:
            # Without this OpenSSL would ask for a passphrase, and wait.
            context.load_cert_chain(certificate, key, password=lambda: "")
            x509.load_pem_x509_certificates(contents[0])
        except (OSError, ValueError) as error:
            raise ValueError(f"--tls-certificate, --tls-key: not a certificate and its key in PEM ({error})") from None
        try:
            for path in authorities:
                context.load_verify_locations(path)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            raise ValueError(f"--tls-client-ca: not certificates in PEM ({error})") from None
    return context


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that is in memory alone."""
    descriptor = os.memfd_create("feedrank-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
