"""Katyusha: accelerated SVRG (Allen-Zhu 2017)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_importance import compat
from tf_importance.arguments import number
from tf_importance.variance_reduced import base, svrg


@keras.saving.register_keras_serializable(package="tf_importance")
class Katyusha(svrg.SVRG):
    """SVRG with Katyusha momentum, which pulls every step towards the snapshot.

    Algorithm 1 of Allen-Zhu 2017 without a proximal term, on batches. With ∇̃ the variance-
    reduced gradient at x and the learning rate η in place of 1/(3L), so that α = η/τ₁:

        x ← τ₁ z + τ₂ x̃ + (1 − τ₁ − τ₂) y
        z ← z − (η/τ₁) ∇̃
        y ← x − η ∇̃        (options I and II are the same here)

    and after m steps x̃ ← Σ_j (1+ασ)^j y_{j+1} / Σ_j (1+ασ)^j. Between the steps the net has the
    parameters y.

    Args:
        net, data, inner_steps: as of `SVRG`; the paper has m = 2n for single examples.
        momentum: τ₁ in (0, 1 − τ₂]: min(√(mσ/3L), 1/2) for a σ-strongly convex problem. None is
            Katyusha^ns, for problems that are not: τ₁ = 2/(s+4) in stage s = 0, 1, …
        katyusha_momentum: τ₂ in [0, 1).
        strong_convexity: σ; 0 makes x̃ the plain mean.
    Raises:
        ValueError: a momentum is out of range, strong_convexity is negative.
    """

    def __init__(
        self,
        net: keras.Model,
        data: tf.data.Dataset | None,
        *,
        inner_steps: int,
        momentum: float | None = None,
        katyusha_momentum: float = 0.5,
        strong_convexity: float = 0.0,
        **kwargs,
    ) -> None:
        _check(momentum, katyusha_momentum, strong_convexity)
        super().__init__(net, data, inner_steps=inner_steps, **kwargs)
        self.momentum = momentum
        self.katyusha_momentum = katyusha_momentum
        self.strong_convexity = strong_convexity
        self._z = self._slots("z")
        self._average = self._slots("average")
        # Σ_{i≤j} (1+ασ)^i / (1+ασ)^j after step j.
        self._total = self.add_weight(
            name="total", shape=(), dtype="float32", initializer="zeros", trainable=False
        )

    def compile(self, *args, **kwargs):
        """As `SVRG.compile`.

        Raises:
            ValueError: the optimizer is not SGD without momentum of its own.
        """
        super().compile(*args, **kwargs)
        sgd = isinstance(self.optimizer, keras.optimizers.SGD)
        if not sgd or self.optimizer.momentum:
            raise ValueError(
                "Katyusha has a momentum of its own, so its optimizer must be "
                f"keras.optimizers.SGD(learning_rate); got {self.optimizer!r}, momentum "
                f"{getattr(self.optimizer, 'momentum', None)}."
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "katyusha_momentum": self.katyusha_momentum,
            "strong_convexity": self.strong_convexity,
        }

    def take_snapshot(self) -> int:
        if not int(compat.value(self.stage)):
            base.assign(self._z, base.values(self.net.trainable_variables))
        steps = super().take_snapshot()
        self._total.assign(0.0)
        return steps

    def _next_snapshot(self) -> list[tf.Tensor]:
        first = not int(compat.value(self.stage))
        return base.values(self.net.trainable_variables if first else self._average)

    def train_step(self, data):
        parameters = self.net.trainable_variables
        tau = self._tau()
        start = [
            tf.cast(tau, z.dtype) * z + snapshot + tf.cast(1 - tau, z.dtype) * y
            for z, snapshot, y in zip(
                base.values(self._z), self._pull(parameters), base.values(parameters)
            )
        ]
        base.assign(parameters, start)
        logs = super().train_step(data)
        end = base.values(parameters)
        # x − y is η∇̃, clipped and scheduled as the optimizer was told.
        for z, x, y in zip(self._z, start, end):
            z.assign_sub((x - y) / tf.cast(tau, x.dtype))
        self._update_average(end, tau)
        return logs

    def _pull(self, parameters) -> list[tf.Tensor]:
        """τ₂ (x̃ − y), which added to τ₁ z + (1 − τ₁) y makes x."""
        return [
            self.katyusha_momentum * (snapshot - y)
            for snapshot, y in zip(base.values(self._snapshot), base.values(parameters))
        ]

    def _tau(self) -> tf.Tensor:
        """τ₁ of this stage."""
        if self.momentum is not None:
            return tf.constant(self.momentum, tf.float32)
        # `stage` counts from 1, s from 0.
        return 2.0 / (tf.cast(compat.value(self.stage), tf.float32) + 3.0)

    def _update_average(self, y: list[tf.Tensor], tau: tf.Tensor) -> None:
        learning_rate = tf.cast(compat.value(self.optimizer.learning_rate), tf.float32)
        growth = 1.0 + learning_rate / tau * self.strong_convexity
        total = compat.value(self._total) / growth + 1.0
        self._total.assign(total)
        for average, newest in zip(self._average, y):
            share = 1 / tf.cast(total, newest.dtype)
            average.assign_add(share * (newest - compat.value(average)))


def _check(momentum, katyusha_momentum, strong_convexity) -> None:
    number("katyusha_momentum", katyusha_momentum, "in [0, 1)", lambda part: 0 <= part < 1)
    number("strong_convexity", strong_convexity, "not negative", lambda sigma: sigma >= 0)
    if momentum is not None:
        left = 1 - katyusha_momentum
        wanted = f"in (0, 1 - katyusha_momentum], {left:g} here, or None for Katyusha^ns"
        number("momentum", momentum, wanted, lambda part: 0 < part <= left)
    if momentum is None and katyusha_momentum > 0.5:
        raise ValueError(
            "katyusha_momentum must be at most 0.5 beside Katyusha^ns's own momentum of up to "
            f"0.5; got {katyusha_momentum}."
        )
