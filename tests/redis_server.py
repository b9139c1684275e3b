"""Real redis-servers for tests: one, and a cluster."""

from __future__ import annotations

import shutil
import time

import pytest
import redis

from benchmarks.redis_server import START_SECONDS, RedisServer, free_port

NEEDS_REDIS = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="needs redis-server (apt-get install redis-server)"
)


class Cluster:
    """A cluster of two masters, without replicas; Redis 7 or later.

    Attributes:
        nodes: its servers, of which each has a half of the slots. clients: of them.
    """

    def __init__(self) -> None:
        buses = [free_port() for _ in range(2)]
        options = ("--cluster-enabled", "yes", "--cluster-port")
        self.nodes = [RedisServer(*options, str(bus)) for bus in buses]
        self.clients = [redis.Redis(port=node.port) for node in self.nodes]
        for client, slots in zip(self.clients, ((0, 8191), (8192, 16383))):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
        meet = ("CLUSTER", "MEET", "127.0.0.1", self.nodes[1].port, buses[1])
        self.clients[0].execute_command(*meet)
        end = time.monotonic() + START_SECONDS
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
