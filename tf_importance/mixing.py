"""One stream of several: strata that lie in files of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import fresh, graphs, marks, strata
from tf_importance.arguments import named

# Examples that are drawn by the same shares.
_BLOCK = 512
# Blocks whose shares are kept, more than a pipeline holds at a time.
_KEPT = 64
_SMOOTHING = 0.1
_GOLDEN = 0.6180339887498949


def stratified(
    datasets: Sequence[tf.data.Dataset],
    prior: Sequence[float],
    *,
    shares: Sequence[float] | None = None,
    model: Any = None,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Examples `(x, y, weight)` of several datasets, from each its share, weighted to the prior.

        data = tfi.stratified([frauds.shuffle(1000), others.shuffle(100_000)], prior=[0.001, 0.999])
        model.fit(data.batch(64), steps_per_epoch=1000)                    # any Keras model, or
        model.fit(data.apply(tfi.importance_sample(model, 64)), steps_per_epoch=1000)

    Each example is of dataset k with probability s_k, and weighs π_k/s_k: the mean of weighted
    gradients is the one of examples in the proportions π. Datasets are repeated, so there is no
    end; shuffle each as it needs it. Where one stream holds all:
    `importance_sample(…, strata=…)`.

    With an ISModel shares are learned from what its steps see, as `samplers.Stratified` says, and
    what is weighted travels in a dict that its `fit` takes:

        model.fit(tfi.stratified([frauds, others], prior, model=model).batch(64), …)

    Args:
        datasets: two or more, unbatched, of `(x, y)` or `(x, y, sample_weight)`, all alike.
        prior: π, the part that each has of all examples; or how many there are of each.
        shares: s, which sum to 1; by default ∝ π^¼, or learned.
        model: the compiled ISModel that is trained on it, for shares that are learned.
        seed: of the order of the datasets.
    Raises:
        TypeError: something is no dataset. ValueError: they are not alike or empty, or numbers do
            not fit.
    """
    # One alone would be read whole, for a list of its examples.
    if isinstance(datasets, tf.data.Dataset) or not isinstance(datasets, Iterable):
        raise TypeError(f"datasets must be a list of tf.data.Dataset; got {named(datasets)}.")
    datasets = list(datasets)
    for one in datasets:
        if not isinstance(one, tf.data.Dataset):
            raise TypeError(f"each of datasets must be a tf.data.Dataset; got {named(one)}.")
    specs = [one.element_spec for one in datasets]
    if len(datasets) < 2 or any(spec != specs[0] for spec in specs):
        raise ValueError(f"datasets must be two or more with elements alike; got {specs}.")
    if not isinstance(specs[0], tuple) or len(specs[0]) not in (2, 3):
        raise ValueError(
            f"elements must be (x, y) or (x, y, sample_weight), unbatched; got {specs[0]}."
        )
    if any(int(one.cardinality()) == 0 for one in datasets):
        empty = [int(one.cardinality()) for one in datasets].index(0)
        raise ValueError(f"dataset {empty} has no examples; leave it out.")
    parts = _positive("prior", prior, len(datasets))
    parts /= parts.sum()
    if model is not None:
        return _learned(datasets, parts, shares, model, seed)
    if shares is None:
        chosen = strata.first_shares(tf.constant(parts, tf.float32)).numpy().astype(np.float64)
    else:
        chosen = _positive("shares", shares, len(datasets))
        if abs(chosen.sum() - 1) > 1e-6:
            raise ValueError(f"shares must sum to 1; got {named(shares)}.")

    def weighted(one: tf.data.Dataset, weight: float) -> tf.data.Dataset:
        def example(x, y, own=1.0):
            return x, y, tf.cast(own, tf.float32) * weight

        return one.repeat().map(graphs.as_it_stands(example))

    each = [weighted(*pair) for pair in zip(datasets, parts / chosen)]
    return tf.data.Dataset.sample_from_datasets(each, chosen.tolist(), seed=seed)


