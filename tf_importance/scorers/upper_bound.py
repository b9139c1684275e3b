"""The upper bound of the gradient norm (Katharopoulos & Fleuret 2018, section 3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import keras
import tensorflow as tf

from tf_importance import compat, losses
from tf_importance.scorers import base, forward


def _upper_bound(objective: losses.Objective, labels, passed: forward.Forward) -> tf.Tensor:
    """Score by Ĝ_i = ‖∂L_i/∂z_i‖₂, z the pre-activations of the last layer  (eq. 20).

    The gradient norm of all parameters is at most Lρ Ĝ_i, with Lρ the same for all examples.
    The norm goes over all outputs and all their axes but the first. It costs one forward pass.

    Cross-entropy of a softmax or sigmoid and squared error have closed forms; for any other
    loss a tape over the last activation alone gives the same. Where a net ends in something
    that is not an activation (an LSTM, a reshape), z is its output.

    Args:
        model: a compiled ISModel. inputs: nest of [B, …]. labels: nest of [B, …].
    Returns:
        [B] float32, computed in float32 under mixed precision.
    """
    passed = _in_float32(passed)
    _warn_of_hidden_activation(objective, labels, passed)
    deltas = closed_form_deltas(objective, labels, passed)
    if deltas is None:
        deltas = taped_deltas(objective, labels, passed)
    outputs = tf.nest.flatten(passed.outputs)
    squares = [tf.reduce_sum(of_examples(delta, outputs[0]) ** 2, axis=1) for delta in deltas]
    return tf.sqrt(squares[0] if len(squares) == 1 else tf.add_n(squares))


upper_bound = base.OutputScorer("upper_bound", _upper_bound)


def of_examples(values: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    """Values with all axes but that of the batch made one: [B, k].

    An inner axis may be folded into z's first one (TimeDistributed), never the outputs'.

    Args:
        batch: a tensor whose first axis is the batch's.
    """
    if values.shape.rank == 2 and values.shape[0] == batch.shape[0] is not None:
        return values
    return tf.reshape(values, [tf.shape(batch)[0], -1])


def of_a_pass(scorer: base.Scorer) -> base.OutputScorer:
    """A scorer that reads a pass which was made already; the bound for one that makes its own."""
    return scorer if isinstance(scorer, base.OutputScorer) else upper_bound


def taped_deltas(
    objective: losses.Objective, labels, passed: forward.Forward
) -> list[tf.Tensor]:
    """∂L_i/∂z_i of each output by a tape over the last activation: [B, …] each."""
    # Under a name of its own, a tensor hides the logits that Keras may have noted on it.
    preactivations = [tf.identity(head.preactivation) for head in passed.heads]
    with tf.GradientTape() as tape:
        tape.watch(preactivations)
        outputs = [head.activation(z) for head, z in zip(passed.heads, preactivations)]
        for output, original in zip(outputs, tf.nest.flatten(passed.outputs)):
            if getattr(original, "_keras_mask", None) is not None:
                output._keras_mask = original._keras_mask
        outputs = tf.nest.pack_sequence_as(passed.outputs, outputs)
        per_example = losses.per_example_losses(objective, labels, outputs)
    gradients = tape.gradient(per_example, preactivations, unconnected_gradients="zero")
    return list(gradients)


def closed_form_deltas(
    objective: losses.Objective, labels, passed: forward.Forward
) -> list[tf.Tensor] | None:
    """∂L_i/∂z_i of each output where each loss has a closed form, else None.

    Several losses of one output add up.
    """
    deltas: list[tf.Tensor | None] = [None] * len(passed.heads)
    for term in losses.terms(objective, labels, passed.outputs):
        delta = _closed_form(term, passed.heads[term.output])
        if delta is None:
            return None
        previous = deltas[term.output]
        deltas[term.output] = delta if previous is None else previous + delta
    return [delta for delta in deltas if delta is not None]


def _warn_of_hidden_activation(
    objective: losses.Objective, labels, passed: forward.Forward
) -> None:
    """Probabilities whose logits are out of sight would be scored by about 1/p."""
    for term in losses.terms(objective, labels, passed.outputs):
        hidden = passed.heads[term.output].activation is forward.identity
        if hidden and _class_of(term.loss) in _OF_LOGITS and not _options(term.loss)["from_logits"]:
            warnings.warn(
                f"loss {term.loss.name!r} takes probabilities, but how the net makes them of its "
                "logits cannot be seen, so that upper_bound scores the probabilities themselves, "
                "which is a poor score. Let the net end in an activation, or in logits with "
                "from_logits=True.",
                stacklevel=2,
            )


def _closed_form(term: losses.Term, head: forward.Head) -> tf.Tensor | None:
    form = _CLOSED_FORMS.get(_class_of(term.loss))
    if form is None or term.mask is not None or term.loss.reduction not in _MEANS:
        return None
    return form(term, head)


def _softmax_crossentropy(term: losses.Term, head: forward.Head) -> tf.Tensor | None:
    """∂L/∂z = (softmax(z) − y) / (number of inner positions)."""
    options = _options(term.loss)
    if not _ends_in(head, keras.activations.softmax, options) or options["axis"] != -1:
        return None
    z = head.preactivation
    if _class_of(term.loss) is keras.losses.SparseCategoricalCrossentropy:
        if options["ignore_class"] is not None:
            return None
        # As Keras has them, so that TensorFlow finds that this is the operation of the loss.
        classes, _ = compat.matched(term.labels, term.predictions, "float32")
        classes = tf.cast(classes, tf.int64)
        classes = classes if classes.shape.rank == 1 else tf.reshape(classes, [-1])
        delta = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
            features=_in_rows(z), labels=classes
        ).backprop
    else:
        if term.labels.shape.rank != z.shape.rank:
            return None
        labels = tf.cast(term.labels, z.dtype)
        smoothing = options["label_smoothing"]
        labels = labels * (1 - smoothing) + smoothing / tf.cast(tf.shape(z)[-1], z.dtype)
        delta = tf.raw_ops.SoftmaxCrossEntropyWithLogits(
            features=_in_rows(z), labels=_in_rows(labels)
        ).backprop
    delta = delta if z.shape.rank == 2 else tf.reshape(delta, tf.shape(z))
    return _scaled(term, delta, z.shape[1:-1])


def _in_rows(values: tf.Tensor) -> tf.Tensor:
    """[…, k] as [m, k]."""
    return values if values.shape.rank == 2 else tf.reshape(values, [-1, tf.shape(values)[-1]])



def _sigmoid_crossentropy(term: losses.Term, head: forward.Head) -> tf.Tensor | None:
    """∂L/∂z = (sigmoid(z) − y) / (number of outputs of an example)."""
    options = _options(term.loss)
    if not _ends_in(head, keras.activations.sigmoid, options) or options["axis"] != -1:
        return None
    labels = _like(term.labels, head.preactivation)
    if labels is None:
        return None
    z, smoothing = head.preactivation, options["label_smoothing"]
    labels = labels * (1 - smoothing) + smoothing / 2
    return _scaled(term, tf.sigmoid(z) - labels, z.shape[1:])


def _squared_error(term: losses.Term, head: forward.Head) -> tf.Tensor | None:
    """∂L/∂z = 2 (z − y) / (number of outputs of an example)."""
    if head.activation is not forward.identity:
        return None
    labels = _like(term.labels, head.preactivation)
    if labels is None:
        return None
    z = head.preactivation
    return _scaled(term, 2 * (z - labels), z.shape[1:])


_CLOSED_FORMS: dict[type, Callable[[losses.Term, forward.Head], tf.Tensor | None]] = {
    keras.losses.CategoricalCrossentropy: _softmax_crossentropy,
    keras.losses.SparseCategoricalCrossentropy: _softmax_crossentropy,
    keras.losses.BinaryCrossentropy: _sigmoid_crossentropy,
    keras.losses.MeanSquaredError: _squared_error,
}
_OF_LOGITS = tuple(kind for kind in _CLOSED_FORMS if kind is not keras.losses.MeanSquaredError)
_FUNCTIONS: dict[Callable, type] = {
    keras.losses.categorical_crossentropy: keras.losses.CategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy: keras.losses.SparseCategoricalCrossentropy,
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.mean_squared_error: keras.losses.MeanSquaredError,
}
_MEANS = ("sum_over_batch_size", "mean", "auto")
_DEFAULTS = {"from_logits": False, "label_smoothing": 0.0, "axis": -1, "ignore_class": None}


def _class_of(loss: keras.losses.Loss) -> type:
    """The class with this loss's closed form: its own, or that of the function it wraps.

    Exactly: a subclass, or a function with arguments, may be another loss.
    """
    if type(loss) is losses.FunctionLoss and not loss._fn_kwargs:
        return _FUNCTIONS.get(loss.fn, type(loss))
    return type(loss)


def _options(loss: keras.losses.Loss) -> dict:
    """The loss's arguments; a wrapped function has its defaults."""
    given = {} if type(loss) is losses.FunctionLoss else loss.get_config()
    return {name: given.get(name, default) for name, default in _DEFAULTS.items()}


