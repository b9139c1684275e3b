"""Uniform sampling, as the common ground of all comparisons."""

from __future__ import annotations

from tf_importance.samplers.base import Draw, Sampler, Turn, passing


class Uniform(Sampler):
    """Pass after pass over the data, each in a new order; all weights are 1.

    Args:
        num_examples: n; by default that of the data.
        gain_smoothing: as in `Sampler`; the gain is 1.
    """

    averages_statistics = False
    is_compared = False

    def _draw(self, turn: Turn) -> Draw:
        return passing(turn.position, turn.examples, self.num_examples, turn.seed)
