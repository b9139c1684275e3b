"""Nets in which one example's outputs depend on the others of its batch.

A drawn and weighted batch has the gradient of the data only where each example's loss is its own.
Batch normalization is taken care of; whatever else couples examples would train wrong in silence.
"""

from __future__ import annotations

import weakref

import keras
import numpy as np
import tensorflow as tf

from tf_importance import batch_statistics, compat, layers

_EXAMPLES = 4
# Of an axis whose size the data leave open.
_UNKNOWN_SIZE = 8
# Up to which outputs are the same.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
_KNOWN = ("keras.", "tensorflow_addons.", "tf_importance.")
_checked: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def refuse(model: keras.Model, inputs) -> None:
    """Raise for a net that couples the examples of a batch; each is tried once.

    Nets of Keras's own layers, which are known not to, are not tried. Others see two batches of
    random examples that share the first one, as in training, where their variables are put back
    what they were; or as in inference, where training is random.

    Args:
        model: an ISModel, built. inputs: a nest of specs of one example.
    Raises:
        ValueError: the first example's outputs are not the same.
    """
    if model.net in _checked or not _may_couple(model.net) or tf.distribute.has_strategy():
        return
    leaves = tf.nest.flatten(inputs)
    if any(leaf.dtype == tf.string or leaf.shape.rank is None for leaf in leaves):
        return
    _checked.add(model.net)
    rng = np.random.default_rng(0)
    first, others = (
        [examples_like(_EXAMPLES, leaf.shape, leaf.dtype, rng) for leaf in leaves] for _ in range(2)
    )
    for examples, neighbours in zip(first, others):
        neighbours[0] = examples[0]
    for training in (True, False):
        if training and _normalizes_otherwise(model.net):
            continue
        try:
            one, again, another = (
                _outputs_of_first(model, tf.nest.pack_sequence_as(inputs, parts), training)
                for parts in (first, first, others)
            )
        except (TypeError, ValueError, tf.errors.OpError):
            return  # Random examples are none of this net's; its own will show.
        if are_close(one, again):
            break
    else:
        return
    if not are_close(one, another):
        _checked.discard(model.net)
        raise ValueError(
            f"net {model.net.name!r} couples the examples of a batch: the outputs of one depend on "
            "the others, so that weights cannot make a drawn batch stand for the data. Look for a "
            "reduction, a normalization or a softmax over axis 0 in its layers (a batch "
            "normalization of your own is to be a keras.layers.BatchNormalization); or train "
            "without importance sampling."
        )


def _may_couple(net: keras.Model) -> bool:
    """Whether there is anything in a net that is not known to keep examples apart."""
    for layer in net._flatten_layers():
        kind = type(layer)
        known = kind.__module__.startswith(_KNOWN) and "Lambda" not in kind.__name__
        if not known or 0 in tf.nest.flatten(getattr(layer, "axis", None)):
            return True
    operations = getattr(net, "operations", None) or []
    return any(not isinstance(operation, keras.layers.Layer) for operation in operations)


def _normalizes_otherwise(net: keras.Model) -> bool:
    """Whether batch normalization is left as it is, or weighted, which couples in training."""
    weighted = any(isinstance(one, layers.BatchNormalization) for one in net._flatten_layers())
    return weighted or bool(layers.ordinary_batch_normalizations(net))


def _outputs_of_first(model, batch, training: bool) -> list[np.ndarray]:
    """The first example's; the model's variables are what they were."""
    variables = [compat.tensorflow_variable(one) for one in model.net.variables]
    before = [tf.identity(variable) for variable in variables]

    @tf.function(autograph=False)
    def outputs(batch):
        with batch_statistics.looking():
            return tf.nest.flatten(model(batch, training=training))

    with tf.init_scope():
        found = [np.asarray(part[0]) for part in outputs(batch)]
        for variable, value in zip(variables, before):
            variable.assign(value)
    return found


def examples_like(
    number: int, shape: tf.TensorShape, dtype: tf.DType, rng: np.random.Generator
) -> np.ndarray:
    """Random examples of a shape each; 0 and 1 for integers, which any table has."""
    whole = [number, *(_UNKNOWN_SIZE if size is None else size for size in shape)]
    if dtype.is_floating:
        return rng.normal(size=whole).astype(dtype.as_numpy_dtype)
    return rng.integers(2, size=whole).astype(dtype.as_numpy_dtype)


def are_close(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Up to what another order of summation changes."""
    return all(
        a.shape == b.shape
        and np.allclose(
            a.astype(np.float64), b.astype(np.float64), _RELATIVE, _ABSOLUTE, equal_nan=True
        )
        for a, b in zip(one, other)
    )
