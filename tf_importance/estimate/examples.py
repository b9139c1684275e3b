"""The examples that a net is asked about, one by one, whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import element_specs, random_access

_READ_AT_ONCE = 64


def single(model: keras.Model, data: Any) -> tf.data.Dataset:
    """Single examples `(x, y)` or `(x, y, sample_weight)` of arrays, batches or a dataset.

    Args:
        model: an ISModel, whose net's inputs tell batches from examples.
        data: arrays, or what has random access, which are shuffled; a `tf.data.Dataset` of examples
            or of batches; or a Keras PyDataset of batches.
    Raises:
        TypeError, ValueError: it is something else, or has no labels.
    """
    if isinstance(data, keras.utils.Sequence):
        data = _of_batches(data.__getitem__, len(data))
    elif isinstance(data, tuple):
        data = _of_arrays(data)
    elif random_access.is_numbered(data):
        data = _of_numbers(data)
    if not isinstance(data, tf.data.Dataset):
        raise TypeError(
            "dataset must be arrays (x, y), a tf.data.Dataset, a PyDataset of batches, or have "
            f"random access; got {random_access.told(data)}."
        )
    if element_specs.is_batched(model, data.element_spec):
        data = data.unbatch()
    spec = element_specs.checked(model, data)
    if element_specs.weighs_elements(spec):
        raise ValueError(
            "estimate_gain measures examples that have one weight each; got sample weights "
            f"{spec[2]}. Leave them out: dataset.map(lambda x, y, weight: (x, y))."
        )
    return element_specs.with_scalar_weights(data)


def weighted(data: tf.data.Dataset) -> tf.data.Dataset:
    """The same as `(x, y, weight)`, 1 where there is none."""

    def example(x, y, weight=1.0):
        return x, y, tf.cast(weight, tf.float32)

    return data.map(example)


def _of_arrays(data: tuple) -> tf.data.Dataset:
    size, _ = random_access.opened(data)
    dense = tf.nest.map_structure(random_access.array, random_access.without_lists(data))
    made = tf.data.Dataset.from_tensor_slices(dense)
    return made.shuffle(size, seed=0, reshuffle_each_iteration=False)


def _of_numbers(source: Any) -> tf.data.Dataset:
    size, gather = random_access.opened(source)
    order = np.random.default_rng(0).permutation(size)
    parts = np.array_split(order, -(-size // _READ_AT_ONCE))
    return _of_batches(lambda number: gather(tf.constant(parts[number])), len(parts))


def _of_batches(batch: Callable[[int], Any], count: int) -> tf.data.Dataset:
    """Of `count` batches by their number."""

    def arrays(number: int) -> tuple:
        return tf.nest.map_structure(np.asarray, random_access.without_lists(batch(number)))

    def produce() -> Iterator[tuple]:
        for number in range(count):
            yield arrays(number)

    def of_any_length(part: np.ndarray) -> tf.TensorSpec:
        return tf.TensorSpec([None, *part.shape[1:]], part.dtype)

    signature = tf.nest.map_structure(of_any_length, arrays(0))
    return tf.data.Dataset.from_generator(produce, output_signature=signature).unbatch()
