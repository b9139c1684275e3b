"""The master: it trains by the scores of workers (Alain et al. 2015, section 4)."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tf_importance import processes, stores
from tf_importance.arguments import positive_integer
from tf_importance.distributed import parameters
from tf_importance.distributed.shared import SharedScores
from tf_importance.samplers.base import Draw, Turn, from_all

_BARRIER_POLL_SECONDS = 0.002
_BARRIER_RETRY_SECONDS = 0.2
# A master says that it is there so often, or at each pull; after so many silences it is not.
_ALIVE_SECONDS, _SILENCES = 1.0, 3
_REPORT, _POLL_SECONDS = "master", 0.05


class _Outbox:
    """The newest snapshot; one that waits to be sent is replaced by the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: parameters.Snapshot | None = None
        self._is_due = False

    def put(self, taken: parameters.Snapshot) -> None:
        with self._lock:
            self._newest, self._is_due = taken, True

    def send_again(self) -> None:
        with self._lock:
            self._is_due = self._newest is not None

    @contextlib.contextmanager
    def sending(self) -> Iterator[parameters.Snapshot | None]:
        """What is to be sent, if anything; it remains so if the block fails."""
        with self._lock:
            taken = self._newest if self._is_due else None
            self._is_due = False
        try:
            yield taken
        except BaseException:
            self.send_again()
            raise


