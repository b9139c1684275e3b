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
            outputs = tf.nest.map_structure(_copied, outputs)
        flat = tf.nest.flatten(outputs)
        if not all(output.shape.rank for output in flat):
            # Not the outputs of single examples: the variables are left to be strays.
            return outputs
        given = tf.nest.flatten((args, kwargs))
        batched = [i for i, part in enumerate(given) if _is_batched(part, flat[0])]
        masks = {i: getattr(given[i], "_keras_mask", None) for i in batched}
        masks = {i: mask for i, mask in masks.items() if mask is not None}

        def contributions(*tensors) -> list[Contribution]:
            one = functools.partial(
                _gradients, layer, variables, (args, kwargs), batched, list(masks), len(flat)
            )
            return [Direct(values) for values in by_example(one, tensors, variables)]

        saved = [*(given[index] for index in batched), *masks.values()]
        record(outputs, variables, contributions, *saved)
        return outputs

    return generic


def _copied(output: tf.Tensor) -> tf.Tensor:
    """Another tensor of the same values and mask."""
    copy, mask = tf.identity(output), getattr(output, "_keras_mask", None)
    if mask is not None:
        copy._keras_mask = mask
    return copy


def _is_batched(part, output: tf.Tensor) -> bool:
    """Whether an argument has an entry for each example; a constant of the graph has none."""
    if not tf.is_tensor(part) or not part.shape.rank or part.shape[0] != output.shape[0]:
        return False
    eager = tf.__internal__.EagerTensor
    return isinstance(part, eager) == isinstance(output, eager)


def _gradients(layer, variables, call, batched, masked, count, tensors) -> list[tf.Tensor]:
    """Gradients of one example: tensors are its output gradients, batched inputs and masks."""
    deltas = [delta[tf.newaxis] for delta in tensors[:count]]
    given = tf.nest.flatten(call)
    for index, part in zip(batched, tensors[count:]):
        given[index] = tf.cast(part, given[index].dtype)[tf.newaxis]
    for index, mask in zip(masked, tensors[count + len(batched) :]):
        given[index]._keras_mask = mask[tf.newaxis]
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
