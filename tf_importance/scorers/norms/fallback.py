"""Exact gradients of what no handler knows, example by example."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_importance import compat
from tf_importance.scorers.norms.contributions import Contribution, Direct
from tf_importance.scorers.norms.recording import Handler, Recorder


def by_example(function: Callable, elements, variables: Sequence) -> list[tf.Tensor]:
    """Apply a function to each example, vectorised where TensorFlow can, else in a loop.

    Args:
        function: takes a nest of tensors without their batch axis, gives gradients.
        elements: the nest, with it.
        variables: what the gradients are by.
    Returns:
        The gradients, [B, *variable's shape] each.
    """
    try:
        results = tf.vectorized_map(function, elements)
    except (ValueError, NotImplementedError, TypeError, tf.errors.InvalidArgumentError):
        specs = [tf.TensorSpec(each.shape, each.dtype) for each in variables]
        results = tf.map_fn(function, elements, fn_output_signature=specs)
    return list(results)


def handler(variables: Sequence) -> Handler:
    """A handler of one layer that differentiates it alone, from its inputs and output gradients.

    Args:
        variables: those of the layer's that a gradient is wanted of.
    """

    warned: list[bool] = []

    def generic(layer, call, record: Recorder, *args, **kwargs):
        if not warned:
            warned.append(True)
            warnings.warn(
                f"layer {layer.name!r} ({type(layer).__name__}) has no handler for the gradient "
                "norms of examples: they are taken by differentiating it once for each example. "
                "To make it fast, register one: tfi.scorers.norms.register.",
                stacklevel=2,
            )
        outputs = call(*args, **kwargs)
        if tf.nest.is_nested(outputs):
            # One output may be another, or made of it: each gets a gradient of its own.
            outputs = tf.nest.map_structure(tf.identity, outputs)
        given = tf.nest.flatten((args, kwargs))
        size = tf.nest.flatten(outputs)[0].shape[0]
        batched = [
            index
            for index, part in enumerate(given)
            if tf.is_tensor(part) and part.shape.rank and part.shape[0] == size
        ]
        count = len(tf.nest.flatten(outputs))

        def contributions(*tensors) -> list[Contribution]:
            one = functools.partial(_gradients, layer, variables, (args, kwargs), batched, count)
            return [Direct(values) for values in by_example(one, tensors, variables)]

        record(outputs, variables, contributions, *(given[index] for index in batched))
        return outputs

    return generic


def _gradients(layer, variables, call, batched, count, tensors) -> list[tf.Tensor]:
    """Gradients of one example: tensors are its output gradients and its batched inputs."""
    deltas = [delta[tf.newaxis] for delta in tensors[:count]]
    given = tf.nest.flatten(call)
    for index, part in zip(batched, tensors[count:]):
        given[index] = tf.cast(part, given[index].dtype)[tf.newaxis]
    args, kwargs = tf.nest.pack_sequence_as(call, given)
    with tf.GradientTape() as tape:
        tape.watch([compat.tensorflow_variable(variable) for variable in variables])
        outputs = tf.nest.flatten(layer(*args, **kwargs))
    deltas = [tf.cast(delta, output.dtype) for delta, output in zip(deltas, outputs)]
    return dense(tape.gradient(outputs, list(variables), deltas), variables)


def dense(gradients: Sequence, variables: Sequence) -> list[tf.Tensor]:
    """Gradients as tensors: zeros where there are none, sparse ones with their rows added up."""
    return [
        tf.zeros(variable.shape, variable.dtype)
        if gradient is None
        else tf.convert_to_tensor(gradient)
        for gradient, variable in zip(gradients, variables)
    ]
