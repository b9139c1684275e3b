"""Whether the examples of a batch have gradients of their own."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_UNKNOWN_SIZE = 8
_checked: weakref.WeakSet = weakref.WeakSet()


def require(model: keras.Model, x: Any) -> None:
    """Raise for a model in which one example's outputs depend on another: tried once for each.

    Two batches of two random examples share the first one; its outputs must be the same.

    Args:
        model: a built keras.Model.
        x: a nest of [B, …] tensors, for their shapes and types.
    Raises:
        ValueError: they are not.
    """
    if model in _checked or tf.distribute.has_strategy():
        return
    _checked.add(model)
    leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(x)]
    if any(leaf.dtype == tf.string or leaf.shape.rank in (None, 0) for leaf in leaves):
        return
    rng = np.random.default_rng(0)
    pairs = [_examples(leaf, rng) for leaf in leaves]

    def first_outputs(neighbour: int) -> list[np.ndarray]:
        batch = [tf.constant(examples[[0, neighbour]]) for examples in pairs]
        outputs = model(tf.nest.pack_sequence_as(x, batch), training=False)
        return [np.asarray(output[0]) for output in tf.nest.flatten(outputs)]

    with tf.init_scope():
        if not tf.executing_eagerly():
            return
        try:
            one, again, other = first_outputs(1), first_outputs(1), first_outputs(2)
        except (TypeError, ValueError, tf.errors.OpError):
            return  # Random examples are none of this model's; its own will show.
    if _close(one, again) and not _close(one, other):
        raise ValueError(
            f"model {model.name!r} couples the examples of a batch: the outputs of one depend on "
            "the others, so that it has no gradient of its own. Look for a reduction, "
            "normalization or softmax over axis 0 in its layers."
        )


def _examples(leaf: tf.Tensor, rng: np.random.Generator) -> np.ndarray:
    """Three examples like those of a tensor; 0 and 1 for integers, which any table has."""
    shape = [3, *(_UNKNOWN_SIZE if size is None else size for size in leaf.shape[1:])]
    if leaf.dtype.is_floating:
        return rng.normal(size=shape).astype(leaf.dtype.as_numpy_dtype)
    return rng.integers(2, size=shape).astype(leaf.dtype.as_numpy_dtype)


def _close(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Up to what another order of summation changes."""
    return all(
        np.allclose(a.astype(np.float64), b.astype(np.float64), 1e-2, 1e-3, equal_nan=True)
        for a, b in zip(one, other)
    )
