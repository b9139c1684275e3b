"""Nets in which one example's outputs depend on the others of its batch.

A drawn and weighted batch has the gradient of the data only where each example's loss is its own.
Batch normalization is taken care of; whatever else couples examples would train wrong in silence.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tf_importance import batch_statistics, compat, graphs, layers, losses
from tf_importance.arguments import named

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

    Nets of Keras's own layers, which are known not to, are not tried. Each of a few random examples
    is seen among others, as in training, where their variables are put back what they were; or as
    in inference, where training is random. Strings are empty.

    Args:
        model: an ISModel, built. inputs: a nest of specs of one example.
    Raises:
        ValueError: the outputs of one are not the same.
    """
    if model.net in _checked or not _may_couple(model.net):
        return
    leaves = tf.nest.flatten(inputs)
    if any(leaf.shape.rank is None for leaf in leaves):
        return
    rng = np.random.default_rng(0)

    def batch():
        return [examples_like(_EXAMPLES, leaf.shape, leaf.dtype, rng) for leaf in leaves]

    def passed(training: bool) -> Callable:
        call = _call(model, inputs, training)
        return lambda parts: call(tf.nest.pack_sequence_as(inputs, parts))

    coupled: bool | None = None
    for training in (True, False):
        if coupled is None and not (training and _normalizes_otherwise(model.net)):
            try:
                coupled = _couples(passed(training), batch(), batch(), are_close)
            except Exception:  # Of code that random examples are nothing for; its own will show.
                coupled = False
    if coupled:
        raise ValueError(
            f"net {model.net.name!r} couples the examples of a batch: the outputs of one depend on "
            "the others, so that weights cannot make a drawn batch stand for the data. Look for a "
            "reduction, a normalization or a softmax over axis 0 in its layers (a batch "
            "normalization of your own is to be a keras.layers.BatchNormalization); or train "
            "without importance sampling."
        )
    _checked.add(model.net)


def _couples(passed: Callable, first: list, others: list, close: Callable) -> bool | None:
    """Whether what a pass says of an example is another beside others; None if it is random.

    Args:
        passed: of a flat batch, gives arrays with a row for each example.
        first, others: two batches.
    """
    alone, again = passed(first), passed(first)
    if not close(alone, again):
        return None
    for i in range(_EXAMPLES):
        beside = [part.copy() for part in others]
        for mine, theirs in zip(first, beside):
            theirs[i] = mine[i]
        rows = ([part[i] for part in found] for found in (alone, passed(beside)))
        if not close(*rows):
            return True
    return False


def refuse_loss(model, inputs, labels) -> None:
    """Raise for what a drawn batch's weights cannot be multiplied into; each model once a loss.

    Among other random predictions and labels, of several kinds, the loss of an example must be the
    same. A loss that a layer adds in a pass must not depend on the examples.

    Args:
        model: an ISModel, compiled. inputs, labels: nests of specs of one example.
    Raises:
        ValueError: a loss of one example depends on the others, or there is none of one example,
            or a layer adds one of the data, or is stateful.
    """
    _refuse_stateful(model.net)
    leaves = [*tf.nest.flatten(inputs), *tf.nest.flatten(labels)]
    if _tried.get(model) is model.objective or any(leaf.shape.rank is None for leaf in leaves):
        return
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
    except Exception:
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
    if dense and _loss_couples(model.objective, labels, outputs):
        raise ValueError(
            f"the loss {named(model.objective.loss)} of one example depends on the other examples "
            "of its batch, so that weights cannot make a drawn batch stand for the data (as of "
            "Cox's partial likelihood, contrastive and ranking losses, or AUC and Dice over a "
            "batch). Give a loss that is a mean over examples, or train without importance "
            "sampling."
        )
    _tried[model] = model.objective


def _refuse_stateful(net: keras.Model) -> None:
    for layer in net._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"layer {layer.name!r} is stateful: its state goes from one batch to the next, and "
                "drawn batches do not follow each other. Make it stateful=False, with sequences "
                "that are whole; or train without importance sampling."
            )


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


