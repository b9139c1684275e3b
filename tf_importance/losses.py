"""The compiled loss, seen one example at a time.

Keras reduces a loss to a scalar; importance sampling needs its value for each example, and
needs the weights to reach those values before the reduction. The law that the tests state:
for every way to spell a loss, mean_i(w_i ℓ_i) is the loss that Keras computes with weights w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import compat

# Keras wraps loss functions in this class, squeezing a last axis of 1; it exports no name for it.
FunctionLoss = keras.losses.MeanSquaredError.__bases__[0]
_SUMS = ("sum", "none", None)
# Whose `__call__` multiplies weights into what `call` gives, and reduces it.
_KNOWN = ("keras.", "tensorflow", "tf_keras.")


class Unscorable(ValueError):
    """The compiled loss has no value for each example that weights could reach."""


@dataclass(frozen=True, eq=False)
class Objective:
    """What `compile` was told: loss and loss_weights, in any of Keras's spellings.

    Attributes:
        loss: a name, function, `Loss`, or a list or dict of them by output.
        loss_weights: None, a float, or a list or dict of floats by output.
        output_names: the net's names of its outputs, None if it has none.
    """

    loss: Any
    loss_weights: Any = None
    output_names: Sequence[str] | None = None


class Term(NamedTuple):
    """One loss of one output.

    Attributes:
        output: index of the output in the flattened outputs.
        loss: a `keras.losses.Loss`.
        scale: its loss weight.
        labels: [B, …]. predictions: [B, …]. mask: [B, …] or None.
    """

    output: int
    loss: keras.losses.Loss
    scale: float
    labels: tf.Tensor
    predictions: tf.Tensor
    mask: tf.Tensor | None


def refuse_biased_reductions(loss: Any) -> None:
    """Raise for a reduction that divides by Σw, which biases a weighted estimate.

    Raises:
        ValueError: a loss reduces by "mean_with_sample_weight".
    """
    for leaf in tf.nest.flatten(loss):
        if getattr(leaf, "reduction", None) == "mean_with_sample_weight":
            raise ValueError(
                f"loss {leaf.name!r} has reduction='mean_with_sample_weight', which divides by "
                "the sum of the drawn weights and so biases the gradient under importance "
                "sampling; use reduction='sum_over_batch_size'."
            )


def terms(objective: Objective, labels, outputs) -> list[Term]:
    """Pair every output with its labels and losses, as Keras does.

    Args:
        objective: the compiled loss.
        labels, outputs: nests of [B, …] tensors.
    Returns:
        A term for every loss of every output, in the order of the flattened outputs.
    Raises:
        ValueError: losses, loss weights or labels do not fit the outputs.
    """
    names = objective.output_names
    flat = tf.nest.flatten(outputs)
    losses = _by_output("loss", objective.loss, outputs, names)
    scales = _by_output("loss_weights", objective.loss_weights, outputs, names)
    flat_labels = _labels_by_output(labels, outputs, losses, names)
    found = []
    parts = zip(losses, scales, flat_labels, flat)
    for index, (identifier, scale, label, output) in enumerate(parts):
        if isinstance(identifier, (list, tuple)):
            if len(identifier) != 1:
                raise Unscorable(
                    f"an output has {len(identifier)} losses, {identifier!r}, of which Keras's "
                    "versions use one or all; give one loss, a function that adds them up."
                )
            identifier = identifier[0]
        if isinstance(scale, (list, tuple)):
            (scale,) = scale
        if identifier is not None:
            if label is None:
                which = f" {names[index]!r}" if names and len(names) == len(flat) > 1 else ""
                raise ValueError(
                    "labels must have a part for each output with a loss; got none for output"
                    f"{which}. Give it labels, or compile without a loss for it."
                )
            loss = as_loss(identifier, label, output)
            _check_classes(loss, label, output)
            mask = getattr(output, "_keras_mask", None)
            scale = _number(scale)
            found.append(Term(index, loss, scale, label, output, mask))
    return found


def _number(scale: Any) -> float:
    if scale is None:
        return 1.0
    if not isinstance(scale, (int, float, np.number, tf.__internal__.EagerTensor)):
        raise TypeError(
            f"loss_weights must be numbers; got {type(scale).__name__}. A weight that changes in "
            "training is to be a factor in the loss itself."
        )
    return float(scale)


def as_loss(identifier: Any, labels: tf.Tensor, predictions: tf.Tensor) -> keras.losses.Loss:
    """The `Loss` that Keras makes of a name, function or `Loss`."""
    if isinstance(identifier, keras.losses.Loss):
        return identifier
    if identifier in ("crossentropy", "ce"):
        identifier = _kind_of_crossentropy(labels, predictions)
    loss = keras.losses.get(identifier)
    if isinstance(loss, keras.losses.Loss):
        return loss
    return FunctionLoss(loss, name=getattr(loss, "__name__", "loss"))


def _check_classes(loss: keras.losses.Loss, labels: tf.Tensor, predictions: tf.Tensor) -> None:
    """Raises: ValueError: labels are no classes, which TensorFlow would find in the first step."""
    function = keras.losses.sparse_categorical_crossentropy
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    sparse = sparse or getattr(loss, "fn", None) is function
    shape, of_outputs = tf.TensorShape(labels.shape), tf.TensorShape(predictions.shape)
    one_each = shape.rank is None or shape.rank < (of_outputs.rank or 0) or shape[-1] in (1, None)
    if sparse and not one_each:
        raise ValueError(
            f"loss {loss.name!r} takes the number of a class for outputs of shape {of_outputs}; "
            f"got labels of shape {shape}. Give classes of shape {of_outputs[:-1]}, or a "
            "CategoricalCrossentropy for labels like these."
        )


def elementwise(term: Term) -> tf.Tensor:
    """The loss before any reduction: [B, …].

    Raises:
        Unscorable: the loss is a scalar, or reduced over the batch, or by a `__call__` of its own.
    """
    kind = compat.definer(type(term.loss), "__call__")
    if not kind.__module__.startswith(_KNOWN):
        raise Unscorable(
            f"loss {term.loss.name!r} of class {kind.__name__} has a __call__ of its own, which "
            "decides what weights do to it. Define call(self, y_true, y_pred) alone, which gives a "
            "tensor of shape [batch, …]."
        )
    dtype = getattr(term.loss, "dtype", "float32")
    labels, predictions = compat.matched(term.labels, term.predictions, dtype)
    values = term.loss.call(labels, predictions)
    size = term.predictions.shape[0]
    if values.shape.rank == 0 or None not in (size, values.shape[0]) and values.shape[0] != size:
        raise Unscorable(
            f"loss {term.loss.name!r} gives no value for each example: shape {values.shape} for "
            f"outputs of shape {term.predictions.shape}, so weights cannot reach the examples. "
            "Return a tensor of shape [batch, …], for instance by reducing over the last axis "
            "only."
        )
    return values


def per_example(term: Term, *, divides: bool = True) -> tf.Tensor:
    """ℓ_i of one term, such that mean_i(w_i ℓ_i) is Keras's reduced, weighted loss: [B].

    A masked loss is divided by the batch's share that is not masked, unless it is not to be.
    """
    values = elementwise(term)
    values = values if values.dtype == tf.float64 else tf.cast(values, tf.float32)
    mask = _joint_mask(term.mask, values)
    sums = term.loss.reduction in _SUMS
    if mask is not None:
        mask = tf.cast(mask, values.dtype)
        valid = tf.reduce_sum(mask)
        total = tf.cast(tf.size(mask), values.dtype)
        values *= mask if sums or not divides else mask * tf.math.divide_no_nan(total, valid)
    inner = list(range(1, values.shape.rank))
    if sums:
        size = tf.cast(tf.shape(values)[0], values.dtype)
        return term.scale * size * tf.reduce_sum(values, axis=inner)
    return term.scale * tf.reduce_mean(values, axis=inner)


def per_example_losses(
    objective: Objective, labels, outputs, *, divides: bool = True
) -> tf.Tensor:
    """ℓ_i of the whole compiled loss, loss weights included, regularization not.

    Args:
        objective: the compiled loss.
        labels, outputs: nests of [B, …] tensors.
        divides: whether masked losses are divided by the batch's share that is not masked.
    Returns:
        [B] float32; float64 where that is what the losses are.
    """
    found = terms(objective, labels, outputs)
    return tf.add_n([per_example(term, divides=divides) for term in found])


def are_same(one: Any, other: Any) -> bool:
    """Whether two losses, as they were given to `compile`, are one and the same function."""
    if one is other:
        return True
    nests = [part if isinstance(part, (list, tuple, dict)) else [part] for part in (one, other)]
    try:
        tf.nest.assert_same_structure(*nests)
    except (TypeError, ValueError):
        return False
    return all(map(_is_same, *map(tf.nest.flatten, nests)))


def _is_same(one: Any, other: Any) -> bool:
    losses = isinstance(one, keras.losses.Loss) and type(one) is type(other)
    return one is other or one == other or (losses and one.get_config() == other.get_config())


def weights_if_scorable(
    objective: Objective, labels, outputs, weights: tf.Tensor, mean_weight: tf.Tensor | None = None
):
    """As `weights_by_output`; plain weights as they are, where a loss has none per example."""
    if objective.loss is None:
        return weights
    try:
        return weights_by_output(objective, labels, outputs, weights, mean_weight)
    except Unscorable:
        if mean_weight is not None:
            raise
        return weights


def times_elements(by_output, elements, names: Sequence[str] | None = None):
    """Weights of examples, as `weights_by_output` has them, times those of what is in them.

    Args:
        by_output: [b, …], or a nest of them like the outputs. elements: a nest of [b, …].
        names: of the outputs, where they are a list.
    Raises:
        ValueError: there is not one for each output.
    """
    single = not isinstance(by_output, (dict, list, tuple)) and len(names or ()) < 2
    if isinstance(elements, dict) and single:
        raise ValueError(
            f"sample weights by name, {sorted(elements)}, are for a net of several outputs; give "
            "one tensor."
        )
    if isinstance(elements, dict) and names and not isinstance(by_output, dict):
        if set(elements) != set(names):
            raise ValueError(
                f"sample weights by name must be one for each of the outputs {list(names)}; got "
                f"{sorted(elements)}."
            )
        # A dict is flattened by its sorted keys, which are not the order of the outputs.
        elements = [elements[name] for name in names]
    own = tf.nest.flatten(elements)
    weights = tf.nest.flatten(by_output)
    if len(weights) == 1:
        # Of several outputs whose losses are all [b], too.
        weights *= len(own)
    if len(weights) != len(own):
        raise ValueError(
            f"sample weights must be one tensor for each of the {len(weights)} outputs, in a "
            f"structure like theirs; got {len(own)}."
        )

    products = []
    for weight, part in zip(weights, own):
        rank = weight.shape.rank
        while part.shape.rank > rank and part.shape[-1] == 1:
            part = tf.squeeze(part, axis=-1)
        if part.shape.rank > rank:
            raise ValueError(
                f"sample weights of shape {part.shape} have more axes than the losses that they "
                f"are for, {rank}; give one for each example, or for each loss in it."
            )
        aligned = compat.for_inner_axes(part, rank)
        products.append(weight * tf.cast(aligned, weight.dtype))
    return tf.nest.pack_sequence_as(
        by_output if tf.nest.is_nested(by_output) else elements, products
    )


def weights_by_output(
    objective: Objective, labels, outputs, weights: tf.Tensor, mean_weight: tf.Tensor | None
):
    """Weights [b] in the shape that Keras multiplies into each output's loss.

    Keras aligns weights with the *last* axis of the loss, so that [b] meets the time steps of
    a [b, T] loss instead of the examples. Here they get a trailing axis for each inner one.

    A masked loss is a ratio, Σ m ℓ / Σ m over the batch. Among drawn examples both sums need
    the weights, Σ w m ℓ / Σ w m, but Keras's divisor has none; the weights make up for it.

    Args:
        objective: the compiled loss.
        labels, outputs: nests of [b, …] tensors.
        weights: [b].
        mean_weight: their expectation, where they are importance weights; else None.
    Returns:
        Weights for Keras's `sample_weight`: [b], or a nest of [b, 1, …] like the outputs.
    """
    shaped: dict[int, tf.Tensor] = {}
    for term in terms(objective, labels, outputs):
        values = elementwise(term)
        shaped[term.output] = compat.for_inner_axes(weights, values.shape.rank or 1)
        mask = _joint_mask(term.mask, values)
        if mean_weight is not None and mask is not None and term.loss.reduction not in _SUMS:
            mask = tf.cast(mask, weights.dtype)
            weighted = tf.reduce_sum(shaped[term.output] * mask)
            share = tf.math.divide_no_nan(tf.reduce_sum(mask), weighted)
            shaped[term.output] *= share * tf.cast(mean_weight, weights.dtype)
    if not tf.nest.is_nested(outputs):
        return shaped.get(0, weights)
    if mean_weight is None and all(value.shape.rank == 1 for value in shaped.values()):
        return weights
    flat = [shaped.get(index, weights) for index, _ in enumerate(tf.nest.flatten(outputs))]
    return tf.nest.pack_sequence_as(outputs, flat)


def only_sums(objective: Objective) -> bool:
    """Whether every loss is summed over the batch, so that a short batch has a short sum."""
    reductions = [
        getattr(leaf, "reduction", "mean")
        for leaf in tf.nest.flatten(objective.loss)
        if leaf is not None
    ]
    return all(reduction in _SUMS for reduction in reductions)


def _joint_mask(mask: tf.Tensor | None, values: tf.Tensor) -> tf.Tensor | None:
    """The mask of the outputs and the loss's own (such as `ignore_class`), both applied."""
    own = getattr(values, "_keras_mask", None)
    if mask is None or own is None:
        return own if mask is None else mask
    return tf.cast(mask, tf.bool) & tf.cast(own, tf.bool)