class Master(SharedScores):
    """Pushes its parameters every k steps, and draws by the scores that workers push back.

        sampler = tfi.distributed.Master(len(x), model, store)
        model.compile("sgd", loss, sampler=sampler)
        model.fit(tfi.history_sample((x, y), sampler, 128), epochs=20)

    Relaxed (section 4.3), it waits for nobody. Exact, there is a barrier before each draw: all n
    examples are scored with the parameters as they are, and drawn by p_i ∝ ω̃_i + c. Then it is the
    oracle of section 4.1, bit for bit, and as slow; for sanity checks. `history_sample` needs a
    seed for it, or would draw a batch ahead.

    A run has one master: a second one is refused when it begins, as long as the first says that it
    is there. One that was killed has said nothing for some seconds; that is waited for. In several
    processes of a strategy the first one is the master, and the others draw by what it has scored.

    Args:
        num_examples, model, store: as in `SharedScores`, and so are further arguments.
        publish_every: k ≥ 1, steps.
        exact: whether to wait for all scores before each draw.
        barrier_seconds: how long at most.
    Attributes:
        version: variable, of the parameters that were published last.
    """

    def __init__(
        self,
        num_examples: int,
        model,
        store: stores.Store,
        *,
        publish_every: int = 100,
        exact: bool = False,
        barrier_seconds: float = 600.0,
        **options,
    ) -> None:
        self.exact = exact
        super().__init__(num_examples, model, store, **options)
        self._publish_every = positive_integer("publish_every", publish_every)
        self._barrier_seconds = barrier_seconds
        self._fence, self._is_chief = 0, True
        # Whose word it is that a master is there.
        self._token, self._alive = float(secrets.randbelow(2**52)), float("-inf")
        self._outbox = _Outbox()
        self._last_published = -1

    def _make_state(self) -> None:
        self.version = tf.Variable(0, dtype=tf.int64, trainable=False, name="version")
        if not self.exact:
            super()._make_state()
            return
        self.usable = tf.Variable(0.0, trainable=False, name="usable")
        self.outliers = tf.Variable(0.0, trainable=False, name="outliers")
        self.scores = tf.Variable(tf.zeros([self.num_examples]), trainable=False, name="scores")
        # Draws that the barrier has let through, and those made.
        self.turns = tf.Variable([0, 0], dtype=tf.int64, trainable=False, name="turns")

    def _draw(self, turn: Turn) -> Draw:
        if not self.exact:
            return super()._draw(turn)
        turns = self.turns.assign_add([0, 1])
        ahead = "exact: a batch was drawn ahead of the step; give history_sample(…, seed=…)"
        with tf.control_dependencies([tf.debugging.assert_less_equal(turns[1], turns[0], ahead)]):
            return from_all(tf.identity(self.scores), turn)

    # The course of a training -------------------------------------------------------------

    def begin(self) -> None:
        strategy = self.model.distribute_strategy
        self._is_chief = processes.part_of(strategy).first == 0
        if self.exact and processes.are_several(strategy):
            raise ValueError(
                "exact=True waits for all scores before each draw, in one process; got a strategy "
                "of several. Give exact=False."
            )
        self._snapshot()
        super().begin()

    def _start(self) -> None:
        if self.exact:
            self.turns.assign([0, 0])
        else:
            super()._start()

    def _draw_uniformly(self) -> None:
        if not self.exact:
            super()._draw_uniformly()

    def maintain(self, updates: int, model) -> None:
        if self.exact:
            self._pass_barrier()
            return
        super().maintain(updates, model)
        turn = updates // self._publish_every
        if turn != self._last_published:
            self._last_published = turn
            self._snapshot()
            self.exchange.wake()

    def _snapshot(self) -> None:
        # Taken between steps, packed and sent beside them.
        if self._is_chief:
            self._outbox.put(parameters.snapshot(self._model().net))

    def _pass_barrier(self) -> None:
        """Publish, and wait until all examples are scored with that."""
        self._snapshot()
        end = time.monotonic() + self._barrier_seconds
        while True:
            answered = self.exchange.attempt()
            if answered and self.mirror.oldest_version() >= int(self.version.numpy()):
                break
            if time.monotonic() > end:
                raise self.store.error(
                    stores.StoreError,
                    f"not all examples were scored in {self._barrier_seconds} seconds",
                    "Start workers (--role=worker), see that the store answers, or give a larger "
                    "barrier_seconds.",
                )
            time.sleep(_BARRIER_POLL_SECONDS if answered else _BARRIER_RETRY_SECONDS)
        scores = self.mirror.known().scores
        usable = np.isfinite(scores)
        constant = self._smoothing(scores[usable]) if usable.any() else 0.0
        # A score that is none makes the draw uniform, as everywhere.
        self.scores.assign(scores + np.float32(constant))
        self.usable.assign(usable.mean())
        self.turns.assign_add([1, 0])

    # In the thread ------------------------------------------------------------------------

    def _joined(self) -> None:
        if self._is_chief:
            self._wait_for_former()
            self._fence = self.store.take_over()
            self._say_so()
            self._outbox.send_again()

    def _wait_for_former(self) -> None:
        """Until what another master has said of itself is so old that it is none any more.

        Raises:
            stores.Superseded: it says so again.
        """
        first = self._former()
        while (found := self._former()) is not None:
            if first is not None and found["time"] != first["time"]:
                raise self.store.second_master()
            time.sleep(_POLL_SECONDS)

    def _former(self) -> dict[str, float] | None:
        found = self.store.reports().get(_REPORT, {"ended": 1.0})
        if "ended" in found or found.get("token") == self._token:
            return None
        silent = self.store.now() - found["time"]
        return found if silent < _SILENCES * found.get("every", _ALIVE_SECONDS) else None

    def _say_so(self) -> None:
        if time.monotonic() - self._alive >= _ALIVE_SECONDS:
            every = max(_ALIVE_SECONDS, self._pull_seconds)
            self.store.report(_REPORT, {"token": self._token, "every": every})
            self._alive = time.monotonic()

    def end(self) -> None:
        try:
            super().end()
        finally:
            if self._is_chief and self._alive > float("-inf"):
                self._alive = float("-inf")
                with contextlib.suppress(stores.StoreError):
                    self.store.report(_REPORT, {"token": self._token, "ended": 1.0})

    def _send(self) -> int:
        if not self._is_chief:
            self.version.assign(max(int(self.version), self.mirror.newest_version()))
            return int(self.version)
        self._say_so()
        with self._outbox.sending() as taken:
            if taken is not None:
                before = int(self.version.numpy())
                version = self.store.publish(parameters.pack(taken), self._fence, before)
                if not before:
                    # A new training may find the scores of an earlier one.
                    self.mirror.first_version = version
                self.version.assign(version)
        return int(self.version.numpy())

    def _take_up(self) -> None:
        if not self.exact:
            super()._take_up()
