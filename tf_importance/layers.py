"""Batch normalization that learns the data's statistics, not those of the drawn examples.

Ordinary batch normalization averages the batch, and importance sampling fills the batch with
hard examples: the moving statistics then describe a distribution that the net never meets
again. RAIS (Johnson & Guestrin 2018, section 4.5) weights each example by 1/(n p_i).
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator

import keras
import tensorflow as tf

from tf_importance import batch_statistics, normalization

_weights: contextvars.ContextVar[tf.Tensor | None] = contextvars.ContextVar(
    "importance_weights", default=None
)


@contextlib.contextmanager
def importance_weights(weights: tf.Tensor | None) -> Iterator[None]:
    """Within this context, layers that weight their statistics use these weights.

    `ISModel.train_step` opens it; open it yourself in a training loop of your own.

    Args:
        weights: [b] weights of the batch that passes through the net, of expectation 1, or
            None.
    """
    token = _weights.set(weights)
    try:
        yield
    finally:
        _weights.reset(token)


def current_weights() -> tf.Tensor | None:
    """The weights of the innermost `importance_weights` context, None outside of any."""
    return _weights.get()


@keras.saving.register_keras_serializable(package="tf_importance")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization with importance-weighted batch and moving statistics.

    Arguments, weights and inference are those of `keras.layers.BatchNormalization`, and so is
    training where no weights are in force (see `importance_weights`). With weights w:

    * the batch is normalized by μ = Σ w x / Σ w and σ² = Σ w (x − μ)² / Σ w, sums over the
      examples and every axis but the layer's;
    * a batch counts in the moving averages as much as its weights, and their variance is that of
      uniform batches (`tf_importance.normalization.moved_weighted`).

    In all of these no weight counts as more than b, a whole uniform batch (truncated importance
    sampling, Ionides 2008): an example whose weight outdoes all others' together would make
    the batch's variance nearly zero and the moving averages its own. The price is a bias
    towards the examples drawn often, where weights above b carry much of the data. The
    weights of the loss are never truncated.

    For w = 1 all of this is Keras's own statistics. Where all weights of a batch are zero it
    is normalized without them and leaves the moving averages alone.

    Raises:
        ValueError: with `renorm=True`, whose statistics are not weighted here.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if getattr(self, "renorm", False):
            raise ValueError(
                f"layer {self.name!r} has renorm=True, whose running statistics cannot be "
                "importance-weighted; use renorm=False."
            )

    def call(self, inputs, training=None, mask=None):
        weights = current_weights()
        if weights is None or not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        batch = normalization.rows(self, inputs, weights, mask)
        own = normalization.own_statistics(self, batch)
        normalization.set_moving(self, normalization.moved_weighted(self, own, weights))
        return normalization.normalized(self, batch, own, own)


def ordinary_batch_normalizations(net: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The trainable layers of a net whose batch statistics are those of the drawn examples.

    Args:
        net: a layer or model.
    Returns:
        Batch-normalization layers of any class but this module's, that are not converted.
    """
    return [layer for layer in _of_keras(net) if layer.trainable]


def _of_keras(net: keras.layers.Layer) -> list[keras.layers.Layer]:
    return [
        layer
        for layer in net._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and not isinstance(layer, BatchNormalization)
        and not batch_statistics.is_adapted(layer)
    ]


def warned_of_ordinary(net: keras.Model) -> bool:
    """Warn of a net's ordinary batch normalization; whether there was any."""
    found = ordinary_batch_normalizations(net)
    if found:
        warnings.warn(
            f"net {net.name!r} has ordinary batch normalization ({_names(found)}), which would "
            "learn the statistics of the drawn examples instead of the data's. Convert it first, "
            "weights kept: tfi.layers.adapt_batch_normalization(net).",
            stacklevel=4,
        )
    return bool(found)


