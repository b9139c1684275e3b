"""A real redis-server for tests: started, killed and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time

import pytest
import redis

NEEDS_REDIS = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="needs redis-server (apt-get install redis-server)"
)
# Bounds a hang, and no more.
_START_SECONDS = 120.0


class RedisServer:
    """One server on a free port of this machine, its files in a directory of its own.

    Args:
        *options: of redis-server, such as "--appendonly", "yes".
    """

    def __init__(self, *options: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="tfi-redis-")
        self.port = _free_port()
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
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"redis-server did not start: {' '.join(command)}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """By its own socket: on the port there may be another, if two processes chose the same."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(_START_SECONDS)
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


class Cluster:
    """A cluster of two masters, without replicas; Redis 7 or later.

    Attributes:
        nodes: its servers, of which each has a half of the slots. clients: of them.
    """

    def __init__(self) -> None:
        buses = [_free_port() for _ in range(2)]
        options = ("--cluster-enabled", "yes", "--cluster-port")
        self.nodes = [RedisServer(*options, str(bus)) for bus in buses]
        self.clients = [redis.Redis(port=node.port) for node in self.nodes]
        for client, slots in zip(self.clients, ((0, 8191), (8192, 16383))):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
        meet = ("CLUSTER", "MEET", "127.0.0.1", self.nodes[1].port, buses[1])
        self.clients[0].execute_command(*meet)
        end = time.monotonic() + _START_SECONDS
        while not all(self._is_well(client) for client in self.clients):
            if time.monotonic() > end:
                raise RuntimeError("the cluster did not come together")
            time.sleep(0.02)

    @staticmethod
    def _is_well(client) -> bool:
        return b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
