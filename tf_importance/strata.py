"""Strata: what share of a batch each gets, which examples fill it, and the weights. Pure functions.

A stratum k holds the part π_k of all examples. A batch of b takes c_k of its examples from it, c_k
on average b s_k, each of them uniformly among the stratum's, and weights them by π_k/s_k: the
weighted mean is an unbiased estimate of the mean over all examples, whatever the shares s are.

Its variance is least for s_k ∝ π_k σ_k (Neyman 1934), σ_k² the variance of what is averaged within
the stratum. Here σ_k² is the mean square of the scores instead: gradients of a stratum that agree
with each other must still not be missed by a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Numbers that are shuffled at once, at least.
_SHORTEST_CYCLE = 1_024
# A batch counts so much of the one behind it in the running means.
_DECAY = 0.98
# The first guess of a stratum's mean square counts as so many scores; never as none.
_GUESSED = 64.0
_LEAST_GUESSED = 1e-3
_FIRST_POWER = 0.25
_MEAN = tf.VariableAggregation.MEAN


class Places(NamedTuple):
    """What fills the places of some batches, one after another.

    Attributes:
        strata: [N] int32 of the places; in a batch they stand in their order.
        positions: [N] int64, in endless passes over each stratum's examples.
    """

    strata: tf.Tensor
    positions: tf.Tensor


def neyman_shares(
    prior: tf.Tensor, mean_squares: tf.Tensor, smoothing: float | tf.Tensor
) -> tf.Tensor:
    """s_k = (π_k σ_k/Σ_j π_j σ_j + c π_k)/(1 + c): no weight π_k/s_k exceeds (1 + c)/c.

    Args:
        prior: [S] π, which sums to 1. mean_squares: [S] σ². smoothing: c > 0.
    Returns:
        [S] shares, which sum to 1; π where nothing is known of σ.
    """
    spread = prior * tf.sqrt(mean_squares)
    total = tf.reduce_sum(spread)
    known = tf.math.is_finite(total) & (total > 0)
    best = tf.where(known, tf.math.divide_no_nan(spread, total), prior)
    return (best + smoothing * prior) / (1 + smoothing)


def first_shares(prior: tf.Tensor) -> tf.Tensor:
    """s_k ∝ π_k^¼, while nothing is known of the scores: [S]."""
    shares = prior**_FIRST_POWER
    return shares / tf.reduce_sum(shares)


class Spread(tf.Module):
    """σ_k², the running mean square of the scores in each stratum.

    Sums of squares and of counts, which fade with every batch; and with them fades what stands for
    scores that have not been seen, in proportions that make the first shares Neyman's.

    Args:
        count: S, at first where it grows. grows: with the strata that are taken up.
    Attributes:
        sums: variable, [S, 2] of squares, and of how many there were.
        guessed: variable, how many scores the guess counts as.
    """

    def __init__(self, count: int, grows: bool = False) -> None:
        super().__init__(name="spread")
        self.grows = grows
        sums, shape = tf.zeros([count, 2]), [None if grows else count, 2]
        # Of replicas the mean is what one that saw all of the batch would have.
        self.sums = tf.Variable(sums, trainable=False, name="sums", shape=shape, aggregation=_MEAN)
        self.guessed = tf.Variable(_GUESSED, trainable=False, name="guessed", aggregation=_MEAN)

    def take_up(self, strata: tf.Tensor, scores: tf.Tensor, sizes: tf.Tensor | float = 1.0) -> None:
        """What the steps on some batches saw, in their order; scores that are none are left out.

        Args:
            strata: [M, b] integers. scores: [M, b].
            sizes: [M, b], as how many an example counts; 1 but where scores have chosen it.
        """
        squares = scores**2
        known = tf.math.is_finite(squares) & (scores >= 0)
        # How many batches that say something come after each.
        says = tf.cast(tf.reduce_any(known, axis=1), tf.float32)
        after = tf.cumsum(says, exclusive=True, reverse=True)
        size = tf.where(known, (_DECAY**after)[:, tf.newaxis] * sizes, 0.0)
        rows = tf.stack([tf.where(known, squares, 0.0) * size, size], axis=-1)
        faded = _DECAY ** tf.reduce_sum(says)
        places = tf.cast(tf.reshape(strata, [-1, 1]), tf.int32)
        sums = tf.convert_to_tensor(self.sums)
        if self.grows:
            # Here, where they are written: a pipeline that runs ahead must not write them, too.
            sums = _of_size(sums, tf.maximum(tf.shape(sums)[0], tf.reduce_max(places) + 1))
        added = tf.scatter_nd(places, tf.reshape(rows, [-1, 2]), tf.shape(sums))
        self.sums.assign(faded * sums + added)
        self.guessed.assign(tf.maximum(faded * self.guessed, _LEAST_GUESSED))

    def mean_squares(self, prior: tf.Tensor) -> tf.Tensor:
        """[S] σ², by what was seen and by the guess; of strata of no part π of the data, 0."""
        sums = _of_size(tf.convert_to_tensor(self.sums), tf.size(prior))
        squares, counts = tf.unstack(sums, axis=1)
        means = tf.math.divide_no_nan(squares, counts)
        guess = tf.math.divide_no_nan(first_shares(prior), prior) ** 2
        # In units of the mean square over the strata that have been seen.
        seen = tf.where(counts > 0, prior, 0.0)
        of_guess = tf.reduce_sum(seen * guess)
        unit = tf.math.divide_no_nan(tf.reduce_sum(seen * means), of_guess)
        guessed = tf.convert_to_tensor(self.guessed)
        return (squares + guessed * tf.where(unit > 0, unit, 1.0) * guess) / (counts + guessed)


def _of_size(rows: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """The first rows, and rows of 0 where there are fewer."""
    missing = tf.maximum(size - tf.shape(rows)[0], 0)
    return tf.pad(rows[:size], [[0, missing], [0, 0]])


def drawn_square(prior: tf.Tensor, shares: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
    """V = Σ_k π_k² U_k/s_k, the second moment of a single weighted draw by shares.

    Of independent draws: what rounding b s_k spares is left out.

    Args:
        prior: [S] π. shares: [S] s. squares: [S] U_k = E[v²] within each stratum.
    Returns:
        Scalar; U for s = π, and (Σ π_k √U_k)² for the best shares.
    """
    return tf.reduce_sum(tf.math.divide_no_nan(prior**2 * squares, shares))


def weights(prior: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """π_k/s_k, which restore the prior: [S]; 0 where the share is."""
    return tf.math.divide_no_nan(prior, shares)


def points(size: int, offsets: tf.Tensor) -> tf.Tensor:
    """(i + u)/b, i = 0…b−1, for each batch: [M b] float64, systematic.

    Args:
        size: b. offsets: [M] u in [0, 1).
    """
    within = tf.range(size, dtype=tf.float64) + tf.cast(offsets, tf.float64)[:, tf.newaxis]
    return tf.reshape(within / size, [-1])


def placed(shares: tf.Tensor, points: tf.Tensor, positions: tf.Tensor) -> Places:
    """Fill places by where their points are among the cumulative shares.

    Of a batch's systematic points stratum k gets ⌊b s_k⌋ or ⌈b s_k⌉, b s_k on average.

    Args:
        shares: [S], which sum to 1. points: [N] float64 in [0, 1).
        positions: [S] int64, how many examples were taken of each stratum before.
    """
    ends = tf.cumsum(tf.cast(shares, tf.float64))
    # Rounding must not lift a point over the last stratum that has a share.
    points = tf.minimum(points, 1 - 2.0**-45) * ends[-1]
    strata = tf.cast(tf.searchsorted(ends, points, side="right"), tf.int32)
    return Places(strata, tf.gather(positions, strata) + numbered(strata))


def numbered(strata: tf.Tensor) -> tf.Tensor:
    """How many places before each are of the same stratum: [N] int64."""
    order = tf.argsort(strata, stable=True)
    in_order = tf.gather(strata, order)
    firsts = tf.searchsorted(in_order, in_order, side="left")
    numbers = tf.range(tf.size(strata)) - firsts
    return tf.cast(tf.scatter_nd(order[:, tf.newaxis], numbers, tf.shape(strata)), tf.int64)


def taken(places: Places, sizes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Which of its stratum's examples fills each place: [N] int64 in [0, size of the stratum).

    Pass after pass over each stratum, every one in an order of its own. One of less than 1,024
    examples is gone through several times in a pass: TensorFlow's shuffle of few numbers is slow
    and lopsided. Takes O(N): no permutation is ever written down.

    Args:
        places: [N]. sizes: [S] int64, all of strata with places positive. seed: [2] int64.
    """
    of_stratum = tf.maximum(tf.gather(sizes, places.strata), 1)
    cycle = of_stratum * -(-_SHORTEST_CYCLE // of_stratum)
    passes = places.positions // cycle
    # A key of its own for each pass of each stratum, of the seed's both words. Mixed: by keys that
    # differ in a few bits TensorFlow shuffles much alike.
    own = _mixed(passes + _mixed(tf.cast(places.strata, tf.int64) + seed[0]))
    seeds = tf.stack([own, _mixed(own + seed[1]), passes], axis=1)
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=places.positions % cycle, seed=seeds, max_index=cycle - 1, rounds=4
    )
    return shuffled % of_stratum


def _mixed(numbers: tf.Tensor) -> tf.Tensor:
    """int64 whose every bit depends on all of a number's (splitmix64; Steele, Lea & Flood 2014)."""
    z = tf.bitcast(numbers, tf.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = _folded(z, shift) * tf.constant(factor, tf.uint64)
    return tf.bitcast(_folded(z, 31), tf.int64)


def _folded(z: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, tf.constant(shift, tf.uint64)))
