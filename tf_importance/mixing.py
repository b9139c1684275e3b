"""One stream of several: strata that lie in files of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_importance import strata


def stratified(
    datasets: Sequence[tf.data.Dataset],
    prior: Sequence[float],
    *,
    shares: Sequence[float] | None = None,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Examples `(x, y, weight)` of several datasets, from each its share, weighted to the prior.

        data = tfi.stratified([frauds.shuffle(1000), others.shuffle(100_000)], prior=[0.001, 0.999])
        model.fit(data.batch(64), steps_per_epoch=1000)                    # any Keras model, or
        model.fit(data.apply(tfi.importance_sample(model, 64)), steps_per_epoch=1000)

    Each example is of dataset k with probability s_k, and weighs π_k/s_k: the mean of weighted
    gradients is the one of examples in the proportions π. Datasets are repeated, so there is no
    end; shuffle each as it needs it. Where one stream holds all, shares are learned:
    `importance_sample(…, strata=…)`.

    Args:
        datasets: two or more, unbatched, of `(x, y)` or `(x, y, sample_weight)`, all alike.
        prior: π, the part that each has of all examples; or how many there are of each.
        shares: s, which sum to 1; by default ∝ π^¼.
        seed: of the order of the datasets.
    Raises:
        TypeError: something is no dataset. ValueError: they are not alike or empty, or numbers do
            not fit.
    """
    datasets = list(datasets)
    for one in datasets:
        if not isinstance(one, tf.data.Dataset):
            raise TypeError(f"datasets must be of tf.data; got {one!r}.")
    specs = [one.element_spec for one in datasets]
    if len(datasets) < 2 or any(spec != specs[0] for spec in specs):
        raise ValueError(f"datasets must be two or more with elements alike; got {specs}.")
    if not isinstance(specs[0], tuple) or len(specs[0]) not in (2, 3):
        raise ValueError(
            f"elements must be (x, y) or (x, y, sample_weight), unbatched; got {specs[0]}."
        )
    if any(int(one.cardinality()) == 0 for one in datasets):
        raise ValueError(f"dataset {[int(d.cardinality()) for d in datasets].index(0)} is empty.")
    parts = _positive("prior", prior, len(datasets))
    parts /= parts.sum()
    if shares is None:
        chosen = strata.first_shares(tf.constant(parts, tf.float32)).numpy().astype(np.float64)
    else:
        chosen = _positive("shares", shares, len(datasets))
        if abs(chosen.sum() - 1) > 1e-6:
            raise ValueError(f"shares must sum to 1; got {list(shares)}.")

    def weighted(one: tf.data.Dataset, weight: float) -> tf.data.Dataset:
        def example(x, y, own=1.0):
            return x, y, tf.cast(own, tf.float32) * weight

        return one.repeat().map(tf.autograph.experimental.do_not_convert(example))

    each = [weighted(*pair) for pair in zip(datasets, parts / chosen)]
    return tf.data.Dataset.sample_from_datasets(each, chosen.tolist(), seed=seed)


def _positive(name: str, values: Sequence[float], count: int) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (count,) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(
            f"{name} must be {count} positive numbers, one for each dataset; got {list(values)}."
        )
    return numbers
