"""Stratified sampling: from each class, or other part of the data, the share that is best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import keys, strata
from tf_importance.draws import Draws, Seen
from tf_importance.samplers.base import Draw, Gather, Sampler, Turn, Visit

# Visits by which shares are learned.
_TERM = 10_000


class Stratified(Sampler):
    """Draw from each stratum a share of its own; weights restore the strata's true proportions.

        sampler = tfi.samplers.Stratified()               # one stratum for each label
        model.compile("adam", loss, sampler=sampler)
        model.fit(x, y, batch_size=64)

    Where a class is rare, most of a uniform batch repeats what is known and few of its examples
    say what is not. Here a batch of b takes b s_k examples of stratum k on average, and weights
    them by π_k/s_k, π_k the stratum's part of the data. The mean gradient is that of uniform
    sampling, whatever the shares: probabilities that the net predicts need no correction. Nothing
    is scored; a step costs what it costs.

    * Shares are learned: s_k ∝ π_k σ_k, σ_k² the mean square of the scores that the stratum's
      latest examples had when they were trained on (Neyman's allocation, `tf_importance.strata`);
      no weight exceeds (1 + c)/c. As a rare class is learned its share falls, so that its few
      examples are not learned by heart.
    * Until scores are there, shares are ∝ π_k^¼: of two strata a rare one of 1 % gets 24 %, one of
      10 % gets 37 %. 64 visits to a stratum weigh as much as this first guess.
    * Within a stratum examples come pass after pass, each in a new order. How many of a batch are
      of a stratum is b s_k, rounded up or down at random.

    With fresh scores on top, draw pre-samples by it: `Fresh(B, over=Stratified())`.

    Args:
        strata: of each example, by whole numbers: an [n] array; or a function `(x, y) -> number` of
            one example, scalar or [1], which is called for each of them once. By default the
            labels: whole numbers, one-hot, or several of 0 and 1, of which an example counts to
            the rarest that it has.
        shares: fixes the shares, {stratum: share}; strata that are not named divide what is left
            as they divide the data. Learned by default.
        smoothing: c > 0.
        num_examples: n; by default that of the data.
        gain_smoothing: as in `Sampler`.
    Attributes:
        keys: [S] the strata's numbers, in order; None until the data are known.
        populations: [S] examples in each.
        shares: [S] variable, the shares by which the latest block was drawn.
    Raises:
        TypeError, ValueError: an argument is out of range, or strata are no whole numbers.
    """

    knows_at_start = True

    def __init__(
        self,
        strata: Any = None,
        *,
        shares: Mapping[int, float] | None = None,
        smoothing: float = 0.1,
        num_examples: int | None = None,
        gain_smoothing: float = 0.01,
    ) -> None:
        if not 0 < smoothing < np.inf:
            raise ValueError(f"smoothing must be positive and finite; got {smoothing!r}.")
        known = strata is not None and not callable(strata)
        self._given: Any = keys.whole_numbers(strata) if known else strata
        # The strata of all examples, as users number them.
        self._found = self._given if known else None
        self._expected: int | None = None
        self._fixed = None if shares is None else dict(shares)
        self._smoothing = smoothing
        self.keys: np.ndarray | None = None
        if num_examples is None and isinstance(self._given, np.ndarray):
            num_examples = len(self._given)
        super().__init__(None, gain_smoothing)
        if num_examples is not None:
            self.build(num_examples)

    # Which examples are in which stratum ----------------------------------------------------

    def build(self, num_examples: int) -> None:
        # As long as strata are not known it is for no number of examples yet.
        if self._found is not None:
            if len(self._found) != num_examples:
                raise ValueError(
                    f"strata has {len(self._found)} numbers, and there are {num_examples} examples."
                )
            super().build(num_examples)
        elif self.num_examples or self._expected not in (None, num_examples):
            super().build(num_examples)
        else:
            self._expected = num_examples

    def attach(self, gather: Gather) -> None:
        super().attach(gather)
        if isinstance(self._given, np.ndarray):
            return
        size = self.num_examples or self._expected
        assert size is not None, "the number of examples comes first"
        found = keys.of_all(self._given, gather, size)
        if self._found is None:
            self._found = found
            self.build(size)
        elif not np.array_equal(found, self._found):
            raise ValueError(
                "this Stratified was made for other data, whose examples are in other strata; make "
                "a new one."
            )

    def _build(self) -> None:
        found, numbers, sizes = np.unique(
            np.asarray(self._found), return_inverse=True, return_counts=True
        )
        numbers = numbers.reshape(-1)
        self.keys, self.populations = found, sizes
        prior = sizes / self.num_examples
        self._prior = tf.constant(prior, tf.float32)
        # Constants, in functions: a tf.Module takes what it holds for a part of its checkpoints.
        members = tf.constant(np.argsort(numbers, kind="stable"), tf.int64)
        starts = tf.constant(np.cumsum(sizes) - sizes, tf.int64)
        counts, of_example = tf.constant(sizes, tf.int64), tf.constant(numbers, tf.int32)
        self._members = lambda: (members, starts, counts)
        self._strata_of = lambda indices: tf.gather(of_example, indices)
        fixed = None if self._fixed is None else keys.shares_of(self._fixed, found, prior)
        self._learns = fixed is None
        first = strata.first_shares(self._prior) if fixed is None else fixed
        self.shares = _variable(tf.cast(first, tf.float32), "shares")
        self.scores = strata.Spread(len(found))
        self.positions = _variable(tf.zeros([len(found)], tf.int64), "positions")

    def __reduce__(self):
        again, (kind, args, kwargs, size, values) = super().__reduce__()
        if self.keys is not None:
            kwargs, args = {**kwargs, "strata": self._found}, ()
        return again, (kind, args, kwargs, size, values)

    # Drawing --------------------------------------------------------------------------------

    def _draw(self, turn: Turn) -> Draw:
        shares = tf.convert_to_tensor(self.shares)
        if self._learns:
            squares = self.scores.mean_squares(self._prior)
            shares = strata.neyman_shares(self._prior, squares, self._smoothing)
            self.shares.assign(shares)
        members, starts, counts = self._members()
        mixed = tf.stack([turn.seed[0] + turn.number, turn.seed[1] - 7_919 * turn.number])
        offsets = tf.random.stateless_uniform([turn.batches], mixed, dtype=tf.float64)
        points = strata.points(turn.size, offsets)
        places = strata.placed(shares, points, tf.convert_to_tensor(self.positions))
        ones = tf.ones_like(places.positions)
        self.positions.scatter_nd_add(places.strata[:, tf.newaxis], ones)
        within = strata.taken(places, counts, turn.seed)
        indices = tf.gather(members, tf.gather(starts, places.strata) + within)
        weights = tf.gather(strata.weights(self._prior, shares), places.strata)
        size = turn.examples
        return Draw(tf.ensure_shape(indices, [size]), tf.ensure_shape(weights, [size]))

    @property
    def term(self) -> int:
        return _TERM

    def informed(self) -> tf.Tensor:
        return tf.constant(True)

    def weights_of(self, indices: tf.Tensor) -> tf.Tensor:
        weights = strata.weights(self._prior, tf.convert_to_tensor(self.shares))
        return tf.gather(weights, self._strata_of(indices))

    # Remembering ----------------------------------------------------------------------------

    def update(self, visit: Visit) -> tf.Tensor:
        """Take up the visits of one batch."""
        self.scores.take_up(self._strata_of(visit.indices)[tf.newaxis], visit.scores[tf.newaxis])
        return tf.ones_like(visit.scores)

    def learn(self, draws: Draws, seen: Seen) -> None:
        self.scores.take_up(self._strata_of(draws.indices), seen.scores)
        self.gain.learn(seen.moments, tf.shape(draws.indices)[1])

    def logs(self) -> dict[str, tf.Tensor]:
        rarest = int(np.argmin(self.populations))
        return {**super().logs(), "rare_share": tf.convert_to_tensor(self.shares)[rarest]}


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
