"""A worker: it scores the examples of a run, all the time, with the newest parameters it gets."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import fresh, random_access, scorers, stores
from tf_importance.arguments import Written, number, positive_integer
from tf_importance.distributed import description, parameters
from tf_importance.stores import base

_LOG = logging.getLogger(__name__)
# Between two looks for work, and between two tries to reach a store.
_IDLE_SECONDS = 0.02
# A worker that is started before its master says so after this.
_PATIENCE_SECONDS = 5.0
_RETRY_SECONDS = 0.2
_REPORT_SECONDS = 1.0
# Parts of a lease that a pass may take, and beyond which fewer or more are scored at once.
_LARGE, _SMALL = 1 / 4, 1 / 64
# What passes by itself, or once another process has done its part.
_PASSING = (stores.Unreachable, stores.OutOfMemory, stores.NoRun, stores.Corrupt)


class Worker(Written):
    """Pulls parameters, leases a shard, scores it, pushes the scores; and again.

    It knows the store alone, and waits for a run there. Any number of workers may join and leave a
    run at any time: the shard of one that dies or hangs is free again when its lease runs out. A
    lease is renewed while scoring goes on.

    Args:
        model: an ISModel around the same net as the master's, compiled with the same loss.
        source: as of `history_sample`, the same data in the same order as the master's.
        store: where to meet.
        name: its own, for reports; by default of host, process and a random part.
        scorer: `(model, x, y) -> [b]`.
        scored_at_once: examples in one pass, at most; fewer where that takes long for a lease.
        lease_seconds: how long others leave a shard to this worker.
        shard_size: of the run, if its master did not leave it at the default.
        progress: called with the number of examples scored, after each shard.
    Attributes:
        scored: number of examples.
    """

    def __init__(
        self,
        model: Any,
        source: Any,
        store: stores.Store,
        *,
        name: str | None = None,
        scorer: scorers.Scorer = scorers.gradient_norm,
        scored_at_once: int = 512,
        lease_seconds: float = 30.0,
        shard_size: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        fresh.check_model(model)
        base.check(store)
        fresh.check_scorer(scorer)
        self._chunk = self._at_once = positive_integer("scored_at_once", scored_at_once)
        number("lease_seconds", lease_seconds, "positive and finite", lambda s: 0 < s < math.inf)
        self._model, self._store, self._lease_seconds = model, store, lease_seconds
        self._num_examples, self._gather = random_access.opened(source)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._progress = progress
        self.description = description.describe(
            model, self._gather, self._num_examples, scorer, shard_size
        )
        self.scored = 0
        self._version = 0
        self._joined = False
        self._reported = (time.monotonic(), 0)
        self._failure = ""
        self._waits_since: float | None = None

        def scores(start, end):
            return scorer(model, *self._gather(tf.range(start, end)))

        spec = tf.TensorSpec([], tf.int64)
        self._scores = tf.function(scores, [spec, spec], autograph=False)

    def run(self, stop: threading.Event | None = None) -> None:
        """Score until told to stop, or for ever. What passes is waited for.

        Raises:
            stores.StoreError: what does not pass: a mismatch, a foreign store, no access.
        """
        stop = stop or threading.Event()
        while not stop.is_set():
            try:
                worked = self.step()
            except _PASSING as error:
                self._joined = self._joined and not isinstance(error, stores.NoRun)
                self._say(error)
                stop.wait(_RETRY_SECONDS)
            else:
                self._failure, self._waits_since = "", None
                if not worked:
                    stop.wait(_IDLE_SECONDS)

    def _say(self, error: stores.StoreError) -> None:
        """Log what is waited for, once; a run that does not stand yet may begin in a moment."""
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        begins = isinstance(error, stores.NoRun) and now - self._waits_since < _PATIENCE_SECONDS
        if str(error) != self._failure and not begins:
            self._failure = str(error)
            _LOG.warning("%s Waiting.", error)

    def step(self) -> bool:
        """Score one shard.

        Returns:
            False if there was nothing to do.
        """
        if not self._joined:
            self._store.join(self.description)
            self._joined, self._version = True, 0
        self._pull()
        if not self._version:
            return False
        lease = self._store.lease(self.name, self._version, self._lease_seconds)
        if lease is not None:
            self._score(lease)
        self._report()
        return lease is not None

    def _pull(self) -> None:
        found = self._store.parameters(self._version)
        if found is not None:
            try:
                parameters.assign(self._model.net, parameters.unpack(found.blob))
            except ValueError as error:
                raise self._store.error(
                    stores.Mismatch, f"parameters do not fit: {error}", "Start the master anew."
                ) from None
            self._version = found.version

    def _score(self, lease: stores.Lease) -> None:
        now = self._store.now()
        examples = self._store.layout.examples(lease.shard)
        scores, start = [], examples.start
        renewed = time.monotonic()
        while start < examples.stop:
            before, end = time.monotonic(), min(start + self._at_once, examples.stop)
            scores.append(np.asarray(self._scores(start, end)))
            start, elapsed = end, time.monotonic() - before
            self._resize(len(scores[-1]), elapsed / self._lease_seconds)
            if start < examples.stop and time.monotonic() - renewed > self._lease_seconds / 4:
                renewed = time.monotonic()
                if not self._store.renew(lease, self._lease_seconds):
                    return  # Another has it by now.
        message = stores.Message(
            lease.shard, np.concatenate(scores), self._version, now, lease=lease.token
        )
        self._store.write([message])
        self.scored += len(examples)
        if self._progress is not None:
            self._progress(self.scored)

    def _resize(self, count: int, share: float) -> None:
        """Score fewer at once where a pass takes much of a lease, renewed between passes."""
        if share > _LARGE:
            self._at_once = max(1, count // 2)
        elif share < _SMALL:
            self._at_once = min(self._chunk, 2 * self._at_once)

    def _report(self) -> None:
        since, before = self._reported
        elapsed = time.monotonic() - since
        if elapsed >= _REPORT_SECONDS:
            self._reported = (time.monotonic(), self.scored)
            rate = (self.scored - before) / elapsed
            numbers = {"scored": self.scored, "per_second": rate, "version": self._version}
            self._store.report(self.name, numbers)


@contextlib.contextmanager
def working(*workers: Worker) -> Iterator[None]:
    """Workers in threads of this process, until the end of the block.

    Raises:
        stores.StoreError: at the end of the block, what ended one of them before.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run(stop)
        except BaseException as error:  # raised below, where somebody waits for it
            _LOG.error("Worker %s ends: %s", worker.name, error)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(one,), name=one.name) for one in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
