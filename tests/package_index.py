"""A package index on loopback whose wheels are made up: what pip meets on machines that are not this one.

In: names with versions and files. Out: the URL of a page as PEP 503 has it. Wheels are a few hundred bytes.
"""

import io
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from packaging.utils import canonicalize_name


@dataclass(frozen=True)
class Wheel:
    """One version of a package: `files` by path, or a wheel that lies on this machine's disk."""

    version: str
    files: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def name(self, package: str) -> str:
        """The file's name, by which pip tells versions apart."""
        return self.path.name if self.path else f"{package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def content(self, package: str) -> bytes:
        """The wheel."""
        if self.path is not None:
            return self.path.read_bytes()
        about = f"{package.replace('-', '_')}-{self.version}.dist-info"
        files = {
            **self.files,
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {self.version}\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = f"{about}/RECORD"
        files[record] = "".join(f"{path},,\n" for path in [*files, record])
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return made.getvalue()


@contextmanager
def package_index(packages: Mapping[str, Wheel]) -> Iterator[str]:
    """Serve the packages. Yields the index's URL."""
    known = {canonicalize_name(name): wheel for name, wheel in packages.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = re.fullmatch(r"/simple/([^/]+)/", self.path)
            file = re.fullmatch(r"/files/([^/]+)/[^/]+", self.path)
            name = (page or file or ["", ""])[1]
            if name not in known:
                self.send_error(404)
                return
            wheel = known[canonicalize_name(name)]
            link = f'<a href="/files/{name}/{wheel.name(name)}">{wheel.name(name)}</a>'
            body = link.encode() if page else wheel.content(name)
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing: pip says what went wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
