"""What a sampler with memory is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import proposals
from tf_importance.arguments import positive_integer
from tf_importance.samplers.gain import GainEstimator

# Rows of a source by their indices [b]: (x, y), nests of [b, …].
Gather = Callable[[tf.Tensor], tuple[Any, Any]]


class Draw(NamedTuple):
    """Examples drawn from a sampler.

    Attributes:
        indices: [b] int64, with replacement.
        weights: [b] float32 importance weights, 1/(n p_i) unless the sampler says otherwise.
    """

    indices: tf.Tensor
    weights: tf.Tensor


class Visit(NamedTuple):
    """What a training step saw of its examples.

    Attributes:
        indices: [b] int64.
        weights: [b] float32, as they were drawn with.
        scores: [b] float32, of the step's own forward pass; may be NaN, infinite or negative.
    """

    indices: tf.Tensor
    weights: tf.Tensor
    scores: tf.Tensor


class Sampler(tf.Module):
    """Chooses examples by what earlier visits to them saw.

    All state is in variables: a `tf.train.Checkpoint` of a model compiled with the sampler
    holds it, and a restored sampler goes on as the first one would have, bit for bit. `draw`
    and `update` are TensorFlow operations throughout.

    Args:
        num_examples: n.
        gain_smoothing: α in (0, 1], the share of the newest batch in the averages of the gain
            ratio.
    Attributes:
        draws: variable, number of batches drawn.
        steps: variable, number of batches trained on.
        gain: a `GainEstimator`.
        may_draw_ahead: whether a batch may be drawn before the step on the last one is done.
    Raises:
        ValueError: num_examples is not a positive integer, or gain_smoothing out of range.
    """

    may_draw_ahead = True

    def __init__(self, num_examples: int, gain_smoothing: float = 0.01) -> None:
        super().__init__(name=type(self).__name__)
        self.num_examples = positive_integer("num_examples", num_examples)
        self.draws = tf.Variable(0, dtype=tf.int64, trainable=False, name="draws")
        self.steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps")
        self.gain = GainEstimator(gain_smoothing)
        self._gather: Gather | None = None

    # For each sampler to define ---------------------------------------------------------

    def _draw(self, size: int, number: tf.Tensor, seed: tf.Tensor) -> Draw:
        """Draw a batch.

        Args:
            size: b.
            number: scalar int64, how many batches were drawn before.
            seed: [2] int64, the same for all batches of a dataset.
        """
        raise NotImplementedError

    def update(self, visit: Visit) -> tf.Tensor:
        """Remember a visit; called by the training step, once its forward pass is done.

        Returns:
            [b] factors for the losses of this step, 1 for most samplers.
        """
        return tf.ones_like(visit.scores)

    @property
    def term(self) -> int:
        """Visits by which it has learned all that it can; for `weights_of`."""
        raise NotImplementedError

    def informed(self) -> tf.Tensor:
        """Whether there is something to draw by, scalar bool; for `weights_of`."""
        raise NotImplementedError

    def weights_of(self, indices: tf.Tensor) -> tf.Tensor:
        """1/(n p_i) of any examples, were they drawn now: [b] float32.

        Of a sampler that a switch can weigh against uniform batches; others have none.
        """
        raise NotImplementedError

    def record_gain(
        self, squares: tf.Tensor, weights: tf.Tensor, batch_square: tf.Tensor
    ) -> tf.Tensor:
        """The gain ratio r̂, this batch included; arguments as in `GainEstimator.record`."""
        return self.gain.record(squares, weights, batch_square)

    def maintain(self, updates: int, model) -> None:
        """What is to be done between steps, outside of the graph. Cheap when nothing is due.

        Args:
            updates: `steps`, known without a look at the variable.
            model: the ISModel in training.
        """

    def begin(self) -> None:
        """Called before the first step of a training, restored or not."""

    def end(self) -> None:
        """Called after the last step."""

    def logs(self) -> dict[str, tf.Tensor]:
        """Numbers for the training logs."""
        return {"gain": tf.identity(self.gain.ratio)}

    # For all samplers ---------------------------------------------------------------------

    def draw(self, size: int, seed) -> Draw:
        """Draw the next batch.

        Args:
            size: b.
            seed: an integer or [2] integers; batches differ by their number even so.
        """
        seed = tf.cast(seed, tf.int64)
        seed = tf.stack([seed, seed]) if seed.shape.rank == 0 else seed
        return self._draw(size, self.draws.assign_add(1) - 1, seed)

    def attach(self, gather: Gather) -> None:
        """Tell the sampler how to get examples, should it want to score some itself."""
        self._gather = gather

    @property
    def gather(self) -> Gather:
        """How to get examples, for a sampler that scores some itself.

        Raises:
            ValueError: nobody has told.
        """
        if self._gather is None:
            raise ValueError(
                f"{type(self).__name__} scores examples itself, and needs to know them: draw by a "
                "dataset of tfi.history_sample(source, sampler, …)."
            )
        return self._gather

    def check_batch_size(self, batch_size: int) -> None:
        """Raise a ValueError for a batch size that the sampler cannot work with."""


def passing(position: tf.Tensor, size: int, num_examples: int, seed: tf.Tensor) -> Draw:
    """The examples at positions of endless passes over the data, each in an order of its own.

    Without replacement within a pass, as uniform SGD usually has it, and all weights 1. Takes
    O(b): no permutation is ever written down.

    Args:
        position: scalar int64, of the first one. size: b. num_examples: n. seed: [2] int64.
    """
    positions = position + tf.range(size, dtype=tf.int64)
    passes = positions // num_examples
    seeds = tf.stack([tf.fill([size], seed[0]), tf.fill([size], seed[1]), passes], axis=1)
    within = positions % num_examples
    if num_examples > 1:
        # tf.random.experimental.index_shuffle pads the seeds, and refuses one for each index.
        within = tf.raw_ops.RandomIndexShuffle(
            index=within, seed=seeds, max_index=tf.constant(num_examples - 1, tf.int64), rounds=4
        )
    return Draw(tf.ensure_shape(within, [size]), tf.ones([size]))


def uniform_points(size: int, number: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """[b] float64 in [0, 1) of batch `number`."""
    mixed = tf.stack([seed[0] + number, seed[1] - 7_919 * number])
    return tf.random.stateless_uniform([size], mixed, dtype=tf.float64)


def from_all(scores: tf.Tensor, size: int, number: tf.Tensor, seed: tf.Tensor) -> Draw:
    """Draw by p_i ∝ the scores [n] of all examples, uniformly where they are unusable: O(n)."""
    proposal = proposals.normalize(tf.cast(scores, tf.float64))
    ends = tf.cumsum(proposal)
    points = uniform_points(size, number, seed) * ends[-1]
    indices = tf.searchsorted(ends, tf.minimum(points, ends[-1] * (1 - 2.0**-50)), side="right")
    weights = tf.gather(proposals.importance_weights(proposal), indices)
    return Draw(tf.cast(indices, tf.int64), tf.cast(weights, tf.float32))


def once_each(visit: Visit) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What a batch saw of each example, where one may stand in it several times.

    Returns:
        scores: [b] the mean of the usable scores of the same example, at each of its places.
        usable: [b] whether there is one.
        share: [b] 1/(how often the example stands in the batch).
    """
    same = tf.cast(visit.indices[:, tf.newaxis] == visit.indices[tf.newaxis], tf.float32)
    scores = tf.cast(visit.scores, tf.float32)
    sound = tf.math.is_finite(scores) & (scores >= 0)
    sums = tf.linalg.matmul(
        same, tf.stack([tf.where(sound, scores, 0.0), tf.cast(sound, tf.float32)], axis=1)
    )
    means = tf.math.divide_no_nan(sums[:, 0], sums[:, 1])
    return means, sums[:, 1] > 0, 1 / tf.reduce_sum(same, axis=1)


