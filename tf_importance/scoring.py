"""A scorer as one compiled function of a pre-sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_importance import compat


def check_model(model: Any) -> None:
    """Refuse a model whose examples have no scores.

    Raises:
        TypeError: it is not an ISModel. ValueError: it is not compiled with a loss.
    """
    if not isinstance(model, keras.Model) or not hasattr(model, "expect_drawn_examples"):
        raise TypeError(
            f"model must be a tfi.ISModel; got {model!r}. Wrap the net: "
            "model = tfi.ISModel(net); model.compile(...)."
        )
    if model.objective.loss is None:
        raise ValueError(
            f"model {model.name!r} is not compiled with a loss, so its examples have no scores; "
            "call model.compile(optimizer=..., loss=...) first."
        )


def check(score: Any, jit_compile: bool | str) -> None:
    """Refuse what `compiled` cannot take.

    Raises:
        TypeError: score is not callable. ValueError: jit_compile is out of range.
    """
    if not callable(score):
        raise TypeError(f"scorer must be a callable (model, x, y) -> [B]; got {score!r}.")
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f"jit_compile must be True, False or 'auto'; got {jit_compile!r}.")


def compiled(model, score, spec: tuple, presample_size: int, jit_compile: bool | str) -> Callable:
    """The scorer as a function of [B, …] nests, traced once, run where the weights are."""
    device = compat.device(model)
    accelerated = "GPU" in device or "TPU" in device
    function = tf.function(
        lambda inputs, labels: tf.cast(score(model, inputs, labels), tf.float32),
        autograph=False,
        jit_compile=accelerated if jit_compile == "auto" else jit_compile,
    )
    batched = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([presample_size, *leaf.shape], leaf.dtype), spec[:2]
    )
    try:
        scores = function.get_concrete_function(*batched).structured_outputs
    except (TypeError, ValueError, KeyError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"scorer {score!r} and the compiled loss {model.objective.loss!r} cannot be computed "
            f"for each example of the dataset, inputs {spec[0]}, labels {spec[1]}: {error}"
        ) from error
    if not scores.shape.is_compatible_with([presample_size]):
        raise ValueError(
            f"scorer {score!r} must return one score for each example, shape [{presample_size}]; "
            f"got shape {scores.shape}."
        )

    def scored(inputs, labels):
        # XLA cannot read weights that live on another device than the pipeline's.
        with tf.device(device if accelerated else None):
            return function(inputs, labels)

    return scored