def _learned(datasets, prior: np.ndarray, shares, model, seed: int | None) -> tf.data.Dataset:
    fresh.check_model(model)
    if shares is not None:
        raise ValueError(
            f"shares are learned with a model; got shares={named(shares)} and a model. Give either."
        )
    with model.distribute_strategy.scope():
        scores = strata.Spread(len(datasets))
    mixture = Mixture(prior, scores, seed)
    drawing = marks.Drawing(
        model=model,
        loss=model.objective.loss,
        sample_weighted=len(datasets[0].element_spec) == 3,
        reservoirs=mixture,
    )
    model.datasets.adopt(drawing)
    return marks.put(mixture.mixed(datasets), drawing)


class Mixture(tf.Module):
    """Chooses of which of S datasets each example is, by shares that are learned.

    For every 512 examples shares are made anew, by what steps have seen until then. Of which
    dataset an example is, and what it weighs, are read by two pipelines: whichever comes first
    plans a block, the other finds it planned.

    Args:
        prior: [S] π. scores: by which shares are learned. seed: of the choices.
    Attributes:
        scores: a `strata.Spread`, told of what steps see.
        shares: variable, [64, S] of the latest blocks.
        planned: variable, number of blocks.
        rare_share: variable, the latest of the stratum with the smallest part.
    """

    def __init__(self, prior: np.ndarray, scores: strata.Spread, seed: int | None) -> None:
        super().__init__(name="mixture")
        self._prior = tf.constant(prior, tf.float32)
        self._rarest = int(np.argmin(prior))
        self._seed = int(np.random.randint(2**31)) if seed is None else seed
        self.scores = scores
        rows = tf.zeros([_KEPT, len(prior)])
        self.shares = tf.Variable(rows, trainable=False, name="shares")
        self.planned = tf.Variable(0, dtype=tf.int64, trainable=False, name="planned")
        self.rare_share = tf.Variable(prior.min(), dtype=tf.float32, trainable=False)
        self.plan = tf.function(self._plan, autograph=False)

    def mixed(self, datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
        """Examples `(x, y, {"weight", "memory", "stratum"})` without an end."""
        repeated = [one.repeat() for one in datasets]

        def from_block(first: tf.Tensor) -> tf.data.Dataset:
            def planned() -> tf.data.Dataset:
                blocks = tf.data.Dataset.range(first, tf.int64.max).map(
                    graphs.as_it_stands(self.plan)
                )
                return blocks.unbatch()

            chosen = planned().map(graphs.as_it_stands(lambda stratum, weight: stratum))
            examples = tf.data.Dataset.choose_from_datasets(repeated, chosen)
            return tf.data.Dataset.zip((examples, planned())).map(graphs.as_it_stands(_told))

        once = tf.data.Dataset.from_tensors(0).map(graphs.as_it_stands(lambda _: self._next()))
        return once.flat_map(graphs.as_it_stands(from_block))

    def _next(self) -> tf.Tensor:
        return tf.identity(self.planned)

    def _plan(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Of the examples of a block: [512] int64 datasets, and [512] weights.

        By points that lie evenly in every stretch of a block, however it is batched: multiples of
        the golden ratio (Weyl 1916), from a random one on.
        """
        place = number % _KEPT

        def new() -> None:
            squares = self.scores.mean_squares(self._prior)
            shares = strata.neyman_shares(self._prior, squares, _SMOOTHING)
            self.shares.scatter_nd_update([[place]], [shares])
            self.rare_share.assign(shares[self._rarest])
            self.planned.assign(number + 1)

        tf.cond(number < self.planned, lambda: None, new)
        shares = tf.gather(self.shares, place)
        start = tf.random.stateless_uniform([], [self._seed, number], dtype=tf.float64)
        points = (start + _GOLDEN * tf.range(_BLOCK, dtype=tf.float64)) % 1.0
        positions = tf.zeros([len(self._prior)], tf.int64)
        numbers = strata.placed(shares, points, positions).strata
        weights = tf.gather(strata.weights(self._prior, shares), numbers)
        return tf.cast(numbers, tf.int64), weights


def _told(example: tuple, drawn: tuple) -> tuple:
    inputs, labels, *own = example
    stratum, weight = drawn
    told = {"weight": weight, "memory": weight, "stratum": tf.cast(stratum, tf.int32)}
    if own:
        told |= {"weight": weight * tf.cast(own[0], tf.float32), "importance": weight}
    return inputs, labels, told


def _positive(name: str, values: Sequence[float], count: int) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (count,) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(
            f"{name} must be {count} positive numbers, one for each dataset; got {named(values)}."
        )
    return numbers
