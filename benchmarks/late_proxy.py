"""A proxy on loopback whose answers come late: python -m benchmarks.late_proxy PORT_OF_SERVER

In: the server's port. Each line of standard input is the seconds by which answers are late from then on. Out: its own
port, on a line of standard output. It ends with its input.
"""

import asyncio
import contextlib
import sys


class LateProxy:
    """A proxy to a port of this host."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seconds = 0.0
        self._passing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until standard input ends."""
        async with await asyncio.start_server(self._take_connection, "127.0.0.1", 0) as server:
            print(server.sockets[0].getsockname()[1], flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                self._seconds = float(line)
            for task in self._passing:
                task.cancel()

    async def _take_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
            ways = ((reader, to_server, False), (from_server, writer, True))
            for task in [asyncio.create_task(self._pass(*way)) for way in ways]:
                self._passing.add(task)
                task.add_done_callback(self._passing.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_late: bool) -> None:
        try:
            while content := await reader.read(65_536):
                if is_late and self._seconds:
                    await asyncio.sleep(self._seconds)
                writer.write(content)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


if __name__ == "__main__":
    asyncio.run(LateProxy(int(sys.argv[1])).run())
