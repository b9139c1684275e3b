"""How long a run of workers and a master takes to recover: python -m benchmarks.recovery

A master's exchange and a worker share a real redis-server over a line that can be cut, damaged and
led elsewhere. Each fault lasts for --fault_seconds, or happens at once; told is the time from its
end to the first score by parameters that were published after it, in the master; median and range
over --rounds. An exception that leaves the worker or the exchange ends the program.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import redis
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure
from benchmarks.redis_server import RedisServer
from benchmarks.stores import begun, data, model, publish
from reports import figures

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 5, "Of each fault.")
flags.DEFINE_float("fault_seconds", 1.0, "How long one lasts that does not end by itself.")
flags.DEFINE_integer("examples", 4_096, "n.")
flags.DEFINE_list("faults", [], "Which; all by default.")
flags.DEFINE_string("out", "runs/benchmarks/recovery.json", "Where the result goes.")

_FEATURES, _UNITS, _PULL_SECONDS = 16, ["16"], 0.1
_PATIENCE_SECONDS = 60.0


class Line:
    """A TCP line to a server, by an address that stays.

    Attributes:
        port: of its near end. to: port of the server that new connections lead to.
        is_damaged: whether replies have a byte changed. is_silent: whether nothing passes.
    """

    def __init__(self, to: int) -> None:
        self.to, self.is_damaged, self.is_silent = to, False, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        for one in [*self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more of them, either."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=[near], daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near:
            with socket.create_connection(("127.0.0.1", self.to)) as far:
                both = {near: far, far: near}
                self._open |= {*both}
                try:
                    self._forward(both, far)
                finally:
                    self._open -= {*both}

    def _forward(self, both: dict[socket.socket, socket.socket], far: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            for one in both:
                ready.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    while self.is_silent:
                        time.sleep(0.01)
                    found = key.fileobj.recv(2**16)
                    if not found:
                        return
                    if self.is_damaged and key.fileobj is far:
                        found = bytes([found[0] ^ 0x55]) + found[1:]
                    both[key.fileobj].sendall(found)


class Running(NamedTuple):
    """A run that goes on.

    Attributes:
        line: to the server. servers: two, the line leads to the first. master: its sampler.
    """

    line: Line
    servers: list[RedisServer]
    master: tfi.distributed.Master

    def client(self, number: int = 0) -> redis.Redis:
        """Of a server, past the line."""
        return redis.Redis(port=self.servers[number].port)


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """A master that publishes each tenth of a second, and a worker."""
    with contextlib.closing(RedisServer()) as first, contextlib.closing(RedisServer()) as second:
        line = Line(first.port)
        url = f"redis://127.0.0.1:{line.port}/0"
        source, store = data(FLAGS.examples, _FEATURES), tfi.stores.open_store(url, role="master")
        of_master = {"scorer": tfi.scorers.loss, "pull_seconds": _PULL_SECONDS}
        master = begun(model(_UNITS, _FEATURES), source, store, **of_master)
        worker = tfi.distributed.Worker(
            model(_UNITS, _FEATURES),
            source,
            tfi.stores.open_store(url, role="worker"),
            scorer=tfi.scorers.loss,
            lease_seconds=1.0,
        )
        ended = threading.Event()
        publishing = threading.Thread(target=_publish, args=[master, ended], daemon=True)
        publishing.start()
        try:
            with tfi.distributed.working(worker):
                yield Running(line, [first, second], master)
        finally:
            ended.set()
            publishing.join()
            with contextlib.suppress(tfi.stores.StoreError):
                master.end()
            line.close()


def _publish(master: tfi.distributed.Master, ended: threading.Event) -> None:
    while not ended.wait(_PULL_SECONDS):
        publish(master)


def fresh_after(run: Running) -> float:
    """Seconds from now to the first score of an example of which the scoring began after now.

    Raises:
        RuntimeError: there is none for long.
    """
    begun = time.perf_counter()
    # Not by the store's clock: another server has another one, and may be silent still.
    version = int(run.master.version)
    while run.master.mirror.newest_version() <= version:
        run.master.exchange.raise_failure()
        if time.perf_counter() - begun > _PATIENCE_SECONDS:
            raise RuntimeError(f"no new score came in {_PATIENCE_SECONDS:.0f} seconds.")
        time.sleep(2e-3)
    return time.perf_counter() - begun


# Faults ---------------------------------------------------------------------------------------


def nothing(run: Running) -> None:
    """None: how long it takes anyhow."""


def killed(run: Running) -> None:
    """The server is killed, and another begins in its place, empty."""
    run.servers[0].kill()
    time.sleep(FLAGS.fault_seconds)
    run.servers[0].start()


def fail_over(run: Running) -> None:
    """The replica becomes the primary, and the old one its replica, which stays alive."""
    old, new = run.client(0), run.client(1)
    new.replicaof("127.0.0.1", run.servers[0].port)
    end = time.monotonic() + _PATIENCE_SECONDS
    while new.info("replication")["master_link_status"] != "up":
        if time.monotonic() > end:
            raise RuntimeError("the replica did not follow.")
        time.sleep(0.01)
    new.replicaof("NO", "ONE")
    old.replicaof("127.0.0.1", run.servers[1].port)
    # The old connections lead to the old one still, which answers READONLY.
    run.line.to = run.servers[1].port


def restored(run: Running) -> None:
    """After a fail-over: as it was."""
    if run.line.to != run.servers[0].port:
        run.client(0).replicaof("NO", "ONE")
        run.line.to = run.servers[0].port
        run.line.cut()
        run.client(1).flushall()


def flushed(run: Running) -> None:
    """All keys are deleted."""
    run.client().flushall()


def scripts_flushed(run: Running) -> None:
    """The server forgets its scripts."""
    run.client().script_flush()


def full(run: Running) -> None:
    """The server has no memory left for a while."""
    run.client().config_set("maxmemory", 1)
    time.sleep(FLAGS.fault_seconds)
    run.client().config_set("maxmemory", 0)


def cut(run: Running) -> None:
    """All connections are cut."""
    run.line.cut()


def silent(run: Running) -> None:
    """Nothing passes the line for a while."""
    run.line.is_silent = True
    time.sleep(FLAGS.fault_seconds)
    run.line.is_silent = False


def damaged(run: Running) -> None:
    """The first byte of each reply is changed for a while."""
    run.line.is_damaged = True
    time.sleep(FLAGS.fault_seconds)
    run.line.is_damaged = False


FAULTS: dict[str, Callable[[Running], None]] = {
    one.__name__: one
    for one in (
        *(nothing, cut, silent, damaged, scripts_flushed, flushed),
        *(full, killed, fail_over),
    )
}


def main(_) -> None:
    command.shorten(rounds=1, fault_seconds=0.2, examples=256, faults=["nothing", "cut", "flushed"])
    unknown = {*FLAGS.faults} - {*FAULTS}
    if unknown:
        raise app.UsageError(f"unknown faults {sorted(unknown)}; known are {sorted(FAULTS)}.")
    found: dict[str, list[float]] = {}
    with running() as run:
        fresh_after(run)
        for name in FLAGS.faults or FAULTS:
            for _ in range(FLAGS.rounds):
                FAULTS[name](run)
                found.setdefault(name, []).append(fresh_after(run))
                restored(run)
                fresh_after(run)
                time.sleep(float(np.random.default_rng(len(found[name])).uniform(0.1, 0.4)))
            print(name, [round(seconds, 3) for seconds in found[name]], flush=True)
    rows = [
        {
            "fault": (FAULTS[name].__doc__ or "").rstrip("."),
            "seconds": f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})",
        }
        for name, each in found.items()
    ]
    measure.write(FLAGS.out, {"seconds": found})
    print(f"\n{figures.markdown(rows)}\n\nwritten to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
