"""Passes over a part of the data: pruning without bias (InfoBatch: Qin et al., ICLR 2024)."""

from __future__ import annotations

import tensorflow as tf

from tf_importance import inclusion
from tf_importance.arguments import number, positive_integer
from tf_importance.samplers.base import BiasedDraw, Sampler, Turn, Visit, passing
from tf_importance.samplers.sound import Judge

# Steps of a training that something else ends.
_ENDLESS = 2**62


class Inclusion(Sampler):
    """Pass after pass over a part of the data, chosen anew for each by remembered scores.

    Before a pass each example is kept with probability π_i = min(1, C (Ĝ_i + c mean(Ĝ))), Ĝ_i its
    score when it was last trained on, without replacement (`tf_importance.inclusion`). A pass over
    the kept ones, in random order, is M = share · n examples, with weights M/(n π_i): the mean
    gradient stays unbiased for given scores. Of a batch nothing is decided: it costs what a uniform
    one costs.

    * The first pass has all examples, and so has an example that was never visited in each.
    * Passes that begin in the last eighth of the training have all examples, with weights 1
      (`until`). How long the training is, `fit` says; in a loop of one's own give `batches`.
    * An epoch of `fit` has ⌈n/b⌉ batches as ever, and so more than one pass. To save time give
      fewer epochs.

    Args:
        num_examples: n; by default that of the data.
        share: of the examples that a pass keeps, in (0, 1].
        until: from this share of the training on passes are full, in [0, 1]; 1 for never.
        batches: of the whole training; by default what `fit` makes, and unknown without it: then
            no pass is full but the first.
        smoothing: c > 0. No weight exceeds (1 + c)/c.
        gain_smoothing: as in `Sampler`.
    Attributes:
        scores: [n] variable, of the latest visits; -1 where there was none.
    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_examples: int | None = None,
        share: float = 0.5,
        *,
        until: float = 0.875,
        batches: int | None = None,
        smoothing: float = 0.5,
        gain_smoothing: float = 0.01,
    ) -> None:
        self._share = number("share", share, "in (0, 1]", lambda s: 0 < s <= 1)
        self._until = number("until", until, "in [0, 1]", lambda d: 0 <= d <= 1)
        self._smoothing = number(
            "smoothing", smoothing, "positive and finite", lambda c: 0 < c < float("inf")
        )
        known = 0 if batches is None else positive_integer("batches", batches)
        self._is_known = batches is not None
        # Of the whole training; 0 where it is not known.
        self.expected = tf.Variable(known, dtype=tf.int64, trainable=False, name="expected")
        super().__init__(num_examples, gain_smoothing)

    def _build(self) -> None:
        size = self.num_examples
        self.scores = _variable(tf.fill([size], -1.0), "scores")
        # The pass before, and behind it this one: its examples in order, how many, and from which
        # position on. A training may go on in the pass before, with batches of another size.
        self.kept = _variable(tf.zeros([2 * size], tf.int64), "kept")
        self.probabilities = _variable(tf.ones([2 * size]), "probabilities")
        self.sizes_of_passes = _variable(tf.zeros([2], tf.int64), "sizes")
        self.starts = _variable(tf.zeros([2], tf.int64), "starts")
        self.passes = _variable(tf.constant(0, tf.int64), "passes")
        self.judge = Judge()

    def expect(self, batches: int) -> None:
        if not self._is_known:
            # Who trains until something else ends it says a number without end.
            self.expected.assign(min(int(self.steps) + batches, _ENDLESS))

    # Drawing --------------------------------------------------------------------------------

    def _draw(self, turn: Turn) -> BiasedDraw:
        count = tf.constant(turn.examples, tf.int64)
        positions = turn.position + tf.range(count)

        def fill(filled: tf.Tensor, before: BiasedDraw) -> tuple[tf.Tensor, BiasedDraw]:
            """With the examples of this pass, or of the next one where this one is at its end."""
            due = turn.position + filled >= self._end()
            number = turn.number + filled // turn.size
            # Both give something: a condition needs it.
            begun = tf.cond(due, lambda: self._begin(turn.seed, number), lambda: tf.constant(False))
            with tf.control_dependencies([begun]):
                end = self._end()
                here = (positions >= self.starts[1]) & (positions < end)
                drawn = self._at(positions, 1)
            now = BiasedDraw._make(tf.where(here, one, old) for one, old in zip(drawn, before))
            return tf.minimum(end - turn.position, count), now

        zero = tf.constant(0, tf.int64)
        # Positions before this pass are those of the last one.
        first = (zero, self._at(positions, 0))
        _, drawn = tf.while_loop(lambda filled, _: filled < count, fill, first)
        return BiasedDraw._make(tf.ensure_shape(part, [turn.examples]) for part in drawn)

    def _end(self) -> tf.Tensor:
        """The position behind this pass."""
        return self.starts[1] + self.sizes_of_passes[1]

    def _at(self, positions: tf.Tensor, which: int) -> BiasedDraw:
        """The examples of a pass at positions, and their weights."""
        size = self.sizes_of_passes[which]
        places = tf.math.floormod(positions - self.starts[which], tf.maximum(size, 1))
        places += which * self.num_examples
        probabilities = tf.gather(self.probabilities, places)
        memory = tf.cast(size / self.num_examples, tf.float32) / probabilities
        indices = tf.gather(self.kept, places)
        return BiasedDraw(indices, self._weights(probabilities, memory), memory)

    def _begin(self, seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """The next pass begins with batch `number`."""
        size, passes = self.num_examples, tf.identity(self.passes)
        order = passing(passes * size, size, size, seed).indices
        found = self._included(self.scores)
        found = tf.where(self._is_late(number), tf.ones_like(found), found)
        in_order = tf.gather(found, order)
        # By other random numbers than the order's.
        own = tf.stack([seed[0], -1 - seed[1] - passes])
        offset = tf.random.stateless_uniform([], own, dtype=tf.float64)
        chosen = inclusion.systematic(in_order, offset)
        for variable, values, rest in (
            (self.kept, order, 0),
            (self.probabilities, tf.cast(in_order, tf.float32), 1),
        ):
            kept = tf.boolean_mask(values, chosen)
            padding = [[0, size - tf.size(kept)]]
            padded = tf.pad(kept, padding, constant_values=rest)
            variable.assign(tf.concat([variable[size:], padded], axis=0))
        start = self._end()
        count = tf.math.count_nonzero(chosen)
        self.starts.assign(tf.stack([self.starts[1], start]))
        self.sizes_of_passes.assign(tf.stack([self.sizes_of_passes[1], count]))
        self.passes.assign(passes + 1)
        return tf.constant(True)

    def _is_late(self, number: tf.Tensor) -> tf.Tensor:
        """Whether a pass that begins with batch `number` is full."""
        expected = tf.cast(self.expected, tf.float64)
        begins = tf.cast(number, tf.float64) >= self._until * expected
        return (self._until < 1) & (expected > 0) & begins

    def _included(self, scores: tf.Tensor) -> tf.Tensor:
        """π of all examples: [n] float64."""
        return inclusion.proportional(scores, self._share, self._smoothing)

    def _weights(self, probabilities: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
        """Of kept examples, by π and by M/(n π)."""
        del probabilities
        return memory

    # Remembering ----------------------------------------------------------------------------

    def update(self, visit: Visit) -> tf.Tensor:
        seen = self.judge.once_each(visit.indices, visit.scores)
        values = tf.where(seen.usable, seen.scores, tf.gather(self.scores, visit.indices))
        self.scores.scatter_nd_update(visit.indices[:, tf.newaxis], values)
        return tf.ones_like(visit.scores)

    def logs(self) -> dict[str, tf.Tensor]:
        share = self.sizes_of_passes[1] / self.num_examples
        kept = tf.where(self.passes > 0, tf.cast(share, tf.float32), 1.0)
        return {**super().logs(), "kept": kept, "unusable": tf.identity(self.judge.unusable)}


class InfoBatch(Inclusion):
    """InfoBatch's rule: of the examples whose score is below the mean a share r is left out.

    Those that are kept of them have weight 1/(1 − r), the others 1; the last passes have all
    examples (Qin et al. 2024, sections 2.2 and 2.3). Theirs scores by the loss:
    `tfi.ISModel(net, scorer=tfi.scorers.loss)`. Weights have a mean of n/M: a pass of M examples
    goes as far as one of n, since its steps are so much longer. Metrics and the gain go by the
    weights without it, M/(n π).

    Reading of the paper: each example below the mean is left out with probability r (eq. 3), in
    the published code exactly a share of 1 − r of them is kept; systematic choice has both, but for
    rounding, up or down at random. Their mean is that of all examples, those that were never
    visited by a first guess; here it is that of those that were.

    Args:
        num_examples: n; by default that of the data.
        pruned: r in [0, 1); theirs is 0.5.
        until: δ; theirs is 0.875. batches, gain_smoothing: as in `Inclusion`.
    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_examples: int | None = None,
        pruned: float = 0.5,
        *,
        until: float = 0.875,
        batches: int | None = None,
        gain_smoothing: float = 0.01,
    ) -> None:
        pruned = number("pruned", pruned, "in [0, 1)", lambda r: 0 <= r < 1)
        self.is_biased = self.is_normalized = True
        super().__init__(
            num_examples,
            1 - pruned,
            until=until,
            batches=batches,
            gain_smoothing=gain_smoothing,
        )

    def _included(self, scores: tf.Tensor) -> tf.Tensor:
        return inclusion.soft_pruning(scores, 1 - self._share)

    def _weights(self, probabilities: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
        del memory
        return 1 / probabilities


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
