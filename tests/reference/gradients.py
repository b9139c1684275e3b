"""Gradients of examples the slow way: one at a time, each held in full."""

import numpy as np
import tensorflow as tf

from tf_importance import losses
from tf_importance.scorers.norms import gradient_norms


def squared_norms(model, x, y, sample_weight=None, *, loss=None, variables=None) -> np.ndarray:
    """Σ (∂L_i/∂θ_v)², a row per variable, from batches of one example: [variables, B]."""
    objective = gradient_norms._objective(model, loss)
    variables = list(model.trainable_variables if variables is None else variables)
    size = tf.nest.flatten(x)[0].shape[0]
    columns = []
    for index in range(size):
        one_x, one_y = tf.nest.map_structure(lambda part: part[index : index + 1], (x, y))  # noqa: B023
        with tf.GradientTape() as tape:
            value = losses.per_example_losses(objective, one_y, model(one_x, training=False))
            if sample_weight is not None:
                value *= tf.cast(sample_weight[index], value.dtype)
        gradients = tape.gradient(value, variables)
        columns.append([_square(gradient) for gradient in gradients])
    return np.array(columns).T


def _square(gradient) -> float:
    if gradient is None:
        return 0.0
    return float(np.sum(np.square(np.asarray(tf.convert_to_tensor(gradient), np.float64))))
