"""What a scorer is.

A scorer is any callable `(model, x, y) -> [B]` of float32 scores, `model` a compiled ISModel.
One that needs no more than a forward pass is an `OutputScorer`: the pipeline gives it a pass
in inference mode, the training step its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from tf_importance import losses
from tf_importance.scorers import forward


class ScoredModel(Protocol):
    """The part of an ISModel that scorers use."""

    objective: losses.Objective
    trainable_variables: list

    def __call__(self, inputs, training: bool | None = None) -> Any: ...


Scorer = Callable[[Any, Any, Any], tf.Tensor]


class OutputScorer:
    """A scorer that is a function of the labels and a forward pass.

    Args:
        name: its name in configs and saved models.
        from_forward: `(objective, labels, forward) -> [B]` scores.
    """

    def __init__(
        self,
        name: str,
        from_forward: Callable[[losses.Objective, Any, forward.Forward], tf.Tensor],
    ) -> None:
        self.__name__ = name
        self.__doc__ = from_forward.__doc__
        self._from_forward = from_forward

    def from_forward(
        self, objective: losses.Objective, labels, passed: forward.Forward
    ) -> tf.Tensor:
        """Scores of the examples of a forward pass that was made already: [B] float32."""
        return tf.cast(self._from_forward(objective, labels, passed), tf.float32)

    def __call__(self, model: ScoredModel, inputs, labels) -> tf.Tensor:
        """Scores of examples by one forward pass in inference mode: [B] float32."""

        def score(inputs, labels):
            return self.from_forward(model.objective, labels, forward.of(model, inputs))

        # Always in a graph, where any spelling of the last activation can be seen.
        return tf.function(score, autograph=False)(inputs, labels)

    def __repr__(self) -> str:
        return f"tfi.scorers.{self.__name__}"
