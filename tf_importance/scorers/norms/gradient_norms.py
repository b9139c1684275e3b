"""Exact norms of each example's gradient, from one forward and one backward pass."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_importance import compat, losses
from tf_importance.arguments import named, number
from tf_importance.scorers.norms import contributions, fallback, independence, plan, recording

MEMORY_LIMIT = 2**26
_LOCK = threading.RLock()


def per_example_gradient_norms(
    model: keras.Model,
    x: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    loss: Any = None,
    variables: Iterable[Any] | None = None,
    per_variable: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> tf.Tensor | list[tf.Tensor]:
    """‖∂L_i/∂θ‖₂ of each example i, without holding B gradients.

    One forward pass in inference mode notes for each layer what its variables' gradients are
    made of; one backward pass gives the gradients of the layers' outputs, but not those of
    the variables; their norms follow from the two (Goodfellow 2015 for dense layers). The
    uses of a variable are added up before the norm is taken, so that it is exact for time
    steps, pixels and tied weights. Layers without a handler are differentiated example by
    example (`coverage` lists them).

    Dropout is off and batch normalization uses its moving statistics: by those of the batch,
    examples would have no gradients of their own. Regularization losses are left out: they
    are the same for all examples. L_i is such that the mean of L_i is Keras's loss; a masked
    loss divides by the count of the whole batch's mask.

    Called eagerly it runs eagerly; inside a `tf.function` it is faster.

    Args:
        model: a built keras.Model, compiled unless a loss is given.
        x, y: nests of [B, …] tensors, as for `fit`.
        sample_weight: [B], multiplied into the losses.
        loss: what `compile` would take, in place of the compiled one.
        variables: those to differentiate by; by default all trainable ones.
        per_variable: give squared norms for each variable.
        memory_limit: bytes that the products for one variable may take at a time; beyond it
            examples are processed in chunks.
    Returns:
        [B] norms, or with per_variable a list of [B] squared norms, one for each of the
        variables; float32, for a float64 model float64.
    Raises:
        TypeError: model is not a keras.Model.
        ValueError: model is not built or compiled; variables are not the model's; the loss has
            no value for each example; labels or weights do not fit; a layer couples examples.
    """
    _check(model, memory_limit)
    objective = _objective(model, loss)
    # Layers are one for all threads.
    with _LOCK:
        foreign = independence.require(model, x)
    wanted = _checked_variables(model, variables)
    with _LOCK, tf.GradientTape(watch_accessed_variables=False) as tape:
        recorder = recording.Recorder(tape, wanted)
        with recording.intercepted(plan.handlers(model, wanted), recorder):
            outputs = model(x, training=False)
            values = _losses(objective, y, outputs, sample_weight)
        total = tf.reduce_sum(values)
    recorder.strays |= {id(each) for each in wanted if _is_stray(each, foreign)}
    squares = {
        name: contributions.squared_norms(contributions.total(parts), memory_limit)
        for name, parts in _by_variable(tape, total, recorder).items()
    }
    strays = [variable for variable in wanted if id(variable) in recorder.strays]
    if strays:
        data = (x, y) if sample_weight is None else (x, y, sample_weight)
        squares |= _of_strays(model, objective, data, strays)
    zeros = tf.zeros_like(values)
    in_order = [tf.cast(squares.get(id(each), zeros), zeros.dtype) for each in wanted]
    return in_order if per_variable else tf.sqrt(tf.add_n([zeros, *in_order]))


def _losses(objective: losses.Objective, labels, outputs, sample_weight=None) -> tf.Tensor:
    values = losses.per_example_losses(objective, labels, outputs)
    if sample_weight is None:
        return values
    weights = tf.cast(tf.convert_to_tensor(sample_weight), values.dtype)
    if weights.shape.rank != 1 or not weights.shape.is_compatible_with(values.shape):
        raise ValueError(
            f"sample_weight must have one entry for each example, shape {values.shape}; got "
            f"shape {weights.shape}."
        )
    return values * weights


def _by_variable(
    tape: tf.GradientTape, total: tf.Tensor, recorder: recording.Recorder
) -> dict[int, list[contributions.Contribution]]:
    """The contributions to each variable's gradients, by the variable's id."""
    outputs = [output for use in recorder.uses for output in use.outputs]
    deltas = iter(tape.gradient(total, outputs))
    found: dict[int, list[contributions.Contribution]] = {}
    for use in recorder.uses:
        given = [next(deltas) for _ in use.outputs]
        if all(delta is None for delta in given):
            continue  # Outputs that the loss does not depend on.
        given = [
            tf.zeros_like(output) if delta is None else tf.convert_to_tensor(delta)
            for delta, output in zip(given, use.outputs)
        ]
        # Else what is made of them would be made, and held, as soon as the forward pass is over.
        with tf.control_dependencies(given):
            saved = [tf.identity(part) for part in use.saved]
        parts = use.contributions(*map(_exact, (*given, *saved)))
        for variable, part in zip(use.variables, parts, strict=False):
            if variable is not None and part is not None:
                for steps in use.steps:
                    part = part.folded(steps)
                if id(variable) not in recorder.strays:
                    found.setdefault(id(variable), []).append(part)
    return found


def _exact(values: tf.Tensor) -> tf.Tensor:
    """Products of float16 are taken in float32."""
    if values.dtype in (tf.float16, tf.bfloat16):
        return tf.cast(values, tf.float32)
    return values


def _of_strays(
    model: keras.Model, objective: losses.Objective, data: tuple, strays: Sequence[Any]
) -> dict[int, tf.Tensor]:
    """Squared norms for variables that something else than their own layer reads."""
    names = ", ".join(variable.name for variable in strays)
    warnings.warn(
        f"variables {names} are used outside of the layers that own them, or inside of loops: "
        "their gradients are taken by differentiating the whole model once for each example. "
        "To make it fast, register a handler for the layer that uses them: "
        "tfi.scorers.norms.register.",
        stacklevel=3,
    )

    def gradients(example) -> list[tf.Tensor]:
        x, y, *weights = tf.nest.map_structure(lambda part: part[tf.newaxis], example)
        with tf.GradientTape() as tape:
            tape.watch([compat.tensorflow_variable(variable) for variable in strays])
            values = _losses(objective, y, model(x, training=False), *weights)
        return fallback.dense(tape.gradient(values, strays), strays)

    tensors = tf.nest.map_structure(tf.convert_to_tensor, data)
    found = fallback.by_example(gradients, tensors, strays)
    return {id(v): contributions.squares_by_example(g) for v, g in zip(strays, found)}


def _is_stray(variable, foreign: frozenset[int]) -> bool:
    """Whether no layer's note holds for a variable, or no tape listens to it by itself."""
    return id(variable) in foreign or not compat.tensorflow_variable(variable).trainable


