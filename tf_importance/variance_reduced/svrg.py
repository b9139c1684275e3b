"""Stochastic variance reduced gradient (Johnson & Zhang 2013)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tf_importance.arguments import positive_integer
from tf_importance.variance_reduced import base


@keras.saving.register_keras_serializable(package="tf_importance")
class SVRG(base.VarianceReduced):
    """SVRG with mini-batches: the snapshot's gradient is that of all data, every m steps.

    Option I of Johnson & Zhang 2013, figure 1: a snapshot is the last iterate. The step is
    that of the compiled optimizer; with SGD it is x ← x − η (∇f_I(x) − ∇f_I(x̃) + μ).

        model = tfi.variance_reduced.SVRG(net, examples.batch(500), inner_steps=2 * 60_000 // 128)
        model.compile(keras.optimizers.SGD(0.1), loss=...)
        model.fit(examples.repeat().shuffle(10_000).batch(128), steps_per_epoch=..., epochs=...)

    Args:
        net: any keras.Model.
        data: a finite dataset of batches, of any size, that a pass over is the full gradient.
        inner_steps: m, the number of steps from one snapshot to the next. Katharopoulos &
            Fleuret 2018, supplement 3, tune it as epochs per batch gradient computation.
    Raises:
        ValueError: inner_steps is not positive, or data has no end.
    """

    def __init__(
        self, net: keras.Model, data: tf.data.Dataset | None, *, inner_steps: int, **kwargs
    ) -> None:
        self.inner_steps = positive_integer("inner_steps", inner_steps)
        base.refuse_endless(data)
        super().__init__(net, data, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inner_steps": self.inner_steps}

    def _stream(self) -> Iterable:
        base.refuse_endless(self.data)
        return self.data

    def _stage_steps(self) -> int:
        return self.inner_steps

    def _checked_steps_per_execution(self) -> int:
        steps = super()._checked_steps_per_execution()
        if self.inner_steps % steps:
            raise ValueError(
                "inner_steps must be a multiple of steps_per_execution, since snapshots are "
                f"taken between executions; got {self.inner_steps} and {steps}."
            )
        return steps
