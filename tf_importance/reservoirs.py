"""Strata of a stream: the latest examples of each, and how often each comes."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import strata

# Strata that there is room for where several replicas tell of their scores.
_MOST = 1_024
_TOO_MANY = (
    f"under a strategy of several replicas there may be {_MOST} strata; give a coarser function."
)
# Examples by which the prior is counted, about: what came before them fades.
_HORIZON = 200_000.0


class Exchanged(NamedTuple):
    """What leaves the reservoirs for some examples that came in, as many.

    Attributes:
        examples: a nest of [B, …].
        weights: [B] float32, π_k/s_k.
        strata: [B] int32, the strata by the order in which they first came.
    """

    examples: Any
    weights: tf.Tensor
    strata: tf.Tensor


class Reservoirs(tf.Module):
    """Takes examples in and gives as many out, from each stratum its share.

    The latest R examples of every stratum are kept, in rings. What leaves is drawn from all that
    are there: each as likely as the others of its stratum, pass after pass. As many leave as came,
    so that the rare are given out again and again, and of the frequent some never. For given
    contents the weighted mean of what leaves estimates Σ_k π_k · (mean of ring k), whatever the
    shares; π is counted, over the latest 200,000 examples or so.

    A stratum that has not come yet has no part in it.

    Memory: R examples for every stratum, allocated as they come; up to twice as many strata have
    room.

    Args:
        spec: a nest of `tf.TensorSpec` of one example, of known shape.
        capacity: R. batch_size: b; what leaves is stratified b by b. smoothing: c > 0.
        seed: of the orders within strata. scores: by which shares are learned.
    Attributes:
        count: variable, S, how many strata have come.
        keys: variable, [≥ S] int64 the strata as users number them.
        scores: a `strata.Spread`, told of what steps see.
        shares: variable, [≥ S] by which the latest left.
        rare_share: variable, that of the stratum that comes most rarely.
    """

    def __init__(
        self,
        spec: Any,
        capacity: int,
        batch_size: int,
        smoothing: float,
        seed: int,
        scores: strata.Spread | None = None,
    ) -> None:
        super().__init__(name="reservoirs")
        self._capacity, self._batch_size, self._smoothing = capacity, batch_size, smoothing
        self._seed = seed
        self.count = tf.Variable(0, trainable=False, name="count")
        self.keys = _growing(tf.int64, "keys")
        self.came = _growing(tf.float64, "came")
        self.stored = _growing(tf.int64, "stored")
        self.positions = _growing(tf.int64, "positions")
        self.shares = _growing(tf.float32, "shares")
        self.rare_share = tf.Variable(1.0, trainable=False, name="rare_share")
        self.scores = scores_of(1) if scores is None else scores
        self.rings = [
            _growing(leaf.dtype, f"ring{number}", leaf.shape)
            for number, leaf in enumerate(tf.nest.flatten(spec))
        ]
        self.exchange = tf.function(self._exchange, autograph=False)

    def _exchange(self, examples: Any, numbers: tf.Tensor, seed: tf.Tensor) -> Exchanged:
        """Take examples in, and give as many out.

        Args:
            examples: a nest of [B, …]. numbers: [B] int64, the strata as users number them.
            seed: [2] integers.
        """
        known = self._known(numbers)
        self._take_in(tf.nest.flatten(examples), known)
        prior = tf.cast(self.came / tf.reduce_sum(self.came), tf.float32)
        shares = strata.neyman_shares(prior, self.scores.mean_squares(prior), self._smoothing)
        self.shares.assign(shares)
        self.rare_share.assign(tf.gather(shares, tf.argmin(tf.where(prior > 0, prior, 2.0))))
        points = self._points(tf.size(numbers), seed)
        places = strata.placed(shares, points, tf.convert_to_tensor(self.positions))
        ones = tf.ones_like(places.positions)
        self.positions.scatter_nd_add(places.strata[:, tf.newaxis], ones)
        there = tf.minimum(tf.convert_to_tensor(self.stored), self._capacity)
        order = tf.constant([self._seed, 0], tf.int64)
        rows = self._row(places.strata, strata.taken(places, there, order))
        given = [tf.gather(ring, rows) for ring in self.rings]
        for part, ring in zip(given, self.rings):
            part.set_shape([numbers.shape[0], *ring.shape[1:]])
        weights = tf.gather(strata.weights(prior, shares), places.strata)
        return Exchanged(tf.nest.pack_sequence_as(examples, given), weights, places.strata)

    def _points(self, size: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Systematic points of each b places, the last of which may be fewer, in random order.

        In the order of their strata a strategy would give all of one to the same replica.
        """
        batches = -(-size // self._batch_size)
        offsets = tf.random.stateless_uniform([batches], seed, dtype=tf.float64)
        places = tf.range(size)
        batch = places // self._batch_size
        of_batch = tf.minimum(self._batch_size, size - batch * self._batch_size)
        within = tf.cast(places % self._batch_size, tf.float64) + tf.gather(offsets, batch)
        others = tf.random.stateless_uniform([size], seed + [0, 1], dtype=tf.float64)
        mixed = tf.argsort(tf.cast(batch, tf.float64) + others)
        return tf.gather(within / tf.cast(of_batch, tf.float64), mixed)

    def _row(self, numbers: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        return tf.cast(numbers, tf.int64) * self._capacity + places

    # What comes in --------------------------------------------------------------------------

    def _known(self, numbers: tf.Tensor) -> tf.Tensor:
        """[B] int32, the strata by the order in which they first came; new ones get room."""
        found, places = tf.unique(numbers)
        before = tf.convert_to_tensor(self.count)
        new = tf.boolean_mask(found, tf.reduce_all(found[:, tf.newaxis] != self._keys(), axis=1))
        count, room = before + tf.size(new), tf.size(self.keys)
        tf.cond(count > room, lambda: self._grow(tf.maximum(2 * room, count)), lambda: None)
        self.count.assign(count)
        self.keys.scatter_nd_update(tf.range(before, count)[:, tf.newaxis], new)
        matches = tf.equal(found[:, tf.newaxis], self._keys())
        return tf.gather(tf.argmax(matches, axis=1, output_type=tf.int32), places)

    def _keys(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.keys)[: tf.convert_to_tensor(self.count)]

    def _grow(self, room: tf.Tensor) -> None:
        """Make room for more strata, of 0 examples as yet."""
        more = room - tf.size(self.keys)
        of_strata = [self.keys, self.came, self.stored, self.positions, self.shares]
        if not self.scores.grows:
            tf.debugging.assert_less_equal(tf.size(self.keys) + 1, _MOST, _TOO_MANY)
        rows = [(variable, 1) for variable in of_strata]
        for variable, each in rows + [(ring, self._capacity) for ring in self.rings]:
            rest = tf.zeros([more * each, *variable.shape[1:]], variable.dtype)
            variable.assign(tf.concat([variable, rest], axis=0))

    def _take_in(self, examples: list[tf.Tensor], known: tf.Tensor) -> None:
        stored = tf.convert_to_tensor(self.stored)
        places = (tf.gather(stored, known) + strata.numbered(known)) % self._capacity
        rows = self._row(known, places)
        for ring, part in zip(self.rings, examples):
            ring.scatter_nd_update(rows[:, tf.newaxis], part)
        arrived = tf.math.bincount(known, minlength=tf.size(stored), dtype=tf.int64)
        self.stored.assign(stored + arrived)
        came = self.came + tf.cast(arrived, tf.float64)
        self.came.assign(came / tf.maximum(tf.reduce_sum(came) / _HORIZON, 1.0))


def scores_of(replicas: int) -> strata.Spread:
    """What is told of scores; of one replica it grows as strata come."""
    return strata.Spread(0, grows=True) if replicas == 1 else strata.Spread(_MOST)


def _growing(dtype, name: str, shape=()) -> tf.Variable:
    """A variable of 0 rows, for any number of them."""
    initial = tf.zeros([0, *shape], dtype)
    return tf.Variable(initial, trainable=False, name=name, shape=[None, *shape])