def _check(model: keras.Model, memory_limit: int) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"model must be a keras.Model; got {named(model)}.")
    if not _net(model).built or not model.weights:
        raise ValueError(
            f"model {model.name!r} is not built, so its variables are not known; call it on a "
            "batch first."
        )
    number("memory_limit", memory_limit, "a positive number of bytes", lambda size: size > 0)


def _net(model: keras.Model) -> keras.Model:
    """The net of an ISModel, any other model itself."""
    return model.net if hasattr(model, "objective") and hasattr(model, "net") else model


def _checked_variables(model: keras.Model, variables: Iterable[Any] | None) -> list[Any]:
    """The variables whose gradients are wanted, each once."""
    wanted = list(model.trainable_variables if variables is None else variables)
    known = {id(variable) for variable in model.weights}
    foreign = [variable for variable in wanted if id(variable) not in known]
    if foreign or not wanted:
        names = [getattr(variable, "name", variable) for variable in foreign]
        raise ValueError(
            f"variables must be some of those of model {model.name!r}; got "
            + (f"{names}, which are not." if foreign else "none.")
        )
    return list({id(variable): variable for variable in wanted}.values())


def _objective(model: keras.Model, loss: Any) -> losses.Objective:
    """The loss as given or compiled, with loss weights."""
    weights = None
    if loss is None:
        loss, weights = compat.compiled_loss(model)
    if loss is None:
        raise ValueError(
            f"model {model.name!r} is not compiled with a loss; compile it or give loss=."
        )
    return losses.Objective(loss, weights, getattr(_net(model), "output_names", None))