def _ends_in(head: forward.Head, activation: Callable, options: dict) -> bool:
    """Whether z are the logits of this loss: given as such, or behind the activation."""
    if head.activation is forward.identity:
        return options["from_logits"]
    return head.activation is activation


def _like(labels: tf.Tensor, z: tf.Tensor) -> tf.Tensor | None:
    """Labels in z's dtype and shape, with the last axis of 1 that Keras allows to be absent."""
    labels = tf.cast(labels, z.dtype)
    if labels.shape.rank == z.shape.rank - 1 and z.shape[-1] == 1:
        return labels[..., tf.newaxis]
    if not labels.shape.is_compatible_with(z.shape) or labels.shape.rank != z.shape.rank:
        return None
    return labels


def _scaled(term: losses.Term, delta: tf.Tensor, inner: tf.TensorShape) -> tf.Tensor:
    """∂L/∂z of a loss that is a mean over so many inner positions, times its weight."""
    if inner.is_fully_defined():
        factor = term.scale / inner.num_elements()
        return delta if factor == 1 else factor * delta
    axes = range(1, 1 + inner.rank)
    positions = tf.reduce_prod(tf.gather(tf.shape(delta), list(axes)))
    return term.scale * delta / tf.cast(positions, delta.dtype)


def _in_float32(passed: forward.Forward) -> forward.Forward:
    heads = [forward.Head(tf.cast(z, tf.float32), act) for z, act in passed.heads]
    return forward.Forward(passed.outputs, heads)
