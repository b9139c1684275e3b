"""Stratified sampling: from each class, or other part of the data, the share that is best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import keys, log_odds, strata
from tf_importance.arguments import named, number, one_of
from tf_importance.draws import Draws, Seen
from tf_importance.samplers import sum_tree
from tf_importance.samplers.base import (
    COMPARED,
    UNIFORM_SHARE,
    Draw,
    Gather,
    Sampler,
    Turn,
    Visit,
    refuse_other,
    uniform_points,
)

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

    `correction="log_odds"` leaves the weights out and moves the logits in the loss instead, by the
    log of how much more often each class is drawn than it is there (`tf_importance.log_odds`, with
    what must hold for it): of less variance, and for the data's own proportions where the net can
    be right. Shares are fixed then; metrics and batch normalization still go by weights.

    With fresh scores on top, draw pre-samples by it: `Fresh(B, over=Stratified())`. With a memory,
    `Stratified(over=RAIS())`, examples of a stratum are drawn by that, p_i ∝ v_i within it, once it
    has something to draw by; weights are 1/(n s_k p_i).

    Args:
        strata: of each example, by whole numbers: an [n] array; or a function `(x, y) -> number` of
            one example, scalar or [1], which is called for each of them once. By default the
            labels: whole numbers, one-hot, or several of 0 and 1, of which an example counts to
            the rarest that it has. Without an array all examples are read once before the first
            step, which takes long where Python reads them.
        over: a memory that draws within strata, `RAIS` or `Proportional` (of which weights are full
            ones, β = 1).
        shares: fixes the shares, {stratum: share}; strata that are not named divide what is left
            as they divide the data. Learned by default.
        correction: "weights", or "log_odds" for strata that are the labels of a cross-entropy.
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
    averages_statistics = False

    def __init__(
        self,
        strata: Any = None,
        over: Sampler | None = None,
        *,
        shares: Mapping[int, float] | None = None,
        correction: str = "weights",
        smoothing: float = 0.1,
        num_examples: int | None = None,
        gain_smoothing: float = 0.01,
    ) -> None:
        smoothing = number("smoothing", smoothing, "positive and finite", lambda c: 0 < c < np.inf)
        if isinstance(strata, type):
            raise TypeError(
                "strata must be whole numbers, or a function (x, y) -> number; got "
                f"{named(strata)}."
            )
        if shares is not None and not isinstance(shares, Mapping):
            raise TypeError(
                "shares must be a dict {stratum: share}, such as {1: 0.25}; got "
                f"{named(shares)}."
            )
        _check_correction(correction, strata, over, shares)
        self.moves_logits = correction == "log_odds"
        known = strata is not None and not callable(strata)
        self._given: Any = keys.whole_numbers(strata) if known else strata
        # The strata of all examples, as users number them.
        self._found = self._given if known else None
        self._expected: int | None = None
        self._fixed = None if shares is None else dict(shares)
        self._smoothing = smoothing
        self.memory = _checked_memory(over)
        if self.memory is not None:
            self.may_draw_ahead = self.memory.may_draw_ahead
            self.has_limits = self.memory.has_limits
        self.keys: np.ndarray | None = None
        if num_examples is None and isinstance(self._given, np.ndarray):
            num_examples = len(self._given)
        super().__init__(None, gain_smoothing)
        if num_examples is not None:
            self.build(num_examples)

    # Which examples are in which stratum ----------------------------------------------------

    def build(self, num_examples: int) -> None:
        if self.memory is not None:
            # Its n examples are those of the strata, one stratum behind the other.
            self.memory.build(num_examples)
        # As long as strata are not known it is for no number of examples yet.
        if self._found is not None:
            if len(self._found) != num_examples:
                raise ValueError(
                    f"strata must have a number for each of the {num_examples} examples; got "
                    f"{len(self._found)}."
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
        odds = np.asarray(first, np.float64) / prior
        self._odds = lambda: odds
        self.scores = strata.Spread(len(found))
        self.positions = _variable(tf.zeros([len(found)], tf.int64), "positions")
        if self.memory is not None:
            place = tf.constant(np.argsort(members.numpy()), tf.int64)
            self._places_of = lambda indices: tf.gather(place, indices)

    def __reduce__(self):
        again, (kind, args, kwargs, size, values) = super().__reduce__()
        if self.keys is not None:
            kwargs, args = {**kwargs, "strata": self._found}, ()
        return again, (kind, args, kwargs, size, values)

    def logit_shift(self, loss: Any, outputs: Any) -> tf.Tensor:
        assert self.keys is not None, "the data come first"
        return log_odds.shift(loss, outputs, self.keys, self._odds())

    # Drawing --------------------------------------------------------------------------------

    def _draw(self, turn: Turn) -> Draw:
        shares = tf.convert_to_tensor(self.shares)
        if self._learns:
            squares = self.scores.mean_squares(self._prior)
            shares = strata.neyman_shares(self._prior, squares, self._smoothing)
            self.shares.assign(shares)
        members, starts, counts = self._members()
        offsets = tf.random.stateless_uniform([turn.batches], turn.own_seed, dtype=tf.float64)
        points = strata.points(turn.size, offsets)
        places = strata.placed(shares, points, tf.convert_to_tensor(self.positions))
        ones = tf.ones_like(places.positions)
        self.positions.scatter_nd_add(places.strata[:, tf.newaxis], ones)
        first = tf.gather(starts, places.strata)
        rows = first + strata.taken(places, counts, turn.seed)
        weights = tf.gather(strata.weights(self._prior, shares), places.strata)
        if self.memory is not None:
            # By other random numbers than the offsets, which say what stratum a place is of.
            others = uniform_points(turn._replace(seed=turn.seed + 1))
            rows, factors = self._remembered(places.strata, rows, others)
            weights *= factors
        size = turn.examples
        return Draw(
            tf.ensure_shape(tf.gather(members, rows), [size]), tf.ensure_shape(weights, [size])
        )

    def _remembered(
        self, numbers: tf.Tensor, rows: tf.Tensor, points: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Which of its stratum's examples memory draws for each place, and 1/(n_k p_i).

        Those that are there, with 1, of a stratum of which memory knows nothing.

        Args:
            numbers: [N] strata. rows: [N] what stands there without a memory.
            points: [N] float64 in [0, 1).
        """
        assert self.memory is not None, "there is a memory"
        proposal = self.memory.proposal()
        tree, mixing, total = proposal
        _, starts, counts = self._members()

        def drawn() -> tuple[tf.Tensor, tf.Tensor]:
            starts_of = tree.before(starts, mixing)
            sums = tf.concat([starts_of[1:], [total]], axis=0) - starts_of
            known, sum_of = tf.gather(sums > 0, numbers), tf.gather(sums, numbers)
            spread, by_tree = sum_tree.beside(points, UNIFORM_SHARE)
            inside = (tf.gather(starts_of, numbers) + by_tree * sum_of) / total
            first, count = tf.gather(starts, numbers), tf.gather(counts, numbers)
            # Rounding must not lift a point into the next stratum.
            mine = tree.draw(tf.minimum(inside, 1 - 2.0**-45), mixing).indices
            mine = tf.clip_by_value(mine, first, first + count - 1)
            mine = tf.where(spread, rows, mine)
            leaves = tf.linalg.matvec(tf.cast(tree.leaves(mine), tf.float64), mixing)
            ratio = tf.math.divide_no_nan(tf.cast(count, tf.float64) * leaves, sum_of)
            factors = tf.cast(1 / (UNIFORM_SHARE + (1 - UNIFORM_SHARE) * ratio), tf.float32)
            return tf.where(known, mine, rows), tf.where(known, factors, 1.0)

        return tf.cond(proposal.usable, drawn, lambda: (rows, tf.ones_like(points, tf.float32)))

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
        rows = (part[tf.newaxis] for part in visit)
        self._take_up(*rows)
        if self.memory is None:
            return tf.ones_like(visit.scores)
        return self.memory.update(visit._replace(indices=self._places_of(visit.indices)))

    def remember(self, draws: Draws, seen: Seen) -> None:
        self._take_up(draws.indices, draws.weights, seen.scores, tf.equal(draws.kinds, COMPARED))
        if self.memory is not None:
            self.memory.remember(draws._replace(indices=self._places_of(draws.indices)), seen)

    def _take_up(
        self,
        indices: tf.Tensor,
        weights: tf.Tensor,
        scores: tf.Tensor,
        uniform: tf.Tensor | bool = False,
    ) -> None:
        """What steps on some batches saw: [M, b] each; uniform: [M], those that nothing drew."""
        numbers = self._strata_of(indices)
        if self.memory is None:
            self.scores.take_up(numbers, scores)
            return
        # What memory chose within its stratum counts as much less as it was more likely.
        by_strata = tf.gather(strata.weights(self._prior, self.shares), numbers)
        sizes = tf.math.divide_no_nan(weights, by_strata)
        sizes = tf.where(tf.reshape(uniform, [-1, 1]), 1.0, sizes)
        self.scores.take_up(numbers, scores, sizes)

    # Of the memory --------------------------------------------------------------------------

    def limits(self, indices: tf.Tensor) -> tf.Tensor:
        if self.memory is None:
            return super().limits(indices)
        return self.memory.limits(self._places_of(indices))

    def bind(self, model) -> None:
        super().bind(model)
        if self.memory is not None:
            self.memory.bind(model)

    def tend(self) -> None:
        if self.memory is not None:
            self.memory.tend()

    def end(self) -> None:
        if self.memory is not None:
            self.memory.end()

    def check_batch_size(self, batch_size: int) -> None:
        if self.memory is not None:
            self.memory.check_batch_size(batch_size)

    def largest_block(self, batch_size: int) -> int:
        largest = super().largest_block(batch_size)
        return (
            largest if self.memory is None else min(largest, self.memory.largest_block(batch_size))
        )

    def logs(self) -> dict[str, tf.Tensor]:
        rarest = int(np.argmin(self.populations))
        return {**super().logs(), "rare_share": tf.convert_to_tensor(self.shares)[rarest]}


def _check_correction(correction: str, strata: Any, over: Any, shares: Any) -> None:
    one_of("correction", correction, ("weights", "log_odds"))
    if correction == "log_odds" and (strata is not None or over is not None or shares is None):
        raise ValueError(
            "correction='log_odds' must go with strata by label, without a memory, with fixed "
            f"shares, such as shares={{1: 0.1}}; got strata={named(strata)}, over={named(over)}, "
            f"shares={named(shares)}."
        )


def _checked_memory(memory: Any) -> Sampler | None:
    if memory is None:
        return None
    refuse_other(memory, "a sampler of tfi.samplers, or None", "over")
    if type(memory).proposal is Sampler.proposal:
        raise ValueError(
            "over must be a memory that draws within strata, tfi.samplers.RAIS or Proportional; "
            f"got a {type(memory).__name__}. For fresh scores: Fresh(B, over=Stratified())."
        )
    return memory


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
