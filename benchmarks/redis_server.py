"""A redis-server of one's own: started, killed and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time

# Bounds a hang, and no more.
START_SECONDS = 120.0


class RedisServer:
    """One server on a free port of this machine, its files in a directory of its own.

    Args:
        *options: of redis-server, such as "--appendonly", "yes".
    """

    def __init__(self, *options: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="tfi-redis-")
        self.port = free_port()
        self._options = options
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> str:
        return f"{self.directory}/redis.sock"

    def start(self) -> None:
        """Start it, and wait until it answers; a loaded machine may take its time for that."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", self.directory, "--unixsocket", self.socket, "--daemonize", "no"]
        self.process = subprocess.Popen(
            [*command, *self._options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"redis-server did not start: {' '.join(command)}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """By its own socket: on the port there may be another, if two processes chose the same."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(START_SECONDS)
                line.connect(self.socket)
                line.sendall(b"PING\r\n")
                reply = line.recv(64)
        except OSError:
            return False
        return reply.startswith((b"+PONG", b"-NOAUTH"))

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