def check(sampler: Any, replicas: int) -> None:
    """Refuse what a model cannot be compiled with.

    Raises:
        TypeError: not None and not a sampler.
        ValueError: a sampler for several replicas.
    """
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be one of tfi.samplers, or None; got {sampler!r}.")
    if sampler is not None and replicas > 1:
        raise ValueError(
            "samplers with memory work on one replica of a process, since all would write to one "
            f"memory; got a strategy of {replicas}. importance_sample works on several, and "
            "tfi.distributed.Peer on one in each of several processes."
        )


class Drawn(NamedTuple):
    """What a pipeline of this package says of a batch, beside (x, y).

    Attributes:
        weight: [b] what the loss is weighted by.
        indices: [b] of the examples in the source, by `history_sample`.
        importance: [b] the part of the weights that sampling has multiplied into them.
        gain: [b] the predicted gain ratio r of the batch, the same for all.
        presample: `{"index", "weight", "score"}`, [B] each, of the pre-sample that a sampler drew
            and the batch was drawn from.
        place: [b] of the examples in that pre-sample.
        memory: [b] 1/(n p_i) of the sampler's proposal, whether it drew them or not.
        remember: [b] whether the sampler is to be told of the batch, the same for all; under a
            switch.
        seed: [b, 2] of a group that the step is to draw from itself, the same for all.
    """

    weight: tf.Tensor
    indices: tf.Tensor | None = None
    importance: tf.Tensor | None = None
    gain: tf.Tensor | None = None
    presample: dict[str, tf.Tensor] | None = None
    place: tf.Tensor | None = None
    memory: tf.Tensor | None = None
    remember: tf.Tensor | None = None
    seed: tf.Tensor | None = None


def is_drawn(data) -> bool:
    """Whether a batch, or the element_spec of a dataset, is one of `history_sample`."""
    return _is_ours(data) and "index" in data[2]


def weight_of(third):
    """The weights, of a batch's third part as a pipeline or a user made it."""
    return third["weight"] if isinstance(third, dict) and "weight" in third else third


def is_group(data) -> bool:
    """Whether data is for the step to score and draw from."""
    return _is_ours(data) and "seed" in data[2]


def split(data) -> tuple[Any, Drawn | None]:
    """A batch as (x, y, weight) and, where a pipeline of ours made it, all that it says."""
    if not _is_ours(data):
        return data, None
    told = {("indices" if key == "index" else key): part for key, part in data[2].items()}
    return (*data[:2], told["weight"]), Drawn(**told)


def _is_ours(data) -> bool:
    has_dict = isinstance(data, tuple) and len(data) == 3 and isinstance(data[2], dict)
    return has_dict and "weight" in data[2] and set(data[2]) <= {"index", *Drawn._fields}
