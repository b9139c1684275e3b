"""The exact gradient norm as a score: the ideal that the others approximate."""

from __future__ import annotations

import tensorflow as tf

from tf_importance import losses
from tf_importance.scorers import base


def gradient_norm(model: base.ScoredModel, inputs, labels) -> tf.Tensor:
    """‖∂L_i/∂θ‖₂ over all trainable variables, one example at a time.

    The optimal proposal is proportional to it (Katharopoulos & Fleuret 2018, eq. 7). Exact
    and slow: B forward and backward passes of one example each, in inference mode.

    Args:
        model: a compiled ISModel.
        inputs, labels: nests of [B, …] tensors.
    Returns:
        [B] float32 norms, regularization losses excluded.
    """

    def norm(example) -> tf.Tensor:
        one_input, one_label = tf.nest.map_structure(lambda part: part[tf.newaxis], example)
        with tf.GradientTape() as tape:
            outputs = model(one_input, training=False)
            loss = losses.per_example_losses(model.objective, one_label, outputs)
        variables = model.trainable_variables
        gradients = [g for g in tape.gradient(loss, variables) if g is not None]
        # Dense: the rows of a sparse gradient may repeat, and their sum is what has the norm.
        dense = [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in gradients]
        squares = [tf.reduce_sum(g**2) for g in dense]
        return tf.sqrt(tf.add_n(squares))

    return tf.map_fn(norm, (inputs, labels), fn_output_signature=tf.float32)
