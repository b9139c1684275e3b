"""The loss itself as a score."""

from __future__ import annotations

import tensorflow as tf

from tf_importance import losses
from tf_importance.scorers import base, forward


def _loss(objective: losses.Objective, labels, passed: forward.Forward) -> tf.Tensor:
    """Score by the loss of each example ("loss" in Katharopoulos & Fleuret 2018, section 4).

    Args:
        model: a compiled ISModel. inputs: nest of [B, …]. labels: nest of [B, …].
    Returns:
        [B] float32 losses, loss weights included. A loss that can be negative is no score:
        a pre-sample with a negative one is used uniformly.
    """
    return losses.per_example_losses(objective, labels, passed.outputs)


loss = base.OutputScorer("loss", _loss)
