"""Embeddings: tables of which a few rows are read."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_importance import compat
from tf_importance.scorers.norms import contributions as forms
from tf_importance.scorers.norms.contributions import Contribution, Outer, Rows
from tf_importance.scorers.norms.dense import has_no_adapter, points
from tf_importance.scorers.norms.recording import Recorder, replaced
from tf_importance.scorers.norms.registry import register


def _read(layer, call, record: Recorder, inputs, *args, **kwargs):
    ids = tf.cast(inputs, tf.int32)

    def contributions(deltas, ids) -> list[Contribution]:
        times = ids.shape[1:].num_elements()
        batch = -1 if times is not None else tf.shape(ids)[0]
        shape = [batch, -1 if times is None else times]
        deltas = tf.reshape(deltas, [*shape, deltas.shape[-1]])
        return [Rows(tf.reshape(ids, shape), deltas, layer.embeddings.shape[0])]

    return record(call(inputs, *args, **kwargs), [layer.embeddings], contributions, ids)


@register(keras.layers.Embedding, method="rows that were read", suits=has_no_adapter)
def _embedding(layer, call, record: Recorder, inputs, *args, **kwargs):
    return _read(layer, call, record, inputs, *args, **kwargs)


@register(
    *compat.layers_named("ReversibleEmbedding"),
    method="rows and outer products",
    suits=has_no_adapter,
)
def _reversible_embedding(layer, call, record: Recorder, inputs, reverse=False, **kwargs):
    """The table of a language model, read at its start and multiplied with at its end."""
    if not reverse:
        return _read(layer, call, record, inputs, reverse=False, **kwargs)
    table = layer.embeddings if layer.tie_weights else layer.reverse_embeddings

    def contributions(deltas, inputs) -> list[Contribution]:
        first, last = points(deltas), points(inputs)
        if not layer.tie_weights:
            return [Outer(last, first, lambda g: g[:, 0], "matrix")]
        return [Outer(first, last, lambda g: g[:, 0], forms.TABLE)]

    # The cap on the logits comes after the product: tanh(z / cap) cap.
    cap = layer.logit_soft_cap
    with replaced(layer, logit_soft_cap=None):
        logits = record(call(inputs, reverse=True, **kwargs), [table], contributions, inputs)
    return logits if cap is None else tf.tanh(logits / cap) * cap
