"""Whether the examples of a batch have gradients of their own."""

from __future__ import annotations

import concurrent.futures
import math
import warnings
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import coupling
from tf_importance.scorers.norms import plan, recording

_foreign: weakref.WeakKeyDictionary[keras.Model, frozenset[int]] = weakref.WeakKeyDictionary()


def require(model: keras.Model, x: Any) -> frozenset[int]:
    """Raise for a model in which one example's outputs depend on another: tried once for each.

    Two batches of two random examples share the first one; its outputs must be the same. Inside
    the model the first axis need not be the batch's: time may be folded into it, or it may be
    turned around. What layers note there is of no use.

    Args:
        model: a built keras.Model.
        x: a nest of [B, …] tensors, for their shapes and types.
    Returns:
        The ids of variables that are used where the first axis is not the batch's.
    Raises:
        ValueError: an example's outputs depend on another.
    """
    if model in _foreign or tf.distribute.has_strategy():
        return _foreign.get(model, frozenset())
    leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(x)]
    if any(leaf.dtype == tf.string or leaf.shape.rank in (None, 0) for leaf in leaves):
        return frozenset()
    rng = np.random.default_rng(0)
    pairs = [coupling.examples_like(3, leaf.shape[1:], leaf.dtype, rng) for leaf in leaves]

    def seen(neighbour: int) -> tuple[list[np.ndarray], list[recording.Use]]:
        batch = [tf.constant(examples[[0, neighbour]]) for examples in pairs]
        return _run(model, tf.nest.pack_sequence_as(x, batch))

    # In a thread of its own: eager, with a tape, whatever is being traced here.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(1) as thread:
        warnings.simplefilter("ignore")
        try:
            one, again, other = (thread.submit(seen, number).result() for number in (1, 1, 2))
        except (TypeError, ValueError, tf.errors.OpError):
            return frozenset()  # Random examples are none of this model's; its own will show.
    _foreign[model] = frozenset()
    if coupling.are_close(one[0], again[0]):
        if not coupling.are_close(one[0], other[0]):
            del _foreign[model]
            raise ValueError(
                f"model {model.name!r} couples the examples of a batch: the outputs of one depend "
                "on the others, so that it has no gradient of its own. Look for a reduction, "
                "normalization or softmax over axis 0 in its layers."
            )
        _foreign[model] = _variables_of_others(again[1], other[1])
    return _foreign[model]


def _run(model, batch) -> tuple[list[np.ndarray], list[recording.Use]]:
    """The first example's outputs, and the uses of variables that they depend on."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        recorder = recording.Recorder(tape, model.weights)
        with recording.intercepted(plan.handlers(model, model.weights), recorder):
            outputs = tf.nest.flatten(model(batch, training=False))
    found = [np.asarray(output[0]) for output in outputs]
    deltas = iter(tape.gradient(outputs, [part for use in recorder.uses for part in use.outputs]))
    # A call for its shape or its mask alone, of which nothing reaches the outputs, says nothing.
    reaching = [[next(deltas) is not None for _ in use.outputs] for use in recorder.uses]
    return found, [use for use, reaches in zip(recorder.uses, reaching) if any(reaches)]


def _variables_of_others(uses, others) -> frozenset[int]:
    """Variables of uses whose first entries are not the first example's alone."""
    found: set[int] = set()
    for use, other in zip(uses, others):
        steps = math.prod(int(step) for step in use.steps)
        one, another = _first(use, steps), _first(other, steps)
        if one is None or another is None or not coupling.are_close(one, another):
            found |= {id(variable) for variable in use.variables if variable is not None}
    return frozenset(found)


def _first(use: recording.Use, steps: int) -> list[np.ndarray] | None:
    """The first example's entries in the outputs; None where these are not two examples'."""
    outputs = [np.moveaxis(output.numpy(), use.batch_axis, 0) for output in use.outputs]
    if any(len(output) != 2 * steps for output in outputs):
        return None
    return [output[:steps] for output in outputs]