def _by_output(what: str, spec: Any, outputs, names: Sequence[str] | None) -> list:
    """One entry of a loss or loss_weights argument for each flattened output."""
    if isinstance(outputs, dict):
        outputs, names = [outputs[name] for name in sorted(outputs)], sorted(outputs)
    single = not isinstance(outputs, (list, tuple))
    if isinstance(spec, dict):
        if single and names is None and len(spec) == 1:
            return list(spec.values())
        unknown = set(spec) - set(names or ())
        if unknown:
            raise ValueError(
                f"{what} must name outputs that the net has, which are "
                f"{list(names) if names else 'unnamed'}; got {sorted(unknown)}."
            )
        spec = [spec.get(name) for name in names or ()]
        spec = spec[0] if single else spec
    if single:
        return [spec]
    if isinstance(spec, (list, tuple)):
        if len(spec) == len(outputs):
            parts = [_by_output(what, s, o, None) for s, o in zip(spec, outputs)]
            return [entry for part in parts for entry in part]
        raise ValueError(
            f"{what} must have one entry for each output; got {len(spec)} for {len(outputs)} "
            f"outputs: {spec!r}."
        )
    return [spec] * len(tf.nest.flatten(outputs))


def _labels_by_output(labels, outputs, losses: list, names: Sequence[str] | None) -> list:
    """The labels of each output; None where an output has neither labels nor loss."""
    if isinstance(labels, dict):
        names = sorted(outputs) if isinstance(outputs, dict) else names
        if names is not None and not any(tf.nest.is_nested(part) for part in labels.values()):
            return [labels.get(name) for name in names]
    flat = tf.nest.flatten(labels)
    if len(flat) == len(losses):
        return flat
    wanted = [loss is not None for loss in losses]
    if len(flat) == sum(wanted):
        remaining = iter(flat)
        return [next(remaining) if want else None for want in wanted]
    raise ValueError(
        f"labels must have one part for each output; got {len(flat)} for {len(losses)} outputs."
    )


def _kind_of_crossentropy(labels: tf.Tensor, predictions: tf.Tensor) -> str:
    """What Keras takes "crossentropy" for, by the shapes."""
    if predictions.shape[-1] == 1:
        return "binary_crossentropy"
    if labels.shape.rank < predictions.shape.rank or labels.shape[-1] == 1:
        return "sparse_categorical_crossentropy"
    return "categorical_crossentropy"
