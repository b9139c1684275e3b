"""Metrics of drawn batches: weighted, so that they are those of the data."""

from __future__ import annotations

import dis
import inspect
import warnings

import keras
import tensorflow as tf

from tf_importance import compat


def update(model: keras.Model, y, y_pred, weights, weighted, may_draw: bool) -> None:
    """Update `metrics` and `weighted_metrics`, each with weights.

    Keras's own `compute_metrics` gives weights to `weighted_metrics` only, which is right
    for a user's sample weights and wrong for drawn examples: unweighted, they would be
    averaged as if they had been drawn uniformly.

    Args:
        model: a compiled model.
        y: labels. y_pred: outputs. weights: [b], of `metrics`.
        weighted: of `weighted_metrics`, [b], or a nest like the outputs of [b, …].
        may_draw: whether the weights may be others than 1.
    Raises:
        ValueError: weights do not reach a metric.
    """
    for label, output, own, *lists in compat.metrics_by_output(model, y, y_pred, weighted):
        for metrics, of_metrics in zip(lists, (weights, own)):
            for metric in metrics:
                if metric is not None and label is not None:
                    _update_one(metric, label, output, of_metrics, may_draw)


def _update_one(metric, label, output: tf.Tensor, weights: tf.Tensor, may_draw: bool) -> None:
    why, of_the_batch = _why_unweighted(metric), _is_of_the_batch(metric, label, output)
    if why is not None and may_draw:
        raise ValueError(
            f"metric {metric.name!r} of drawn batches would not be that of the data, since weights "
            f"do not reach it: {why}, or give it to evaluate alone."
        )
    if of_the_batch and may_draw:
        warnings.warn(
            f"metric {metric.name!r} is one number for a batch, or one for each class, which "
            "weights do not reach: what is logged is that of the drawn batches.",
            stacklevel=2,
        )
    if of_the_batch or why is not None:
        metric.update_state(label, output)
    else:
        _update(metric, label, *_masked(output, weights))


def _masked(output: tf.Tensor, weights: tf.Tensor):
    """An output without its mask, and the weights with it."""
    mask = getattr(output, "_keras_mask", None)
    if mask is None:
        return output, weights
    # Under a name of its own, the tensor has no mask.
    weights = compat.for_inner_axes(weights, mask.shape.rank) * tf.cast(mask, weights.dtype)
    return tf.identity(output), weights


def _update(metric, label, output: tf.Tensor, weights: tf.Tensor) -> None:
    """Update a metric with weights [b], or [b, …] with a mask, in the shape that it takes.

    One of many values for each example is given a weight for each of them, but where it is a mean
    of them itself.
    """
    shape, rank = tf.shape(label), label.shape.rank or 0
    if isinstance(metric, keras.metrics.IoU):
        # It counts values one by one, and of one-hot labels classes.
        rank = rank if getattr(metric, "sparse_y_true", True) else rank - 1
        weights = tf.reshape(_for_each(weights, shape[:rank], rank), [-1])
    elif rank > 2 and not isinstance(metric, keras.metrics.MeanMetricWrapper):
        weights = _for_each(weights, shape, rank)
    metric.update_state(label, output, sample_weight=weights)


def _for_each(weights: tf.Tensor, shape: tf.Tensor, rank: int) -> tf.Tensor:
    """Weights [b, …] in a shape of a rank."""
    return tf.broadcast_to(compat.for_inner_axes(weights, rank), shape)


def _is_of_the_batch(metric, label, output) -> bool:
    """Whether a metric's function gives one number for a batch, or for a class: not by example."""
    is_mean = isinstance(metric, keras.metrics.MeanMetricWrapper)
    if not is_mean or "int" in str(metric.dtype):
        return False
    # As Keras casts them, under mixed precision too.
    output = tf.cast(output, metric.dtype)
    label = tf.cast(label, metric.dtype) if label.dtype.is_floating else label
    shape = tf.convert_to_tensor(metric._fn(label, output, **metric._fn_kwargs)).shape
    return shape.rank == 0 or (bool(shape.rank) and shape[0] not in (None, label.shape[0]))


def _why_unweighted(metric) -> str | None:
    """Why a metric takes no weights as they are, with what to do; None where it does."""
    if "int" in str(metric.dtype):
        kind = type(metric).__name__
        return f"it counts in whole numbers; give {kind}(…, dtype='float32')"
    # Of the class: Keras 2 wraps that of the object.
    taken = inspect.signature(type(metric).update_state).parameters.values()
    if not any(one.name == "sample_weight" or one.kind is one.VAR_KEYWORD for one in taken):
        return "its update_state has no sample_weight; give it one"
    if not _uses(type(metric).update_state, "sample_weight"):
        return "its update_state does not use sample_weight; let it multiply by that"
    return None


def _uses(method, argument: str) -> bool:
    """Whether a method of a user's does anything with an argument that it names."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is None or argument not in code.co_varnames + code.co_cellvars:
        return True
    # Some versions of Python load two by one instruction.
    loaded = (one.argval for one in dis.get_instructions(code) if "LOAD" in one.opname)
    return any(argument in (one if isinstance(one, tuple) else (one,)) for one in loaded)