def adapt_batch_normalization(net: keras.Model) -> keras.Model:
    """Let a net's batch normalization use the data's statistics where examples are drawn.

    A batch that was drawn from a scored pre-sample is normalized by the pre-sample's statistics,
    one that was drawn by a memory by a short importance-weighted average over batches; gradients
    flow through the batch's own weighted statistics, and moving averages follow those that were
    used (docs/batch_normalization.md). On plain data, and outside of an ISModel, it is Keras's own.

    Works in place and for any net, functional or subclassed, nested, built or not: the layers stay
    Keras's own, and a net that is saved or exported has nothing of this package. `ISModel` does it
    by itself. Layers of `tfi.layers.BatchNormalization` keep their weighted statistics.

    Args:
        net: a model.
    Returns:
        The same net.
    Raises:
        ValueError: a layer cannot be converted, because its class changes what
            `keras.layers.BatchNormalization` does, or uses renorm.
    """
    adapted(net)
    return net


def adapted(net: keras.Model) -> list[keras.layers.Layer]:
    """The layers that `adapt_batch_normalization` has converted now."""
    found = []
    for layer in _of_keras(net):
        own_call = type(layer).call is not keras.layers.BatchNormalization.call
        if not own_call and not getattr(layer, "renorm", False):
            found.append(layer)
        elif layer.trainable:
            raise ValueError(
                f"layer {layer.name!r} of class {type(layer).__name__} cannot be converted: only "
                "keras.layers.BatchNormalization itself, without renorm, can. Derive its class "
                "from tfi.layers.BatchNormalization, or give "
                "ISModel(net, adapt_batch_normalization=False)."
            )
    for layer in found:
        batch_statistics.adapt(layer)
    inline_calls(net)
    return found


def inline_calls(net: keras.Model) -> None:
    """Let batch normalization in a `call` that is a tf.function see the weights of each batch."""
    if any(isinstance(one, keras.layers.BatchNormalization) for one in net._flatten_layers()):
        batch_statistics.inline_calls(net, lambda: current_weights() is not None)


def told_of_adapted(net: keras.Model, found: list[keras.layers.Layer]) -> None:
    """Say in a line what was converted."""
    tf.get_logger().info(
        f"{_names(found)} of net {net.name!r}: batch normalization by the data's statistics where "
        "examples are drawn (ISModel(net, adapt_batch_normalization=False) leaves it as it is)."
    )


def _names(found: list[keras.layers.Layer]) -> str:
    first = ", ".join(layer.name for layer in found[:3])
    return first if len(found) <= 3 else f"{first} and {len(found) - 3} more"


def weight_batch_normalization(net: keras.Model) -> keras.Model:
    """Turn every ordinary batch normalization of a net into `tfi.layers.BatchNormalization`.

    Works in place, weights kept. To be removed: `adapt_batch_normalization` trains better, and
    RAIS's own statistics are had by building the net of `tfi.layers.BatchNormalization`.

    Args:
        net: a model.
    Returns:
        The same net.
    Raises:
        ValueError: a layer cannot be converted, because its class changes what
            `keras.layers.BatchNormalization` does, or uses renorm.
    """
    warnings.warn(
        "weight_batch_normalization will be removed: tfi.layers.adapt_batch_normalization(net), "
        "which ISModel calls by itself, trains better; for RAIS's own weighted statistics build "
        "the net of tfi.layers.BatchNormalization.",
        FutureWarning,
        stacklevel=2,
    )
    found = ordinary_batch_normalizations(net)
    for layer in found:
        if type(layer) is not keras.layers.BatchNormalization or getattr(layer, "renorm", False):
            raise ValueError(
                f"layer {layer.name!r} of class {type(layer).__name__} cannot be converted: "
                "only keras.layers.BatchNormalization itself, without renorm, can. Derive its "
                "class from tfi.layers.BatchNormalization instead."
            )
    for layer in found:
        # The subclass adds no state, so an instance becomes one of it by its class alone.
        layer.__class__ = BatchNormalization
    return net