def _loss_couples(objective, labels, outputs) -> bool:
    """Whether the loss of an example is another beside other examples."""
    rng = np.random.default_rng(0)

    def traced(flat: list) -> Callable:
        def of_each(parts):
            mine, predicted = tf.nest.pack_sequence_as((labels, outputs), parts)
            # A mask's divisor is of the batch, and the step's weights make up for it.
            return losses.per_example_losses(objective, mine, predicted, divides=False)

        with tf.init_scope():
            # Called by itself each model's would count as traced anew, of which TensorFlow warns.
            call = tf.function(of_each, autograph=False).get_concrete_function(_tensors(flat))
        if call.structured_outputs.shape[:1] == [None]:
            raise losses.Unscorable(
                f"the loss {named(objective.loss)} does not say that it has a value for each "
                "example (as behind tf.boolean_mask), so that weights have nothing to be "
                "multiplied into. Give 0 to what does not count, tf.where(valid, loss, 0.0), with "
                "labels that are invalid replaced before; or say the shape by tf.ensure_shape."
            )

        def passed(parts: list) -> list[np.ndarray]:
            with tf.init_scope():
                return [np.asarray(call(_tensors(parts)))]

        return passed

    def batch(of_labels: Callable, of_outputs: Callable) -> list[np.ndarray]:
        kinds = ((labels, 0, of_labels), (outputs, 1, of_outputs))
        return [
            _made([_EXAMPLES, *leaf.shape[first:]], leaf.dtype, draw, rng)
            for nest, first, draw in kinds
            for leaf in tf.nest.flatten(nest)
        ]

    passed = None
    for kinds in itertools.product(_LABELS, _OUTPUTS):
        first, others = batch(*kinds), batch(*kinds)
        try:
            passed = passed or traced(first)
            coupled = _couples(passed, first, others, _are_same)
        except losses.Unscorable:
            raise
        except Exception:
            continue  # Not for such labels, or no loss by example; its own batches will show.
        if coupled:
            return True
    return False


# What labels and predictions may be: shares; classes, ratings and signs; logits and probabilities.
_LABELS = (
    lambda rng, shape: rng.uniform(0.1, 0.9, shape),
    lambda rng, shape: rng.integers(2, size=shape),
    lambda rng, shape: rng.integers(6, size=shape),
    lambda rng, shape: 2 * rng.integers(2, size=shape) - 1,
)
_OUTPUTS = (
    lambda rng, shape: rng.uniform(0.1, 0.9, shape),
    lambda rng, shape: 2 * rng.normal(size=shape),
)


def _made(shape, dtype: tf.DType, draw: Callable, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of a kind; of whole numbers 0 and 1, which any loss takes."""
    shape = [_UNKNOWN_SIZE if size is None else size for size in shape]
    if not dtype.is_floating:
        return rng.integers(2, size=shape).astype(dtype.as_numpy_dtype)
    return draw(rng, shape).astype(dtype.as_numpy_dtype)


def _are_same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, 1e-4, 1e-6, equal_nan=True) for a, b in zip(one, other))


def _tensors(nest):
    return tf.nest.map_structure(tf.convert_to_tensor, nest)


def _may_couple(net: keras.Model) -> bool:
    """Whether there is anything in a net that is not known to keep examples apart."""
    for layer in net._flatten_layers():
        for part in (layer, *_activations(layer)):
            kind = type(part) if isinstance(part, keras.layers.Layer) else part
            module = getattr(kind, "__module__", None) or ""
            if not module.startswith(_KNOWN) or "Lambda" in getattr(kind, "__name__", ""):
                return True
        if 0 in tf.nest.flatten(getattr(layer, "axis", None)):
            return True
    operations = getattr(net, "operations", None) or []
    return any(not isinstance(operation, keras.layers.Layer) for operation in operations)


def _activations(layer: keras.layers.Layer) -> list:
    found = (getattr(layer, name, None) for name in ("activation", "recurrent_activation"))
    return [one for one in found if one is not None]


def _normalizes_otherwise(net: keras.Model) -> bool:
    """Whether batch normalization is left as it is, or weighted, which couples in training."""
    weighted = any(isinstance(one, layers.BatchNormalization) for one in net._flatten_layers())
    return weighted or bool(layers.ordinary_batch_normalizations(net))


def _call(model, inputs, training: bool) -> Callable:
    """A pass that gives the outputs as arrays; the model's variables are what they were."""

    @tf.function(autograph=False)
    def outputs(batch):
        with batch_statistics.looking():
            return tf.nest.flatten(model(batch, training=training))

    def call(batch) -> list[np.ndarray]:
        with tf.init_scope(), compat.kept(model.net):
            # What is one number for the batch is no output of an example.
            return [
                np.asarray(part)
                for part in outputs(batch)
                if isinstance(part, tf.Tensor) and part.shape[:1] == [_EXAMPLES]
            ]

    return call


def examples_like(
    number: int, shape: tf.TensorShape, dtype: tf.DType, rng: np.random.Generator
) -> np.ndarray:
    """Random examples of a shape each; 0 and 1 for integers, which any table has; empty strings."""
    whole = [number, *(_UNKNOWN_SIZE if size is None else size for size in shape)]
    if dtype.is_floating:
        return rng.normal(size=whole).astype(dtype.as_numpy_dtype)
    if dtype == tf.string:
        return np.full(whole, "", object)
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
