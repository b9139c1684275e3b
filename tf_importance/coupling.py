"""Nets in which one example's outputs depend on the others of its batch.

A drawn and weighted batch has the gradient of the data only where each example's loss is its own.
Batch normalization is taken care of; whatever else couples examples would train wrong in silence.
"""

from __future__ import annotations

import weakref

import keras
import numpy as np
import tensorflow as tf

from tf_importance import batch_statistics, compat, graphs, layers, losses

_EXAMPLES = 4
# Of an axis whose size the data leave open.
_UNKNOWN_SIZE = 8
# Up to which outputs are the same.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
_KNOWN = ("keras.", "tensorflow_addons.", "tf_importance.")
_checked: weakref.WeakSet[keras.Model] = weakref.WeakSet()
# Of models, whose objective was tried last.
_tried: weakref.WeakKeyDictionary[keras.Model, losses.Objective] = weakref.WeakKeyDictionary()


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


def refuse_loss(model, inputs, labels) -> None:
    """Raise for what a drawn batch's weights cannot be multiplied into; each model once a loss.

    Two batches of random predictions and labels that share their first example must give the same
    loss for it. A loss that a layer adds in a pass must not depend on the examples.

    Args:
        model: an ISModel, compiled. inputs, labels: nests of specs of one example.
    Raises:
        ValueError: a loss of one example depends on the others, or there is none of one example,
            or a layer adds one of the data, or is stateful.
    """
    _refuse_stateful(model.net)
    leaves = [*tf.nest.flatten(inputs), *tf.nest.flatten(labels)]
    tried = _tried.get(model) is model.objective
    if tried or tf.distribute.has_strategy() or any(_is_unknown(leaf) for leaf in leaves):
        return
    _tried[model] = model.objective
    batch = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([_EXAMPLES, *leaf.shape], leaf.dtype), inputs
    )
    added: list[str] = []

    def passed(inputs):
        with batch_statistics.looking():
            outputs = model(inputs, training=True)
        added.extend(_adds_loss_of(model.net, tf.nest.flatten(inputs)))
        return outputs

    try:
        with tf.init_scope():
            traced = tf.function(passed, autograph=False).get_concrete_function(batch)
    except (TypeError, ValueError, tf.errors.OpError):
        return  # What is wrong with the net, its own pass will show.
    finally:
        compat.clear_losses(model)
    if added:
        raise ValueError(
            f"layer {added[0]!r} adds a loss of the data (add_loss, or an activity regularizer), "
            "which has one number for the batch, so that weights cannot make it that of all data. "
            "Return what it penalizes as an output of the net, and give compile a loss for it, by "
            "example; or train without importance sampling."
        )
    outputs = traced.structured_outputs
    dense = all(isinstance(part, (tf.Tensor, tf.TensorSpec)) for part in tf.nest.flatten(outputs))
    if dense and _couples(model.objective, labels, outputs):
        raise ValueError(
            f"the loss {model.objective.loss!r} of one example depends on the other examples of "
            "its batch, so that weights cannot make a drawn batch stand for the data (as of Cox's "
            "partial likelihood, contrastive and ranking losses, or AUC and Dice over a batch). "
            "Give a loss that is a mean over examples, or train without importance sampling."
        )


def _refuse_stateful(net: keras.Model) -> None:
    for layer in net._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"layer {layer.name!r} is stateful: its state goes from one batch to the next, and "
                "drawn batches do not follow each other. Make it stateful=False, with sequences "
                "that are whole; or train without importance sampling."
            )


def _is_unknown(leaf: tf.TensorSpec) -> bool:
    return leaf.dtype == tf.string or leaf.shape.rank is None


def _adds_loss_of(net: keras.Model, inputs: list[tf.Tensor]) -> list[str]:
    """Names of the layers whose losses in the pass that was just traced depend on its inputs."""
    sources = {tensor.op.name for tensor in inputs}
    found = []
    for layer in net._flatten_layers():
        for loss in compat.added_losses(layer):
            in_graph = isinstance(loss, tf.Tensor) and not hasattr(loss, "numpy")
            if in_graph and any(one.name in sources for one in graphs.upstream(loss)):
                found.append(layer.name)
    return found


def _couples(objective, labels, outputs) -> bool:
    """Whether the loss of a first example is another beside other examples."""
    rng = np.random.default_rng(0)

    def made(shape, dtype) -> np.ndarray:
        # Predictions that are logits as well as probabilities.
        shape = [_UNKNOWN_SIZE if size is None else size for size in shape]
        if dtype.is_floating:
            return rng.uniform(0.1, 0.9, size=shape).astype(dtype.as_numpy_dtype)
        return rng.integers(2, size=shape).astype(dtype.as_numpy_dtype)

    def batch():
        of_labels = tf.nest.map_structure(
            lambda leaf: made([_EXAMPLES, *leaf.shape], leaf.dtype), labels
        )
        of_outputs = tf.nest.map_structure(
            lambda part: made([_EXAMPLES, *part.shape[1:]], part.dtype), outputs
        )
        return of_labels, of_outputs

    first, others = batch(), batch()
    for mine, theirs in zip(tf.nest.flatten(first), tf.nest.flatten(others)):
        theirs[0] = mine[0]

    def of_each(labels, outputs) -> tf.Tensor:
        return losses.per_example_losses(objective, labels, outputs)

    try:
        with tf.init_scope():
            traced = tf.function(of_each, autograph=False)
            # Called by itself each model's would count as traced anew, of which TensorFlow warns.
            per_example = traced.get_concrete_function(*map(_tensors, first))
            one, again, another = (
                np.asarray(per_example(*map(_tensors, parts)))[:1]
                for parts in (first, first, others)
            )
    except losses.Unscorable:
        raise
    except (TypeError, ValueError, KeyError, IndexError, tf.errors.OpError):
        return False  # Not for such labels, or no loss by example; its own batches will show.
    same, other = (np.allclose(one, part, 1e-4, 1e-6, equal_nan=True) for part in (again, another))
    return same and not other


def _tensors(nest):
    return tf.nest.map_structure(tf.convert_to_tensor, nest)


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
