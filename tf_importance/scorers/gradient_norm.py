"""The exact gradient norm as a score: the ideal that the others approximate."""

from __future__ import annotations

import tensorflow as tf

from tf_importance.scorers import base, norms


def gradient_norm(model: base.ScoredModel, inputs, labels) -> tf.Tensor:
    """‖∂L_i/∂θ‖₂ over all trainable variables, by one forward and one backward pass.

    The optimal proposal is proportional to it (Katharopoulos & Fleuret 2018, eq. 7). See
    `tfi.per_example_gradient_norms` for what is exact and what it costs.

    Args:
        model: a compiled ISModel.
        inputs, labels: nests of [B, …] tensors.
    Returns:
        [B] float32 norms, regularization losses excluded.
    """
    return tf.cast(norms.per_example_gradient_norms(model, inputs, labels), tf.float32)
