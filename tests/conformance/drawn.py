"""Draws that are known beforehand, by a memory and from a stream."""

import numpy as np
import tensorflow as tf

import tf_importance as tfi
from tf_importance import proposals
from tf_importance.samplers import base

# Drawn of 12 examples: with replacement, by weights that are not 1 on average.
INDICES = np.array([7, 2, 7, 10])
WEIGHTS = np.array([0.5, 1.7, 0.5, 2.6], np.float32)
b = len(INDICES)


class Given(tfi.samplers.Sampler):
    """Draws these."""

    def _draw(self, turn):
        indices = np.tile(INDICES, turn.batches).astype("int64")
        return base.Draw(tf.constant(indices), tf.tile(tf.constant(WEIGHTS), [turn.batches]))


def resampled(proposal, size, seed):
    del size, seed
    return proposals.Draw(tf.constant(INDICES, tf.int32), tf.constant(WEIGHTS, proposal.dtype))


def equal_scores(model, x, y):
    del model
    return tf.ones(tf.shape(tf.nest.flatten(y)[0])[:1])
