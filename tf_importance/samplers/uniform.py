"""Uniform sampling, as the common ground of all comparisons."""

from __future__ import annotations

import tensorflow as tf

from tf_importance.samplers.base import Draw, Sampler, passing


class Uniform(Sampler):
    """Pass after pass over the data, each in a new order; all weights are 1.

    Args:
        num_examples: n.
        gain_smoothing: as in `Sampler`; the gain is 1.
    """

    def _draw(self, size: int, number: tf.Tensor, seed: tf.Tensor) -> Draw:
        return passing(number * size, size, self.num_examples, seed)
