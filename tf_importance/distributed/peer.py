"""Peers: several trainers, no master, no workers (Alain et al. 2015, section 6)."""

from __future__ import annotations

import collections
import queue
import time

import numpy as np
import tensorflow as tf

from tf_importance import scorers, stores
from tf_importance.arguments import positive_integer
from tf_importance.distributed.shared import SharedScores
from tf_importance.samplers.base import Visit
from tf_importance.samplers.sound import once_each

_MOST_WAITING = 1000


class Peer(SharedScores):
    """Shares what its own training steps see of their examples, and draws by what all have seen.

    Each process of `tf.distribute.MultiWorkerMirroredStrategy` has one: the strategy keeps the
    parameters the same, the store the scores. Scores are those of the step's forward pass, by the
    model's scorer, and their version is the number of the step. An example that nobody has visited
    yet is taken to have the mean score of the others.

    Args:
        num_examples, model, store: as in `SharedScores`, and so are further arguments.
        push_every: k ≥ 1, steps.
        largest_batch: examples in a batch, at most; of each process.
    Raises:
        ValueError: as `SharedScores`; or it is made under a strategy.
    """

    # Who is never drawn is never scored.
    unscored = "mean"

    def __init__(
        self,
        num_examples: int,
        model,
        store: stores.Store,
        *,
        push_every: int = 10,
        largest_batch: int = 1024,
        scorer: scorers.Scorer | None = None,
        **options,
    ) -> None:
        if tf.distribute.has_strategy():
            raise ValueError(
                "a Peer's memory is its process's own: make it outside of strategy.scope(), and "
                "compile the model with it inside."
            )
        scorer = model.scorer if scorer is None else scorer
        super().__init__(num_examples, model, store, scorer=scorer, **options)
        self._push_every = positive_integer("push_every", push_every)
        capacity = positive_integer("largest_batch", largest_batch) * self._push_every
        self._capacity = capacity
        # The last visits, in a ring.
        self.visited = tf.Variable(tf.zeros([capacity], tf.int64), trainable=False, name="visited")
        self.seen = tf.Variable(tf.zeros([capacity]), trainable=False, name="seen")
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False, name="count")
        self._waiting: queue.Queue[tuple[np.ndarray, np.ndarray, int, float]] = queue.Queue(
            _MOST_WAITING
        )
        # In a deque: tf.Module would watch a list.
        self._unsent: collections.deque[stores.Message] = collections.deque()
        self._pushed = self._step = 0

    def check_batch_size(self, batch_size: int) -> None:
        if batch_size * self._push_every > self._capacity:
            raise ValueError(
                f"largest_batch must be at least batch_size; got "
                f"{self._capacity // self._push_every} and {batch_size}."
            )

    def update(self, visit: Visit) -> tf.Tensor:
        scores, usable, _ = once_each(visit.indices, visit.scores)
        size = tf.shape(visit.indices, tf.int64)[0]
        places = ((self.count + tf.range(size)) % self._capacity)[:, tf.newaxis]
        self.visited.scatter_nd_update(places, visit.indices)
        self.seen.scatter_nd_update(places, tf.where(usable, scores, float("nan")))
        self.count.assign_add(size)
        return tf.ones_like(visit.scores)

    # The course of a training -------------------------------------------------------------

    def begin(self) -> None:
        self._pushed = int(self.count.numpy())
        super().begin()

    def maintain(self, updates: int, model) -> None:
        super().maintain(updates, model)
        if updates // self._push_every != self._step // self._push_every:
            self._hand_over(updates)
        self._step = updates

    def _hand_over(self, updates: int) -> None:
        """What the last steps saw, to be sent; if too much waits, the oldest is dropped."""
        count = int(self.count.numpy())
        first = max(self._pushed, count - self._capacity)
        places = np.arange(first, count) % self._capacity
        self._pushed = count
        if self._waiting.full():
            self._waiting.get_nowait()
        indices = tf.gather(self.visited, places).numpy()
        scores = tf.gather(self.seen, places).numpy()
        self._waiting.put((indices, scores, updates, time.monotonic()))
        self.exchange.wake()

    # In the thread ------------------------------------------------------------------------

    def _send(self) -> int:
        while self._unsent or not self._waiting.empty():
            if not self._unsent:
                # First what may fail, or it would be lost.
                offset = self.store.now() - time.monotonic()
                indices, scores, step, seen = self._waiting.get_nowait()
                self._unsent.extend(self._messages(indices, scores, step, seen + offset))
            # Sent again if this fails: that a message comes twice does no harm.
            self.store.write(list(self._unsent))
            self._unsent.clear()
        return self._step

    def _messages(self, indices, scores, version: int, when: float) -> list[stores.Message]:
        """Messages for each shard, with the last visit of each example."""
        size = self.store.layout.shard_size
        indices, last = np.unique(indices[::-1], return_index=True)
        scores = scores[::-1][last]
        sound = np.isfinite(scores)
        indices, scores = indices[sound], scores[sound]
        shards = indices // size
        return [
            stores.Message(
                int(shard),
                scores[shards == shard],
                version,
                when,
                indices[shards == shard] - shard * size,
            )
            for shard in np.unique(shards)
        ]
